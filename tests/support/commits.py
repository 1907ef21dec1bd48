"""One commit with mail, what it came to, and whether that agrees with the server."""

from __future__ import annotations

from dataclasses import dataclass

from txmail import Envelope, Outcome
from txmail.exceptions import DeliveryError, DeliveryRefused, DeliveryUnavailable, PartialDelivery


def note(name, body=b"Hello.\r\n", recipients=None, sender=None):
    """An envelope that passes the gate; sender and content are `name`'s and nobody else's."""
    head = f"From: {name}@example.com\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n"
    head += f"Message-ID: <{name}@example.com>\r\n\r\n"
    sender = sender or f"{name}@example.com"
    return Envelope(sender, recipients or [f"{name}@example.net"], head.encode() + body)


class Witness:
    """A data manager that can say whether its transaction committed."""

    def __init__(self):
        self.end = None

    def sortKey(self):
        return "a database"

    def tpc_begin(self, transaction):
        pass

    commit = tpc_vote = tpc_begin

    def tpc_finish(self, transaction):
        self.end = "committed"

    def abort(self, transaction):
        self.end = "aborted"

    tpc_abort = abort


@dataclass
class Ended:
    """What a commit came to."""

    error: DeliveryError | None
    outcomes: tuple[Outcome, ...]
    witness: str

    @property
    def statuses(self):
        return [str(outcome.status) for outcome in self.outcomes]


def commit(tm, mailer, *envelopes):
    """One transaction with `envelopes`. Lets through what is no `DeliveryError`."""
    witness, error = Witness(), None
    tm.begin().join(witness)
    for envelope in envelopes:
        mailer.send(envelope)
    try:
        tm.commit()
    except DeliveryError as raised:
        error = raised
        tm.abort()
        assert error.outcomes == mailer.last_outcomes
    return Ended(error, mailer.last_outcomes, witness.end)


def check_error(ended):
    """The commit failed if and only if not all was accepted, with the error that says so."""
    statuses = set(ended.statuses)
    assert statuses
    if statuses == {"accepted"}:
        assert ended.error is None
        assert ended.witness == "committed"
        return
    assert ended.witness == "aborted"
    if statuses & {"accepted", "in_doubt"}:
        assert type(ended.error) is PartialDelivery
    elif "failed" in statuses:
        assert type(ended.error) is DeliveryRefused
    else:
        assert type(ended.error) is DeliveryUnavailable


def check_held(ended, messages):
    """A server holds `messages`: what was accepted, once, and perhaps what is in doubt."""
    held = [(m.sender.partition("@")[0], r) for m in messages for r in m.recipients]
    names = [(o.message_id[1:].partition("@")[0], o) for o in ended.outcomes]
    for name, outcome in names:
        times = held.count((name, outcome.recipient))
        allowed = {"accepted": [1], "in_doubt": [0, 1]}.get(outcome.status, [0])
        assert times in allowed, f"{outcome}, and the server has it {times} times"
    assert len(held) == sum(held.count((name, o.recipient)) for name, o in names)
