"""The runs of one transaction: one for each delivery method that has mail in it."""

from __future__ import annotations

from ..budget import Budget
from ..interfaces import IDeliveryMethod, IDeliveryRun


class Runs:
    """All `IDeliveryRun` s of a transaction, which share its budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._runs: dict[IDeliveryMethod, IDeliveryRun] = {}

    def of(self, method: IDeliveryMethod) -> IDeliveryRun:
        """The run of `method`, begun now if there is none."""
        run = self._runs.get(method)
        if run is None:
            self._budget.limit(method.commit_timeout)
            run = self._runs[method] = method.begin(self._budget, first=not self._runs)
        return run

    @property
    def send(self) -> bool:
        """True if any of them sends something itself."""
        return any(run.sends for run in self._runs.values())

    @property
    def queueing(self) -> list[IDeliveryMethod]:
        """The methods that leave all to the queue."""
        return [method for method, run in self._runs.items() if not run.sends]

    def finish(self) -> None:
        """Give all connections back after a commit."""
        for run in self._runs.values():
            run.finish()

    def abort(self) -> None:
        """Give all connections back, perhaps with a mail transaction open on them."""
        for run in self._runs.values():
            run.abort()
        self._runs.clear()

    def forget(self) -> None:
        """All have ended."""
        self._runs.clear()
