"""How the sending of a lane looks at its worker: whether it may write, and whether it goes on.

A server may hang for as long as its timeouts allow. A worker that stops does not wait for that
where nothing of a content has left.
"""

from __future__ import annotations

from typing import Any

from ..interfaces import ISession
from .active import Ledger, Stopped
from .lane import Lane


class Guard:
    """See `ISession.send`."""

    def __init__(self, ledger: Ledger, lane: Lane) -> None:
        self._ledger = ledger
        self._lane = lane

    def __call__(self) -> None:
        """Raise `LeaseLost` if nothing may be sent any more."""
        self._ledger.guard(self._lane)

    def rest(self) -> None:
        """Raise `Stopped` if the worker stops."""
        self._ledger.rest(self._lane)


class Opener:
    """The transport of a lane, for `send_all`: what a lane has while it connects can be taken."""

    def __init__(self, ledger: Ledger, lane: Lane) -> None:
        self._ledger = ledger
        self._lane = lane

    def open(self, **options: Any) -> ISession:
        """See `ITransport`. Raises `Stopped`, too."""
        self._ledger.opening(self._lane)
        session = None
        try:
            session = self._lane.route.transport.open(**options)
        finally:
            kept = self._ledger.opened(self._lane)
            if session is not None and not kept:
                session.close(dirty=True)
        if not kept:
            raise Stopped(f"{self._lane.route.name}: connected after the worker had stopped")
        return session
