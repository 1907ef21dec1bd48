"""Gives out the envelopes of one call, and takes back what was taken too early. No I/O."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from ..common.shown import name_of
from ..envelope import Envelope
from ..exceptions import TransportError


class Source:
    """The envelopes of a call, with their positions. What was taken too early can be put back."""

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        self._envelopes = enumerate(envelopes)
        #: the next envelopes, if they have been looked at or put back
        self._back: deque[tuple[int, Envelope]] = deque()

    def take(self) -> tuple[int, Envelope] | None:
        """The next envelope, None if there is none.

        Raises TypeError if it is no `Envelope`, and any error that the iteration raises.
        """
        found = self._next()
        if found is not None:
            self._back.popleft()
        return found

    def _next(self) -> tuple[int, Envelope] | None:
        """The next envelope, which stays in the source; None if there is none."""
        back = self._back
        if not back:
            try:
                # In one call: an interrupt must not lose the envelope between two places.
                back.extend(itertools.islice(self._envelopes, 1))
            except TransportError as error:  # the caller would blame the connection
                raise RuntimeError(f"from the envelopes: {error}") from error
            if not back:
                return None
            if not isinstance(back[0][1], Envelope):
                wrong = type(back.popleft()[1])
                raise TypeError(f"an Envelope is needed, not {name_of(wrong)}")
        return back[0]

    def put_back(self, position: int, envelope: Envelope) -> None:
        """Put an envelope back in its order, before all that were not taken yet."""
        back = self._back
        place = sum(before < position for before, _ in back)
        back.insert(place, (position, envelope))

    def rest(self, *, taken_only: bool = False) -> Iterator[tuple[int, Envelope]]:
        """Take all that is left; with `taken_only`, only what was put back."""
        while (self._back or not taken_only) and (found := self.take()) is not None:
            yield found
