"""The base of the two kinds of batch: `own_batch.OwnBatch` and `session.SessionBatch`."""

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

#: Seconds that `finish` waits for the database before it goes on in the background.
FINISH_TIMEOUT = 5.0
#: Seconds that a transaction in the background waits for the database.
BACKGROUND_TIMEOUT = 30.0


class Batch:
    """The base of both kinds of batch; see `IBatch`."""

    def __init__(self, host: Host, number: int) -> None:
        self._host = host
        self._store = host.store
        self.number = number
        self._rows: dict[Submission, StagedSubmission] = {}
        self._written: Written = {}
        #: true if its row says ``publishing`` from the start
        self._public = False
        #: true if `_publish` was called before
        self._tried = False
        self._ended = False

    def may_be_committed(self, error: BaseException | None) -> bool:
        """See `IBatch`: no other data manager commits a database of the queue's own."""
        return False

    def release(self) -> None:
        """See `IBatch`: each method ends the connections that it uses."""

    def _soon(self, write: Callable[[float], object], timeout: float) -> None:
        """End with `write`: now, within `timeout` seconds, or in the background if that fails."""
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

        The batch counts as ended once the task is handed over: if an exception comes before that,
        the data manager calls again.
        """
        self._host.background.do(write)
        self._ended = True
        # The background would wait for a transaction that an exception left open in this thread.
        self._store.database.abandon()

    def _count(self) -> int:
        return sum(len(ids) for ids in self._written.values())

    def _begun(self) -> bool:
        return any(row.begun for row in self._rows.values())

    def _wakes(self) -> bool:
        return any(row.submission.options.wake for row in self._rows.values())

    def _outcomes(self, known: KnownOutcomes) -> list[tuple[int, Outcome]]:
        """The outcomes of deliveries that the transaction has sent itself, by their ids."""
        found: list[tuple[int, Outcome]] = []
        for submission, outcomes in known:
            if submission in self._rows and self._rows[submission].begun:
                found += self._with_ids(submission, outcomes)
        return found

    def _known(self) -> list[tuple[int, Outcome]]:
        """The outcomes that defer other deliveries: these are not tried again at once."""
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
        """Write that the batch has committed; True if some of it still has to be made ready."""
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
            # The resolver has published it, or a person has thrown it away.
            log.warning(
                "batch %x: the resolver or a person had decided about it before",
                self.number,
            )
        return large

    def _is_published(self, connection: sa.Connection) -> bool:
        """Whether an earlier try has published it, and only its answer was lost."""
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
        """Keep deliveries that are out in spite of the abort; none of them is sent again."""
        store = self._store
        now_ms = store.database.now_ms(connection)
        store.settle(connection, outcomes, now_ms, hold_doubt=True)
        store.cancel_rest(connection, self.number, now_ms, "its transaction was aborted")
        store.change_batch(
            connection, self.number, BatchState.DISCARDED, now_ms, "its transaction was aborted"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between the rows that are written and those that should be."""

    new: list[StagedSubmission]
    gone: list[Submission]
    #: rows whose `begun` has changed
    other: list[StagedSubmission]

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.other)

    @classmethod
    def between(
        cls, old: dict[Submission, StagedSubmission], rows: dict[Submission, StagedSubmission]
    ) -> Change:
        """The change from `old` to `rows`."""
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
    """The outcomes of messages that are out, or may be: nobody can take these back."""
    return [(i, o) for i, o in outcomes if o.status in (Status.ACCEPTED, Status.IN_DOUBT)]
