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
    """What is left to send, and what the connections have taken of it."""

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        super().__init__(envelopes)
        #: by position, envelopes that were taken and lack an outcome for some of their recipients,
        #: and the outcomes that they have
        self._open: dict[int, tuple[Envelope, dict[str, Outcome]]] = {}

    def take(self) -> tuple[int, Envelope] | None:
        """See `Source`."""
        found = self._next()
        if found is not None:
            # In this order an interrupt can have it twice, but not lose it.
            self._open[found[0]] = found[1], {}
            self._back.popleft()
        return found

    def put_back(self, position: int, envelope: Envelope) -> None:
        """See `Source`."""
        super().put_back(position, envelope)
        self._open.pop(position, None)

    def count(self, most: int) -> int:
        """How many are left, `most` if it is more. None of them is taken."""
        found = list(itertools.islice(iter(self.take, None), most))
        for position, envelope in found:
            self.put_back(position, envelope)
        return len(found)

    @property
    def returned(self) -> bool:
        """True if something was put back."""
        return bool(self._back)

    def settle(self, outcome: Outcome, known: deque[Outcome], *, again: bool) -> None:
        """Note `outcome`; if its envelope has all of them now, they go to `known`.

        If nothing was sent of the envelope and it may go `again`, it is put back instead. An
        interrupt can have the same outcome come twice, and be in `known` twice, but not be lost.
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
        """What nobody is going to send any more, and what is to be said of it: see `forget`.

        That is `rest` and, before that, what an interrupt has cut off from its connection: nobody
        knows how far that was.
        """
        for position, _ in self._back:
            self.forget(position)
        while self._open:
            position, (envelope, _) = next(iter(self._open.items()))
            yield position, envelope, failure_policy.IN_DOUBT
        for position, envelope in self.rest(taken_only=taken_only):
            yield position, envelope, failure_policy.UNSENT

    def forget(self, position: int) -> None:
        """All is said about this one."""
        self._open.pop(position, None)


def _goes_on(outcome: Outcome) -> bool:
    """True if another connection may do better, by what is known of this one."""
    return outcome.status is Status.UNSENT and outcome.action is not Action.STOP_ROUTE
