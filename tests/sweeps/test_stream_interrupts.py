"""A stream is interrupted at every line of the client: nothing more leaves, and nobody is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from accounts import check_outcome
from clocks import Clock
from commits import note
from fuzzing import OFFERS, FakeStream, Hostile, Move
from interrupting import may_raise
from smtp_helpers import statuses
from thin import one_in

import txmail.smtp
from txmail.outcome import Status
from txmail.smtp.options import Options
from txmail.smtp.session import Session

FOLDER = str(Path(txmail.smtp.__file__).parent)
NO_SUCH_USER = Move(said=b"550 5.1.1 no such user\r\n")
SPAM = Move(said=b"554 5.7.1 spam\r\n")
RIGHT = Move()


def envelopes():
    """Of one recipient, of two, and one with content that cannot be sent."""
    found = [note(f"n{number}") for number in range(4)]
    found.insert(1, note("pair", recipients=["a@example.net", "b@example.net"]))
    found.insert(3, note("bad", body=b"bare\nLF\r\n"))
    return found


#: what goes wrong beside the interrupt, by the moves of the server after EHLO
FAULTS = {
    "nothing": [],
    "a recipient": [RIGHT] * 2 + [NO_SUCH_USER],
    "a message": [RIGHT] * 3 + [SPAM],
    "a message behind": [RIGHT] * 16 + [SPAM],
    "BDAT": [RIGHT] * 3 + [Move(said=b"502 5.5.1 what?\r\n")],
    "the connection": [RIGHT] * 9 + [Move(said=b"421 4.3.2 bye\r\n", end="eof")],
}


class Interrupting:
    """Raises KeyboardInterrupt before line number `at` of the client, or the next that can."""

    def __init__(self, at):
        self._left = at
        self.done = False

    def __enter__(self):
        self._previous = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_):
        sys.settrace(self._previous)

    def _called(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(FOLDER) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self._left -= 1
            if self._left <= 0 and not self.done and may_raise(frame):
                self.done = True
                raise KeyboardInterrupt
        return self._line


class Interrupted:
    """One call of `send` that is interrupted, and what is known of it after."""

    def __init__(self, at, moves, *, leave, strict):
        clock = Clock(0.0)
        self.peer = Hostile(iter([RIGHT, RIGHT, *moves]), OFFERS)
        # It takes so many octets at a time that much is only half on its way.
        self.stream = FakeStream(self.peer, clock, lambda octets: min(octets, 200))
        options = Options("mx.example.com", local_hostname="client.example", window=3)
        self.session = Session(self.stream, options, clock)
        self.session.greet(10)
        self.envelopes = envelopes()
        self.taken = 0
        found = []
        interrupting = Interrupting(at)
        with interrupting:
            try:
                for outcome in self.session.send(self._source(), keep_untaken=leave, strict=strict):
                    found.append(outcome)
            except KeyboardInterrupt:
                pass
        self.done = interrupting.done
        self.heard = self.peer.heard
        self.outcomes = {}
        for outcome in (*found, *self.session.unsettled()):
            self.outcomes.setdefault((outcome.position, outcome.recipient), outcome)

    def _source(self):
        for envelope in self.envelopes:
            self.taken += 1
            yield envelope

    def check(self):
        deliveries = list(self.peer.deliveries())
        lost = []
        for position, envelope in enumerate(self.envelopes[: self.taken]):
            of_it = [d for d in deliveries if d.content == envelope.content]
            for recipient, path in zip(envelope.recipients, envelope.forward_paths, strict=True):
                outcome = self.outcomes.pop((position, recipient), None)
                if outcome is None:
                    lost.append(envelope)
                elif outcome.status == "in_doubt":
                    # A write, or a look at what was said, may have been one that never was.
                    assert len([d for d in of_it if not d.unknown]) <= 1
                else:
                    check_outcome(outcome, path, [d for d in of_it if not d.unknown])
                    assert outcome.message_id == envelope.message_id
        assert not self.outcomes
        # Of one that was just being looked at nothing may be known; nothing of it has left.
        assert len(set(lost)) <= 1
        assert not [e for e in lost if self.peer.heard_of(e.reverse_path)]
        self.session.close()
        # Of an open connection all that there is to say now is QUIT.
        assert self.peer.heard - self.heard in (0, len(b"QUIT\r\n"))


@pytest.mark.representative(every=7)
@pytest.mark.parametrize(
    ("fault", "leave", "strict"),
    [(fault, True, False) for fault in FAULTS] + [("the connection", False, True)],
)
def test_whatever_line_is_interrupted_everybody_taken_has_a_right_outcome(fault, leave, strict):
    seen = set()
    at = 0
    while True:
        at += one_in(4)
        interrupted = Interrupted(at, FAULTS[fault], leave=leave, strict=strict)
        seen.update(statuses(interrupted.outcomes.values()))
        interrupted.check()
        if not interrupted.done:
            break
    assert at > 500
    assert {"in_doubt", "unsent", "deferred"} <= seen


@pytest.mark.parametrize("after", range(1, 8))
def test_closing_the_iterator_lets_nothing_more_leave(after):
    clock = Clock(0.0)
    peer = Hostile(iter([]), OFFERS)
    options = Options("mx.example.com", local_hostname="client.example", window=3)
    session = Session(FakeStream(peer, clock, lambda octets: min(octets, 100)), options, clock)
    session.greet(10)
    sent = [note(f"n{number}", body=b"x" * 150 + b"\r\n") for number in range(9)]
    left = iter(sent)
    sending = session.send(left, keep_untaken=True)
    found = [next(sending) for _ in range(after)]
    heard = peer.heard
    sending.close()
    assert session.closed
    assert statuses(found) == ["accepted"] * after
    first_of_rest, *rest = session.unsettled()
    assert first_of_rest == found[-1]
    assert [o.position for o in rest] == list(range(after, len(sent) - len(list(left))))
    assert 0 < len(rest) <= 3
    assert peer.heard == heard
    for outcome in (*found, *rest):
        envelope = sent[outcome.position]
        of_it = [d for d in peer.deliveries() if d.content == envelope.content]
        check_outcome(outcome, envelope.forward_paths[0], of_it)
    assert {o.status for o in rest} <= {
        Status.ACCEPTED,
        Status.IN_DOUBT,
        Status.DEFERRED,
        Status.UNSENT,
    }
