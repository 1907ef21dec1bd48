"""Which calls data managers get from `transaction`, and that ours survives each of them."""

from __future__ import annotations

import logging

import pytest
import transaction
from databases import Failure, Recorder
from letters import letter, statuses, subjects

from txmail.datamanager import SORT_KEY, join
from txmail.events import SentForNothing, VotesAfterUs
from txmail.exceptions import PartialDelivery

UP_TO = {
    "begin": ["begin"],
    "commit": ["begin", "commit"],
    "vote": ["begin", "commit", "vote"],
    "finish": ["begin", "commit", "vote", "finish"],
}

#: (who fails, in what, the calls of a, the calls of b)
CALLS = [
    ("b", "begin", ["begin", "abort", "tpc_abort"], ["begin", "abort", "tpc_abort"]),
    ("a", "begin", ["begin", "abort", "tpc_abort"], ["abort", "tpc_abort"]),
    ("b", "vote", [*UP_TO["vote"], "tpc_abort"], [*UP_TO["vote"], "abort", "tpc_abort"]),
    ("b", "finish", [*UP_TO["finish"], "tpc_abort"], [*UP_TO["finish"], "tpc_abort"]),
]

#: Names that sort before and after ours.
BEFORE, AFTER = "~sqlalchemy:1", "~~~"


@pytest.mark.parametrize(("who", "phase", "calls_of_a", "calls_of_b"), CALLS)
@pytest.mark.parametrize("caller_aborts", [False, True])
def test_what_transaction_tells_two_managers(tm, who, phase, calls_of_a, calls_of_b, caller_aborts):
    a, b = (Recorder(name, fails=phase if name == who else "") for name in "ab")
    transaction_ = tm.begin()
    transaction_.join(b)
    transaction_.join(a)
    with pytest.raises(Failure):
        tm.commit()
    after = []
    if caller_aborts:
        tm.abort()
        after = ["abort"]
    assert a.calls == calls_of_a + after
    assert b.calls == calls_of_b + after


def test_transaction_aborts_after_a_success_if_there_is_an_after_commit_hook(tm):
    a = Recorder("a")
    transaction_ = tm.begin()
    transaction_.join(a)
    transaction_.addAfterCommitHook(lambda status: None)
    tm.commit()
    assert a.calls == [*UP_TO["finish"], "abort"]


def assert_mail_can_be_sent(tm, mailer, server):
    """The next transaction is like any other, and its mail takes the connection there was."""
    before = len(server.messages)
    with tm:
        mailer.send(letter("next"))
    assert subjects(server)[before:] == ["next"]
    assert len(server.connections) == 1


def abort_three_times_over(manager, transaction_):
    for _ in range(3):
        manager.abort(transaction_)
        manager.tpc_abort(transaction_)
        manager.tpc_abort(transaction_)
        manager.abort(transaction_)


@pytest.mark.parametrize("phase", ["begin", "commit", "vote"])
@pytest.mark.parametrize("caller_aborts", [False, True])
def test_nothing_is_sent_when_a_manager_before_ours_fails(
    tm, mailer, server, caplog, phase, caller_aborts
):
    transaction_ = tm.begin()
    transaction_.join(Recorder(BEFORE, fails=phase))
    mailer.send(letter("one"))
    mailer.send(letter("two"))
    manager = join(tm)
    with pytest.raises(Failure):
        tm.commit()
    if caller_aborts:
        tm.abort()
    abort_three_times_over(manager, transaction_)
    tm.abort()
    assert server.messages == []
    assert_mail_can_be_sent(tm, mailer, server)
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


@pytest.mark.parametrize("phase", ["begin", "commit"])
@pytest.mark.parametrize("caller_aborts", [False, True])
def test_nothing_is_sent_when_a_manager_after_ours_fails_before_the_votes(
    tm, mailer, server, phase, caller_aborts
):
    transaction_ = tm.begin()
    transaction_.join(Recorder(AFTER, fails=phase))
    mailer.send(letter("one"))
    manager = join(tm)
    with pytest.raises(Failure):
        tm.commit()
    if caller_aborts:
        tm.abort()
    abort_three_times_over(manager, transaction_)
    tm.abort()
    assert server.messages == []
    assert_mail_can_be_sent(tm, mailer, server)


@pytest.mark.parametrize(("key", "phase"), [(BEFORE, "finish"), (AFTER, "vote"), (AFTER, "finish")])
def test_mail_that_is_out_for_a_failed_transaction_is_told_and_hides_no_error(
    tm, mailer, server, events, caplog, key, phase
):
    transaction_ = tm.begin()
    transaction_.join(Recorder(key, fails=phase))
    message_id = mailer.send(letter("out"))
    manager = join(tm)
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    abort_three_times_over(manager, transaction_)
    assert subjects(server) == ["out"]
    assert [e for e in events if isinstance(e, SentForNothing)] == [SentForNothing((message_id,))]
    critical = [r.getMessage() for r in caplog.records if r.name == "txmail" and r.levelno >= 50]
    assert len(critical) == 1
    assert message_id in critical[0]
    assert_mail_can_be_sent(tm, mailer, server)


@pytest.mark.parametrize("key", [BEFORE, AFTER])
@pytest.mark.parametrize("caller_aborts", [False, True])
def test_when_our_own_vote_fails_nothing_of_the_transaction_is_left(
    tm, mailer, server, key, caller_aborts
):
    server.on(".", "554 5.7.1 looks like spam")
    other = Recorder(key)
    transaction_ = tm.begin()
    transaction_.join(other)
    mailer.send(letter("one"))
    manager = join(tm)
    with pytest.raises(Exception, match="looks like spam"):
        tm.commit()
    if caller_aborts:
        tm.abort()
    abort_three_times_over(manager, transaction_)
    tm.abort()
    assert "finish" not in other.calls
    assert other.calls[-1] == "abort"
    assert server.messages == []
    assert_mail_can_be_sent(tm, mailer, server)


#: What a manager has been through when it is told to abort.
STATES = ["joined", "hook", "begin", "commit"]


@pytest.mark.parametrize("state", STATES)
def test_abort_and_tpc_abort_are_legal_in_every_state_before_the_vote(tm, mailer, server, state):
    manager, transaction_ = brought_to(state, tm, mailer)
    abort_three_times_over(manager, transaction_)
    tm.abort()
    assert server.messages == []
    with tm:
        mailer.send(letter("next"))
    assert subjects(server) == ["next"]
    assert len(server.connections) == 1


@pytest.mark.parametrize("state", ["vote", "finish"])
def test_abort_and_tpc_abort_undo_nothing_once_the_mail_is_out(tm, mailer, server, events, state):
    manager, transaction_ = brought_to(state, tm, mailer)
    manager.abort(transaction_)
    if state == "vote":
        manager.tpc_finish(transaction_)
    manager.abort(transaction_)
    tm.abort()
    assert subjects(server) == ["mail"]
    assert not [event for event in events if isinstance(event, SentForNothing)]
    assert_mail_can_be_sent(tm, mailer, server)


def test_an_abort_after_our_yes_does_not_make_us_forget_what_is_out(tm, mailer, server, events):
    manager, transaction_ = brought_to("vote", tm, mailer)
    abort_three_times_over(manager, transaction_)
    tm.abort()
    assert subjects(server) == ["mail"]
    (told,) = [event for event in events if isinstance(event, SentForNothing)]
    assert told.message_ids == tuple(o.message_id for o in mailer.last_outcomes)
    assert_mail_can_be_sent(tm, mailer, server)


def brought_to(state, tm, mailer):
    """Our manager with one message, after `state`, and its transaction."""
    transaction_ = tm.begin()
    mailer.send(letter("mail"))
    manager = join(tm)
    steps = {
        "joined": lambda: None,
        "hook": lambda: [f(*a, **k) for f, a, k in list(transaction_.getBeforeCommitHooks())],
        "begin": lambda: manager.tpc_begin(transaction_),
        "commit": lambda: manager.commit(transaction_),
        "vote": lambda: manager.tpc_vote(transaction_),
        "finish": lambda: manager.tpc_finish(transaction_),
    }
    for name, step in steps.items():
        step()
        if name == state:
            break
    return manager, transaction_


# -- the sort key


def test_the_sort_key_is_a_string_behind_those_of_zodb_and_sqlalchemy(tm, mailer, make_database):
    tm.begin()
    mailer.send(letter("mail"))
    for kind in ("ZODB FileStorage", "SQLite, one-phase"):
        make_database(kind).write("a value")
    ours, *others = sorted(
        tm.get()._resources, key=lambda manager: manager is not join(tm)
    )  # ours first
    assert ours.sortKey() == SORT_KEY
    assert type(SORT_KEY) is str
    assert len(others) == 2
    assert all(other.sortKey() < SORT_KEY for other in others)
    assert SORT_KEY > "sqlalchemy.twophase:99999999"
    assert SORT_KEY > "~sqlalchemy:99999999"
    tm.abort()


def test_two_phase_sql_sorts_before_ours(tm, mailer, make_database):
    tm.begin()
    make_database("PostgreSQL, two-phase").write("a value")
    (database_manager,) = tm.get()._resources
    assert database_manager.sortKey().startswith("sqlalchemy.twophase:")
    assert database_manager.sortKey() < SORT_KEY
    tm.abort()


def test_a_manager_that_votes_after_the_mail_is_warned_about(tm, mailer, events, caplog):
    tm.begin().join(Recorder("~~~late"))
    mailer.send(letter("mail"))
    tm.commit()
    assert [e for e in events if isinstance(e, VotesAfterUs)] == [VotesAfterUs("~~~late")]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'~~~late'" in warnings[0]


def test_nobody_is_warned_about_managers_that_vote_before_the_mail(tm, mailer, events, caplog):
    tm.begin().join(Recorder("~sqlalchemy:1"))
    mailer.send(letter("mail"))
    tm.commit()
    assert not [event for event in events if isinstance(event, VotesAfterUs)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# -- regressions of others, by the name of the complaint


def test_repoze_sendmail_23_mail_and_savepoints_go_together(tm, mailer, server):
    with tm:
        mailer.send(letter("kept"))
        savepoint = tm.savepoint()
        mailer.send(letter("rolled back"))
        savepoint.rollback()
    assert subjects(server) == ["kept"]


def test_repoze_sendmail_30_after_commit_hooks_and_mail_go_together(tm, mailer, server, caplog):
    told = []
    with tm as transaction_:
        mailer.send(letter("mail"))
        transaction_.addAfterCommitHook(told.append)
    assert told == [True]
    assert subjects(server) == ["mail"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_repoze_sendmail_31_a_refusal_leaves_the_transaction_manager_usable(
    mailer, tm, server, caplog
):
    server.on(".", "554 5.7.1 no")
    tm.begin()
    mailer.send(letter("refused"))
    with pytest.raises(Exception, match=r"5\.7\.1 no"):
        tm.commit()
    tm.abort()
    tm.begin()
    tm.abort()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert_mail_can_be_sent(tm, mailer, server)


def test_repoze_sendmail_35_the_error_that_failed_the_commit_is_the_one_that_is_seen(
    tm, mailer, server, caplog
):
    tm.begin().join(Recorder(BEFORE, fails="commit"))
    mailer.send(letter("mail"))
    with pytest.raises(Failure, match="failed in commit") as caught:
        tm.commit()
    assert caught.value.__context__ is None
    tm.abort()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_repoze_sendmail_35_nothing_is_left_to_fail_in_tpc_finish(tm, mailer, server):
    seen = []
    tm.begin().join(Recorder("0", do={"finish": lambda: seen.extend(subjects(server))}))
    mailer.send(letter("mail"))
    tm.commit()
    assert seen == ["mail"]


@pytest.mark.parametrize("reply", ["450 4.1.1 verification in progress", "421 4.7.0 too many"])
def test_repoze_sendmail_36_after_a_temporary_error_the_same_mail_can_be_sent(
    tm, mailer, server, reply
):
    server.on("MAIL", reply, times=2)
    tm.begin()
    mailer.send(letter("mail"))
    with pytest.raises(Exception, match=reply[4:9]) as caught:
        tm.commit()
    assert caught.value.temporary
    tm.abort()
    server.clear()
    with tm:
        mailer.send(letter("mail"))
    assert subjects(server) == ["mail"]


@pytest.mark.parametrize("phase", ["begin", "commit", "vote"])
def test_transaction_128_abort_is_legal_within_the_two_phase_commit(
    tm, mailer, server, caplog, phase
):
    tm.begin().join(Recorder(BEFORE, fails=phase))
    mailer.send(letter("mail"))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    assert "Error in" not in caplog.text
    assert server.messages == []


def test_the_caller_is_told_what_arrived_when_a_later_message_fails(tm, mailer, server):
    server.on(".", "452 4.3.1 disk full", after=1)
    tm.begin()
    for number in range(3):
        mailer.send(letter(number))
    with pytest.raises(PartialDelivery) as caught:
        tm.commit()
    assert statuses(caught.value.outcomes) == ["accepted", "deferred", "unsent"]
    assert subjects(server) == ["0"]
    tm.abort()
    assert not isinstance(caught.value, transaction.interfaces.TransientError)
