"""Runs one of several sessions that send together, a step at a time."""

from __future__ import annotations

import select

from ..exceptions import TransportError
from .session import Session
from .shared_source import SharedSource
from .transactions import ConnectionEnded


class SessionRun:
    """One session that sends from a shared source."""

    def __init__(
        self, session: Session, source: SharedSource, window: int | None, *, keep_untaken: bool
    ) -> None:
        self.session = session
        self.driver = session.driver
        self.sending = session.begin(source, window=window, keep_untaken=keep_untaken, shared=True)
        self._conversation = self.sending.conversation()
        self._begun = False
        self.over = False
        #: the error that has ended the connection, if one has
        self.error: TransportError | None = None

    @property
    def ready(self) -> bool:
        """True if it can advance."""
        return not self.over and (not self._begun or self.driver.ready)

    @property
    def usable(self) -> bool:
        """True if more can be sent on its connection."""
        return not self.session.closed and not self.sending.refused_too_often

    def advance(self) -> None:
        """Go on until a reply is needed, or to the end. Writes nothing to the socket."""
        try:
            if not self._begun:
                self._begun = True
                self.session.connection.check()
            next(self._conversation)
        except StopIteration:
            self.session.ended(self.sending)
            self.over = True
        except TransportError as error:
            self._failed(error)
        else:
            self.driver.expect()

    def wake(self, events: int) -> None:
        """Read what has come; without `events`, give up, because the time is over."""
        try:
            if events & ~select.POLLOUT:
                self.driver.receive()
            elif not events:
                self.driver.give_up()
        except ConnectionEnded as ended:
            try:
                self._conversation.throw(ended)
            except TransportError as error:
                self._failed(error)

    def _failed(self, error: TransportError) -> None:
        # In this order: an interrupt in between must find the run at work, and end it.
        self.session.failed(self.sending, error)
        self.over, self.error = True, error

    def interrupt(self) -> None:
        """Close the connection of a run that is not over: nothing more leaves."""
        if not self.over:
            self.session.interrupted(self.sending)
            self.over = True
