"""One transaction's mail in a queue with a database of its own.

=============  =====================================================================
`stage`        commits the rows as staged, before other databases take their locks
`decide`       writes that the transaction commits, if no other data manager takes part
`finish`       writes the outcomes of mail that was sent, and makes the rest ready
`revoke`       takes back what `decide` wrote, when the vote has failed after it
`abort`        deletes the rows, in the background
=============  =====================================================================

If the process dies between `stage` and the end, `txmail.queue.recovery` asks the witnesses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from zope.interface import implementer

from ..common.logs import quiet_logger
from ..interfaces import IBatch, IWitness
from ..outcome import Outcome, Status
from ..submission import KnownOutcomes, StagedSubmission
from .batch import BACKGROUND_TIMEOUT, FINISH_TIMEOUT, Batch, Change, sent
from .commit_check import commit_surely
from .host import Host
from .schema import batch
from .sql.dead import noted_process
from .states import BatchState, State
from .witnesses import Witnesses

log = quiet_logger("txmail.queue")


@implementer(IBatch)
class OwnBatch(Batch):
    """See `IBatch`; made by `Queue.begin`."""

    def __init__(
        self,
        host: Host,
        number: int,
        told: Sequence[IWitness],
        witnesses: Witnesses,
        transaction: Any,
        transaction_manager: Any,
    ) -> None:
        """`told` are the witnesses whose `begin` was called."""
        super().__init__(host, number)
        self._told = list(told)
        self._witnesses = witnesses
        self._transaction = transaction
        self._transaction_manager = transaction_manager
        #: the notes of the witnesses, and the sort keys of all data managers
        self._notes: dict[str, Any] = {}
        self._others: set[str] = set()
        self._stored = False
        #: the store that holds the rows
        self._where: object = None
        #: true if a write failed, so that the rows in the database are not known
        self._unsure = False
        self._published = False
        #: true once `decide` has written that the transaction commits
        self._decided = False

    def stage(
        self,
        rows: Sequence[StagedSubmission],
        resources: list[Any],
        timeout: float,
        late: bool = False,
    ) -> None:
        """See `IBatch`."""
        if not rows and not self._rows:
            return
        others = {str(resource.sortKey()) for resource in resources}
        wanted = {row.submission: row for row in rows}
        change = Change.between(self._rows, wanted)
        if not (change or self._unsure or others - self._others):
            return
        if not late:
            self._notes = self._noted(resources)
        self._others |= others
        self._host.opened(self.number)
        again = self._unsure
        try:
            with self._store.database.write(timeout=timeout) as connection:
                self._unsure = True  # not earlier: a transaction that cannot begin writes nothing
                if again or self._is_elsewhere():
                    self._store.discard(connection, self.number)
                    change, again = Change.between({}, wanted), True
                self._write(connection, change, first=again or not self._stored)
                self._where = self._store.database.store
        except BaseException:
            self._host.unbeaten()
            raise
        self._unsure, self._stored = False, True
        self._rows = wanted

    def _is_elsewhere(self) -> bool:
        """True if another file has taken the place of the store since the rows were written."""
        return self._stored and self._store.database.store != self._where

    def _restore(self, connection: sa.Connection) -> None:
        """Write the rows again if they were in a file that is gone."""
        if not self._is_elsewhere():
            return
        there = sa.select(batch.c.id).where(batch.c.id == self.number)
        if connection.scalar(there) is None:
            log.error("batch %x was in a file that is gone, and is written again", self.number)
            rows = Change.between({}, self._rows)
            self._host.unbeaten()
            self._write(connection, rows, first=True)

    def _noted(self, resources: list[Any]) -> dict[str, Any]:
        """The notes of all witnesses that take part, by their names."""
        if self._transaction is not None:
            every = self._witnesses.of(resources)
            self._told += [each for each in every if each not in self._told]
        found = {}
        for witness in self._told:
            noted = witness.note(self._transaction, self._transaction_manager, self.number)
            if noted is not None:
                found[witness.name] = noted
        return found

    def _write(self, connection: sa.Connection, change: Change, first: bool) -> None:
        store = self._store
        now_ms = store.database.now_ms(connection)
        noted = json.dumps(
            {"witnesses": self._notes, "others": sorted(self._others), **noted_process()}
        )
        if first:
            self._written = {}
            self._host.beat(connection, now_ms)
            store.open_batch(connection, self.number, BatchState.STAGED, noted, now_ms)
        else:
            store.note(connection, self.number, noted, now_ms)
        for submission in change.gone:
            store.remove(connection, self._written.pop(submission))
        for row in change.other:
            store.mark_begun(connection, self._written[row.submission], row.begun)
        if change.new:
            count = sum(len(row.submission.envelope.recipients) for row in change.new)
            self._host.check_room(connection, count)
            self._written |= store.insert(connection, self.number, change.new, State.STAGED, now_ms)

    def decide(self, last: bool, timeout: float) -> None:
        """See `IBatch`."""
        if not self._rows or self._decided:
            return
        if last and not self._begun():
            self._publish_now(timeout)
        elif last or not self._begun() or self._count() > 1:
            # A single delivery is out or is not, if this process dies; several could be torn apart.
            self._decided = True
            commit_surely(self._store, self.number, self._decide_to_send, timeout)

    def _decide_to_send(self, connection: sa.Connection) -> None:
        now_ms = self._store.database.now_ms(connection)
        self._store.change_batch(connection, self.number, BatchState.SENDING, now_ms)

    def _publish_now(self, timeout: float) -> None:
        self._decided = True  # before: the commit may succeed and only its answer be lost
        more = commit_surely(self._store, self.number, self._publish_first, timeout)
        self._published = True
        self._made_public(more)

    def _publish_first(self, connection: sa.Connection) -> bool:
        self._restore(connection)
        more = self._publish(connection, [])
        self._announce(connection)
        return more

    def revoke(self, known: KnownOutcomes, timeout: float) -> None:
        """See `IBatch`."""
        if self._decided and not self._ended:
            out = sent(self._outcomes(known))
            self._soon(lambda seconds: self._forget(out, seconds), timeout)

    def finish(self, known: KnownOutcomes) -> None:
        """See `IBatch`."""
        if self._ended:
            return
        if not self._rows:
            self.abort(known)
            return
        if self._published:
            self._close()
            self._ended = True
            return
        self._soon(lambda seconds: self._finish(known, seconds), FINISH_TIMEOUT)

    def _finish(self, known: KnownOutcomes, timeout: float) -> None:
        outcomes = self._outcomes(known)
        # An outcome alone may be lost when the machine loses power: the delivery is in doubt then.
        durable = any(not row.begun for row in self._rows.values()) or any(
            outcome.status is not Status.ACCEPTED for _, outcome in outcomes
        )
        with self._store.database.write(timeout=timeout, durable=durable) as connection:
            self._restore(connection)
            more = self._publish(connection, self._outcomes(known))
            self._announce(connection)
        self._close()
        self._made_public(more)

    def _announce(self, connection: sa.Connection) -> None:
        if self._wakes():
            self._host.notifier.announce(connection)

    def _made_public(self, more: bool) -> None:
        if more:
            self._host.promote_later(self.number)
        if self._wakes():
            self._host.notifier.wake()

    def abort(self, known: KnownOutcomes) -> None:
        """See `IBatch`."""
        if self._ended:
            return
        if not (self._stored or self._unsure):
            self._host.closed(self.number)
            return
        out = sent(self._outcomes(known))
        self._later_ended(lambda: self._forget(out, BACKGROUND_TIMEOUT))

    def _forget(self, out: list[tuple[int, Outcome]], timeout: float) -> None:
        durable = bool(out) or self._decided
        kept = False
        with self._store.database.write(timeout=timeout, durable=durable) as connection:
            if out:
                self._settle_aborted(connection, out)
            elif self._decided:
                now_ms = self._store.database.now_ms(connection)
                self._store.take_back(connection, self.number)
                kept = self._store.explain_kept(connection, self.number, now_ms)
            else:
                self._store.discard(connection, self.number)
        if kept:
            log.error(
                "batch %x: some of the mail of a transaction that failed is sent", self.number
            )
        self._close()

    def mark_unknown(self, known: KnownOutcomes) -> None:
        """See `IBatch`."""
        if self._ended:
            return
        if not self._rows:
            self.abort(known)
            return
        outcomes = self._outcomes(known)
        self._later_ended(lambda: self._mark_unknown(outcomes))

    def _mark_unknown(self, outcomes: list[tuple[int, Outcome]]) -> None:
        # A delivery in doubt stays begun, as long as nobody has decided about the batch.
        accepted = [(i, o) for i, o in outcomes if o.status is Status.ACCEPTED]
        out = {id_ for id_, _ in sent(outcomes)}
        self._host.abandon(self.number, accepted, [i for i, _ in outcomes if i not in out])

    def _close(self) -> None:
        self._host.closed(self.number)
        self._transaction = self._transaction_manager = None
