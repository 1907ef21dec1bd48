"""Commits that something asynchronous ends: what is said of them agrees with what there is.

`signal.setitimer` raises at random moments, and a trace function before every line of ours in turn.
Then the server's view and the outcomes agree, the queue is not locked, nothing that was rolled back
is in it, and the next commit works.
"""

from __future__ import annotations

import random
import sqlite3

import pytest
from interrupting import Alarm, AtLine, Limit, Never, alarms_within
from letters import letter
from queues import OWN_POSTGRESQL, OWN_SQLITE

from txmail.delivery.ending import NOT_KNOWN

pytestmark = [
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.timeout(300, method="thread"),  # the other method has the timer that we need
    # A connection that was just being made is dropped, which its driver remarks on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: how mail goes, by the queue, the options of the mailer, and whether some of it is enqueued
WAYS = {
    "direct": (None, {}, False),
    "written ahead in SQLite": (OWN_SQLITE, {}, False),
    "all or nothing, SQLite": (OWN_SQLITE, {"on_partial": "abort"}, True),
    "written ahead in PostgreSQL": (OWN_POSTGRESQL, {}, True),
    "queued in SQLite": (OWN_SQLITE, {"delivery": "queue"}, True),
    "queued in PostgreSQL": (OWN_POSTGRESQL, {"delivery": "queue"}, True),
}


class Commits:
    """Transactions of one application, each with mail to people of its own."""

    def __init__(self, way, make_queue, make_mailer, tm, server):
        kind, options, self._enqueues = WAYS[way]
        self._tm, self.server = tm, server
        self.app = make_queue(kind) if kind is not None else None
        self.mailer = self.app.mailer(**options) if self.app is not None else make_mailer()
        self.errors = set()
        self.count = 0

    def names(self):
        return [f"{self.count}{letter}@example.com" for letter in "abc"]

    def run(self, around):
        """One transaction whose commit is in `around`; whether it was interrupted."""
        self.count += 1
        tm, error = self._tm, None
        tm.begin()
        first, *others = self.names()
        if self._enqueues:
            self.mailer.enqueue(letter("e", first))
        else:
            self.mailer.send(letter("s", first))
        for name in others:
            self.mailer.send(letter("s", name))
        try:
            with around:
                tm.commit()
        except (Alarm, Limit) as raised:
            error = raised
        except Exception as raised:  # what SQLAlchemy made of it
            error = raised
            assert around.done
        if error is not None:
            self.errors.add(type(error).__name__)
            tm.abort()
        outcomes = self.mailer.last_outcomes
        if around.may_be_early and error is not None and not outcomes:
            self.check_nothing_began()
            return False
        self.check(error, outcomes)
        return error is not None

    def check_nothing_began(self):
        """The interrupt came before the commit had reached us: that was an abort."""
        self.check_not_locked()
        held = {r for m in list(self.server.messages) for r in m.recipients}
        assert not held.intersection(self.names())
        assert not set(self.states()).intersection(self.names())

    def check(self, error, outcomes):
        assert [o.recipient for o in outcomes] == self.names()
        by_name = {o.recipient: o for o in outcomes}
        self.check_not_locked()
        states = self.states()
        held = [r for m in list(self.server.messages) for r in m.recipients]
        for name, outcome in by_name.items():
            times, state = held.count(name), states.get(name)
            allowed = {"accepted": [1], "in_doubt": [0, 1]}.get(outcome.status, [0])
            assert times in allowed, (outcome, times, error)
            if error is None:
                assert outcome.permits_commit, outcome
                if outcome.queued:
                    assert state in ("ready", "deferred", "in_doubt"), (outcome, state)
                continue
            if outcome.queued:  # the interrupt came when it was all over, in our `tpc_finish`
                assert state == "ready", outcome
                continue
            if outcome.reason == NOT_KNOWN:
                continue
            if outcome.status in ("unsent", "deferred", "failed"):
                assert state in (None, "cancelled"), (outcome, state, error)
            else:
                assert state in (None, "sent", "in_doubt"), (outcome, state, error)

    def states(self):
        return self.app.states() if self.app is not None else {}

    def check_not_locked(self):
        """Others can write at once, without any collector of garbage."""
        if self.app is None or not self.app.queue.database.is_in_process:
            return
        other = sqlite3.connect(self.app.engine.url.database, timeout=5)
        other.execute("BEGIN IMMEDIATE")
        other.rollback()
        other.close()


@pytest.fixture
def make_commits(make_queue, make_mailer, tm, server):
    return lambda way: Commits(way, make_queue, make_mailer, tm, server)


def lines(commits):
    """How many lines of ours a commit is."""
    counting = AtLine(-1)
    commits.run(counting)
    return counting.lines


def sweep(commits, moments, error=Alarm):
    """Interrupt a commit before each of these lines in turn."""
    interrupted = 0
    for at in moments:
        interrupted += commits.run(AtLine(at, error))
        assert not commits.run(Never()) or not commits.mailer.last_outcomes
    return interrupted


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("way", WAYS)
def test_b2_a_commit_that_is_interrupted_at_a_line_says_what_is_so(make_commits, way):
    """Kind: something asynchronous ends a commit between any two steps."""
    commits = make_commits(way)
    commits.run(Never())
    all_ = lines(commits)
    assert sweep(commits, random.Random(way).sample(range(1, all_), 6)) > 2


@pytest.mark.sweep
@pytest.mark.parametrize("way", WAYS)
def test_b2_a_commit_that_is_interrupted_at_many_lines_says_what_is_so(make_commits, way):
    """Kind: the same, at a good part of all moments."""
    commits = make_commits(way)
    commits.run(Never())
    all_ = lines(commits)
    assert sweep(commits, range(1, all_, max(1, all_ // 40))) > 20


@pytest.mark.long
@pytest.mark.parametrize("error", [Alarm, Limit])
@pytest.mark.parametrize("way", WAYS)
def test_b2_a_commit_that_is_interrupted_at_every_line_says_what_is_so(make_commits, way, error):
    """Kind: the same, at every moment."""
    commits = make_commits(way)
    commits.run(Never())
    assert sweep(commits, range(1, lines(commits)), error) > 100


def alarms(commits, count, seed):
    """So many commits, each interrupted somewhere; how many were."""
    interrupted = sum(alarms_within(commits.run, count, seed))
    commits.run(Never())
    return interrupted


@pytest.mark.parametrize("way", ["direct", "written ahead in SQLite", "queued in SQLite"])
def test_b1_alarms_in_the_middle_of_some_commits(make_commits, way):
    """Kind: the same, with a timer, which also hits the libraries below."""
    assert alarms(make_commits(way), 20, way) > 1


@pytest.mark.sweep
@pytest.mark.parametrize("way", WAYS)
def test_b1_alarms_in_the_middle_of_many_commits(make_commits, way):
    """Kind: the same; 300 commits in all."""
    assert alarms(make_commits(way), 50, way) > 5
