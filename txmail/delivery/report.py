"""The report of one commit: what became of each submission, noted once, as it comes.

The data manager adds submissions, and has delivery methods send them. The report notes each outcome
when it comes. Everything else is derived from these notes when it is needed: what the queues write,
what mailers have as `last_outcomes`, the error of the commit, notes, events and log lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..envelope import Envelope
from ..interfaces import IDeliveryMethod, IDeliveryRun
from ..outcome import Outcome, Status
from ..submission import Listener, Submission
from .ending import Ending
from .implied_outcomes import all_or_nothing, in_doubt, left_to_queue, unsent

#: See `KnownOutcomes`.
_Known = list[tuple[Submission, list[Outcome]]]


@dataclass(frozen=True, slots=True, eq=False)
class BufferedSubmission:
    """A submission that waits for the commit, its delivery method, and its mailer's listener."""

    method: IDeliveryMethod
    submission: Submission
    listener: Listener


class Line(NamedTuple):
    """One submission and what has become of it: an outcome for each recipient."""

    buffered: BufferedSubmission
    outcomes: list[Outcome]


class CommitReport:
    """What is known of the mail of one transaction."""

    def __init__(self) -> None:
        #: in call order; savepoints hold this list, and truncate it
        self.buffered: list[BufferedSubmission] = []
        #: of the present commit, by delivery method
        self._notes: list[_Notes] = []

    # -- noting

    def begin(self) -> None:
        """A commit begins: forget what a failed one before it has noted."""
        self._notes.clear()

    def refuse(self, submissions: Sequence[Submission], refusals: Sequence[Outcome]) -> None:
        """Note `refusals`: they keep `submissions` and all others from being sent."""
        envelopes = [submission.envelope for submission in submissions]
        self._notes = [_Notes(submissions, list(all_or_nothing(envelopes, refusals)))]

    def send(self, run: IDeliveryRun, submissions: Sequence[Submission]) -> bool:
        """Have `run` send `submissions`; note their outcomes. True if they permit a commit."""
        notes = _Notes(submissions)
        self._notes.append(notes)
        notes.collect(run)
        return _permits(notes.known())

    def forget(self) -> None:
        """The transaction is over."""
        self.buffered.clear()
        self._notes.clear()

    # -- asking

    def by_method(self) -> dict[IDeliveryMethod, list[Submission]]:
        """The submissions of each delivery method, in call order."""
        found: dict[IDeliveryMethod, list[Submission]] = {}
        for each in self.buffered:
            found.setdefault(each.method, []).append(each.submission)
        return found

    def known(self) -> _Known:
        """What is known of the submissions that were refused, or that sending has begun with."""
        return [pair for notes in self._notes for pair in notes.known()]

    def lines(self, ending: Ending) -> list[Line]:
        """Every submission in call order, with what has become of it after that `ending`."""
        known = dict(self.known())
        return [
            Line(
                each,
                ending.of(
                    each.method, known.get(each.submission) or unsent(each.submission.envelope)
                ),
            )
            for each in self.buffered
        ]

    def permits_commit(self) -> bool:
        """True if every recipient of every submission was accepted, or the queue has it."""
        known = self.known()
        return _permits(known) and len(known) == len(self.buffered)

    def is_left_to_queue(self) -> bool:
        """True if nothing of what was begun is out, and the queue has it all."""
        return all(
            o.queued and o.status not in (Status.ACCEPTED, Status.IN_DOUBT)
            for _, outcomes in self.known()
            for o in outcomes
        )


@dataclass(slots=True, eq=False)
class _Notes:
    """What one delivery method has said of its submissions.

    Once sending has begun, a recipient without an outcome is in doubt. An exception can end sending
    at any moment, also one from a signal.
    """

    submissions: Sequence[Submission]
    #: as they came, by the positions of the submissions; the first of a recipient counts
    outcomes: list[Outcome] = field(default_factory=list)
    #: True from the moment when something may leave
    begun: bool = False
    #: True if the queue goes on with what was not accepted
    queue_goes_on: bool = False
    #: what `known` returns once all outcomes are noted
    final: _Known | None = None

    def collect(self, run: IDeliveryRun) -> None:
        """Have `run` send; note all outcomes, also if an exception ends it."""
        self.begun = True
        coming = run.send(self.submissions)
        try:
            self.outcomes.extend(coming)
            self.queue_goes_on = run.goes_on(self.outcomes)
        except BaseException:
            coming.close()
            self.outcomes.extend(run.unsettled())
            raise
        self.final = self.known()

    def known(self) -> _Known:
        """Each submission with an outcome for each recipient."""
        if self.final is not None:
            return self.final
        found = by_submission(self.submissions, self.outcomes, in_doubt if self.begun else unsent)
        return [(s, left_to_queue(said)) for s, said in found] if self.queue_goes_on else found


def by_submission(
    submissions: Sequence[Submission],
    outcomes: Iterable[Outcome],
    rest: Callable[[Envelope], list[Outcome]] = unsent,
) -> _Known:
    """The outcomes of each submission: the first that was said of a recipient, or that of `rest`.

    `Outcome.position` says which of the submissions an outcome is about.
    """
    said: list[dict[str, Outcome]] = [{} for _ in submissions]
    for outcome in outcomes:
        said[outcome.position].setdefault(outcome.recipient, outcome)
    return [
        (submission, _complete(submission.envelope, found, rest))
        for submission, found in zip(submissions, said, strict=True)
    ]


def _complete(
    envelope: Envelope, said: dict[str, Outcome], rest: Callable[[Envelope], list[Outcome]]
) -> list[Outcome]:
    if len(said) == len(envelope.recipients):
        return [said[recipient] for recipient in envelope.recipients]
    return [said.get(o.recipient, o) for o in rest(envelope)]


def _permits(known: _Known) -> bool:
    return all(o.permits_commit for _, outcomes in known for o in outcomes)
