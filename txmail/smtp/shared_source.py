"""Shares the envelopes of one call between several connections. No I/O."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from ..envelope import Envelope
from ..outcome import Action, Outcome, Status
from . import failure_policy
from .failure_policy import Verdict
from .source import Source


class SharedSource(Source):
    """The envelopes that are left to send, and those that connections have taken."""

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        super().__init__(envelopes)
        #: by position, taken envelopes that lack an outcome for a recipient, and their outcomes
        self._open: dict[int, tuple[Envelope, dict[str, Outcome]]] = {}

    def take(self) -> tuple[int, Envelope] | None:
        """See `Source`."""
        found = self._next()
        if found is not None:
            # In this order an interrupt can repeat the envelope, but not lose it.
            self._open[found[0]] = found[1], {}
            self._back.popleft()
        return found

    def put_back(self, position: int, envelope: Envelope) -> None:
        """See `Source`."""
        super().put_back(position, envelope)
        self._open.pop(position, None)

    def count(self, most: int) -> int:
        """The number of envelopes that are left, `most` at most. None is taken."""
        found = list(itertools.islice(iter(self.take, None), most))
        for position, envelope in found:
            self.put_back(position, envelope)
        return len(found)

    @property
    def returned(self) -> bool:
        """True if an envelope was put back."""
        return bool(self._back)

    def settle(self, outcome: Outcome, known: deque[Outcome], *, again: bool) -> None:
        """Note `outcome`. If its envelope has all outcomes now, append them to `known`.

        If nothing of the envelope was sent and it may go `again`, put it back instead. An interrupt
        can repeat an outcome, also in `known`, but not lose it.
        """
        found = self._open.get(outcome.position)
        if found is None:
            return
        envelope, outcomes = found
        outcomes[outcome.recipient] = outcome
        if len(outcomes) < len(envelope.recipients):
            return
        if again and all(map(_goes_on, outcomes.values())):
            self.put_back(outcome.position, envelope)
        else:
            known.extend(outcomes.values())
            del self._open[outcome.position]

    def left(self, *, taken_only: bool) -> Iterator[tuple[int, Envelope, Verdict]]:
        """The envelopes that no connection is going to send, each with its verdict.

        After an interrupt, an envelope that a connection had taken is in doubt. The caller settles
        each envelope and calls `forget`.
        """
        for position, _ in self._back:
            self.forget(position)
        while self._open:
            position, (envelope, _) = next(iter(self._open.items()))
            yield position, envelope, failure_policy.IN_DOUBT
        for position, envelope in self.rest(taken_only=taken_only):
            yield position, envelope, failure_policy.UNSENT

    def forget(self, position: int) -> None:
        """Forget an envelope: it is settled."""
        self._open.pop(position, None)


def _goes_on(outcome: Outcome) -> bool:
    """True if another connection may do better than this one."""
    return outcome.status is Status.UNSENT and outcome.action is not Action.STOP_ROUTE
