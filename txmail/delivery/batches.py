"""The batches of one transaction: one for each queue that its mail may go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..budget import Budget
from ..interfaces import IBatch, IQueue
from ..submission import KnownOutcomes, StagedSubmission


class Batches:
    """All calls of `IBatch` s of a transaction, within its budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._open: dict[IQueue, IBatch] = {}
        #: ended; may have something open when everybody was told that the transaction has failed
        self._unreleased: list[IBatch] = []

    def open(self, queue: IQueue, transaction: Any, transaction_manager: Any) -> None:
        """Begin the batch of `queue`, unless there is one."""
        if queue not in self._open:
            self._open[queue] = queue.begin(transaction, transaction_manager)

    def __len__(self) -> int:
        return len(self._open)

    def stage(
        self,
        staged: Mapping[IQueue, Sequence[StagedSubmission]],
        resources: list[Any],
        *,
        late: bool,
    ) -> None:
        """Have the queues hold `staged`, so that it survives a crash. See `IBatch.stage`."""
        with self._budget:
            for queue, batch in self._open.items():
                batch.stage(staged.get(queue, []), resources, self._budget.remaining, late)

    def decide(self, last: bool) -> None:
        """See `IBatch.decide`."""
        with self._budget:
            for batch in self._open.values():
                batch.decide(last, self._budget.remaining)

    def revoke(self, known: KnownOutcomes) -> None:
        """See `IBatch.revoke`."""
        with self._budget:
            for batch in self._open.values():
                batch.revoke(known, self._budget.remaining)

    def finish(self, known: KnownOutcomes) -> None:
        """See `IBatch.finish`."""
        for batch in self._open.values():
            batch.finish(known)

    def mark_unknown(self, known: KnownOutcomes) -> None:
        """See `IBatch.mark_unknown`."""
        for batch in self._open.values():
            batch.mark_unknown(known)

    def abort(self, known: KnownOutcomes) -> None:
        """See `IBatch.abort`."""
        for batch in self._open.values():
            batch.abort(known)

    def may_be_committed(self, error: BaseException | None) -> bool:
        """True if any may be. See `IBatch.may_be_committed`."""
        return any(batch.may_be_committed(error) for batch in self._open.values())

    def forget(self) -> None:
        """All have ended."""
        self._unreleased += self._open.values()
        self._open.clear()

    def release(self, *, end: bool) -> None:
        """Everybody knows how it ended: `end` what batches have left open. See `IBatch.release`."""
        while self._unreleased:
            batch = self._unreleased.pop()
            if end:
                batch.release()
