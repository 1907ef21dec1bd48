"""What the two kinds of batch have in common: `own_batch.OwnBatch` and `session.SessionBatch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from ..common.logs import quiet_logger
from ..outcome import Outcome, Scope, Status
from ..submission import KnownOutcomes, StagedSubmission, Submission
from .host import Host
from .sql.publish import CHUNK, Written
from .states import BatchState

log = quiet_logger("txmail.queue")

#: Seconds that `finish` may wait for the database before it goes on in the background.
FINISH_TIMEOUT = 5.0
#: Seconds for what is done in the background.
BACKGROUND_TIMEOUT = 30.0


class Batch:
    """What both kinds of batch have in common."""

    def __init__(self, host: Host, number: int) -> None:
        self._host = host
        self._store = host.store
        self.number = number
        self._rows: dict[Submission, StagedSubmission] = {}
        self._written: Written = {}
        #: True if its row says already that it is to be published
        self._public = False
        #: True if it was to be published before
        self._tried = False
        self._ended = False

    def may_be_committed(self, error: BaseException | None) -> bool:
        """See `IBatch`: nobody else commits what is in a database of its own."""
        return False

    def release(self) -> None:
        """See `IBatch`: its connections are ended where they are used."""

    def _soon(self, write: Callable[[float], object], timeout: float) -> None:
        """End with `write`: now, with its timeout; in the background if that fails."""
        try:
            self._store.database.abandon()
            write(timeout)
            self._ended = True
        except BaseException as error:
            self._later_ended(lambda: write(BACKGROUND_TIMEOUT))
            log.error("batch %x: this is tried again: %s", self.number, error)
            if not isinstance(error, Exception):
                raise

    def _later_ended(self, write: Callable[[], object]) -> None:
        """End with `write` in the background.

        Not before it is to be done does this have its end: an exception may have come before, and
        then whoever ends the transaction asks again.
        """
        self._host.background.do(write)
        self._ended = True
        # What an exception has kept this thread from ending would be waited for there.
        self._store.database.abandon()

    def _count(self) -> int:
        return sum(len(ids) for ids in self._written.values())

    def _begun(self) -> bool:
        return any(row.begun for row in self._rows.values())

    def _wakes(self) -> bool:
        return any(row.submission.options.wake for row in self._rows.values())

    def _outcomes(self, known: KnownOutcomes) -> list[tuple[int, Outcome]]:
        """What became of the deliveries that the transaction has sent itself, with their ids."""
        found: list[tuple[int, Outcome]] = []
        for submission, outcomes in known:
            if submission in self._rows and self._rows[submission].begun:
                found += self._with_ids(submission, outcomes)
        return found

    def _known(self) -> list[tuple[int, Outcome]]:
        """What is known of the others: who was asked to wait is not tried again at once."""
        return [
            (id_, outcome)
            for submission, row in self._rows.items()
            if not row.begun and row.outcomes
            for id_, outcome in self._with_ids(submission, row.outcomes)
            if outcome.status is Status.DEFERRED and outcome.scope is not Scope.ROUTE
        ]

    def _with_ids(
        self, submission: Submission, outcomes: Sequence[Outcome]
    ) -> list[tuple[int, Outcome]]:
        of = {o.recipient: o for o in outcomes}
        ids = zip(self._written[submission], submission.envelope.recipients, strict=True)
        return [(id_, of[recipient]) for id_, recipient in ids if recipient in of]

    def _publish(self, connection: sa.Connection, outcomes: list[tuple[int, Outcome]]) -> bool:
        """Commit to it in the queue; True if some of it is still to be made ready."""
        store = self._store
        now_ms = store.database.now_ms(connection)
        large = self._count() > CHUNK
        again, self._tried = self._tried, True
        if again and self._is_published(connection):
            return large
        outcomes = [*outcomes, *self._known()]
        store.settle(connection, outcomes, now_ms, hold_doubt=self._host.hold_doubt)
        if large:
            decided = self._public or store.change_batch(
                connection, self.number, BatchState.PUBLISHING, now_ms
            )
        else:
            decided = store.publish(connection, self.number, now_ms, keys=self._has_keys())
        if not decided:
            # The resolver has decided as we do, or somebody has thrown it away.
            log.warning("batch %x had been decided about before its process did", self.number)
        return large

    def _is_published(self, connection: sa.Connection) -> bool:
        """Whether an earlier try has done it, whose answer was lost."""
        state = self._store.state(connection, self.number)
        return state is BatchState.PUBLISHED or (
            state is BatchState.PUBLISHING and not self._public
        )

    def _has_keys(self) -> bool:
        return any(
            row.submission.options.idempotency_key is not None for row in self._rows.values()
        )

    def _settle_aborted(
        self, connection: sa.Connection, outcomes: list[tuple[int, Outcome]]
    ) -> None:
        """Keep what is out in spite of the abort; nothing of it is sent again."""
        store = self._store
        now_ms = store.database.now_ms(connection)
        store.settle(connection, outcomes, now_ms, hold_doubt=True)
        store.cancel_rest(connection, self.number, now_ms, "its transaction was aborted")
        store.change_batch(
            connection, self.number, BatchState.DISCARDED, now_ms, "its transaction was aborted"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What there is to be done to have other rows than before."""

    new: list[StagedSubmission]
    gone: list[Submission]
    #: rows that their transaction sends itself now and did not before, or the other way round
    other: list[StagedSubmission]

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.other)

    @classmethod
    def between(
        cls, old: dict[Submission, StagedSubmission], rows: dict[Submission, StagedSubmission]
    ) -> Change:
        """From `old` to `rows`."""
        return cls(
            [row for submission, row in rows.items() if submission not in old],
            [submission for submission in old if submission not in rows],
            [
                row
                for submission, row in rows.items()
                if submission in old and old[submission].begun != row.begun
            ],
        )


def sent(outcomes: list[tuple[int, Outcome]]) -> list[tuple[int, Outcome]]:
    """Those of `outcomes` that nobody can take back: what is out, or may be."""
    return [(i, o) for i, o in outcomes if o.status in (Status.ACCEPTED, Status.IN_DOUBT)]
