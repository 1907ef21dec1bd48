"""Notices that a server puts off every message, whatever it is. No I/O."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from ..outcome import Action, Scope
from ..reply import Reply
from .progress import Progress

#: Messages in a row of which MAIL got a 4yz: after so many the route is at fault.
PUT_OFF_LIMIT = 3


class PutOffMessages:
    """The messages in a row that were put off at MAIL, on one connection."""

    def __init__(self, repeated: Set[int]) -> None:
        """`repeated` has the positions of envelopes that a fresh connection is asked about again.

        They do not count: nobody knows here what the server has accepted between.
        """
        self._repeated = repeated
        #: by Message-ID, or by position where a message has none
        self._in_a_row: set[str] = set()

    def clear(self) -> None:
        """Begin a new row: the server has taken a MAIL."""
        self._in_a_row.clear()

    def note(self, progress: Progress, mail: Reply | None) -> None:
        """Count a message by the reply to its `mail`; of `PUT_OFF_LIMIT` the route is at fault."""
        if progress.position in self._repeated:
            return
        if mail is None or not mail.temporary:
            self.clear()
            return
        self._in_a_row.add(progress.envelope.message_id or str(progress.position))
        if len(self._in_a_row) >= PUT_OFF_LIMIT:
            progress.outcomes = [
                replace(outcome, scope=Scope.ROUTE, action=Action.DEFER_ROUTE)
                if outcome is not None and outcome.reply is mail
                else outcome
                for outcome in progress.outcomes
            ]
