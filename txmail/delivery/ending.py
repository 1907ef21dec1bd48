"""How a transaction has ended, and what that makes of the outcomes of its mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..interfaces import IDeliveryMethod
from ..outcome import Action, Outcome, Status

#: Why the queue has nothing of a transaction's mail.
NOT_COMMITTED = "not queued: the transaction failed"
#: The same, if the transaction failed after our vote.
NOT_KNOWN = "the transaction failed after our vote: the queue finds out whether it has committed"
#: The same, if the queue is in a database that commits in its own vote, before ours.
MAYBE_COMMITTED = (
    "the transaction failed, and its database may have committed, with the queue in it"
)
#: Why an outcome is in doubt although no server was asked.
PERHAPS_QUEUED = "the queue may have it: the reply to its COMMIT was lost"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a transaction has ended, as far as its `MailDataManager` knows."""

    #: why no queue has the mail; empty if the transaction commits
    failure: str = ""
    #: True if the database of the application may have committed all the same
    database_may_have_committed: bool = False
    #: True if the reply to the COMMIT was lost that published the mail in its queue
    publication_in_doubt: bool = False

    def of(self, method: IDeliveryMethod, outcomes: list[Outcome]) -> list[Outcome]:
        """The outcomes of one submission for `method`; `outcomes` if the transaction commits."""
        if not self.failure:
            return outcomes
        queue = method.queue
        if self.database_may_have_committed and queue is not None and queue.in_session:
            outcomes = _maybe_committed(outcomes)
        else:
            outcomes = _not_queued(outcomes, self.failure)
        if self.publication_in_doubt and queue is not None:
            outcomes = _perhaps_queued(outcomes)
        return outcomes


#: The transaction commits.
COMMITTED = Ending()


def _not_queued(outcomes: Sequence[Outcome], reason: str) -> list[Outcome]:
    return [
        replace(o, queued=False, reason=o.reason or ("" if o.reply else reason)) if o.queued else o
        for o in outcomes
    ]


def _maybe_committed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [
        replace(o, queued=False, reason=MAYBE_COMMITTED)
        if o.status is Status.UNSENT and o.reply is None
        else replace(o, queued=False)
        for o in outcomes
    ]


def _perhaps_queued(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [
        o
        if o.status is Status.ACCEPTED
        else replace(
            o, status=Status.IN_DOUBT, action=Action.IN_DOUBT, queued=False, reason=PERHAPS_QUEUED
        )
        for o in outcomes
    ]
