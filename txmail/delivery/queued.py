"""Queued delivery: a commit leaves all mail to the queue."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from zope.interface import implementer

from ..budget import COMMIT_TIMEOUT, Budget
from ..events import Events
from ..exceptions import ConfigurationError
from ..interfaces import IDeliveryMethod, IDeliveryRun, IQueue
from ..outcome import Action, Outcome, Scope, Status
from ..submission import StagedSubmission, Submission


def check_timeout(commit_timeout: float) -> None:
    """Raise `ConfigurationError` unless it is a number of seconds above 0."""
    if not isinstance(commit_timeout, (int, float)) or not commit_timeout > 0:
        raise ConfigurationError("seconds above 0 are needed", field="commit_timeout")


def placed(outcomes: Iterable[list[Outcome]]) -> Iterator[Outcome]:
    """The outcomes of one submission after the other, with its position."""
    for position, found in enumerate(outcomes):
        for outcome in found:
            yield replace(outcome, position=position)


def waiting(submission: Submission, position: int = 0) -> list[Outcome]:
    """Outcomes of a submission that the queue sends later."""
    return [
        Outcome(
            recipient,
            Status.UNSENT,
            Scope.MESSAGE,
            message_id=submission.envelope.message_id,
            action=Action.DEFER,
            preflighted=False,
            position=position,
            queued=True,
        )
        for recipient in submission.envelope.recipients
    ]


@implementer(IDeliveryMethod)
class QueuedDelivery:
    """Leaves all mail to the queue. See `IDeliveryMethod`."""

    #: see `IDeliveryMethod`
    is_missed_unsent = True

    def __init__(
        self,
        queue: IQueue,
        *,
        events: Events | None = None,
        transient: bool = False,
        commit_timeout: float = COMMIT_TIMEOUT,
    ) -> None:
        """Options are those of `DirectDelivery`. Raises `ConfigurationError`."""
        if not IQueue.providedBy(queue):
            raise ConfigurationError("an IQueue is needed", field="queue", value=queue)
        check_timeout(commit_timeout)
        self.queue = queue
        self.events = events if events is not None else Events()
        self.transient = transient
        self.commit_timeout = commit_timeout

    @property
    def route(self) -> str:
        """See `IDeliveryMethod`."""
        return str(self.queue.name)

    def begin(self, budget: Budget, first: bool = True) -> IDeliveryRun:
        """See `IDeliveryMethod`."""
        return QueuedRun()


@implementer(IDeliveryRun)
class QueuedRun:
    """One transaction's mail for the queue. See `IDeliveryRun`."""

    sends = False

    def __init__(self) -> None:
        self._items: list[Submission] = []
        self._outcomes: list[Outcome] = []

    def prepare(self, submissions: Sequence[Submission], wait: bool) -> list[Outcome]:
        """See `IDeliveryRun`: nothing is refused here.

        It makes the outcomes now, because other databases hold their locks later.
        """
        if self._items != submissions:
            self._items = list(submissions)
            self._outcomes = [
                outcome
                for position, submission in enumerate(submissions)
                for outcome in waiting(submission, position)
            ]
        return []

    def to_stage(self, submissions: Sequence[Submission]) -> list[StagedSubmission]:
        """See `IDeliveryRun`."""
        return [StagedSubmission(submission) for submission in submissions]

    def send(self, submissions: Sequence[Submission]) -> Generator[Outcome, None, None]:
        """See `IDeliveryRun`: it waits in the queue."""
        yield from self._outcomes

    def unsettled(self) -> list[Outcome]:
        """See `IDeliveryRun`: nothing is sent here, whatever has ended `send`."""
        return self._outcomes

    def goes_on(self, outcomes: Sequence[Outcome]) -> bool:
        """See `IDeliveryRun`: the outcomes say it themselves."""
        return False

    def finish(self) -> None:
        """See `IDeliveryRun`."""

    def abort(self) -> None:
        """See `IDeliveryRun`."""
