"""Holds what a session knows of its connection when it begins to send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..envelope import Envelope
from .extensions import Extensions
from .server_memory import ServerMemory
from .transactions import MailTransaction


@dataclass(frozen=True, slots=True)
class ConnectionHistory:
    """The mail that a connection has carried."""

    #: messages that the server refused
    refusals: int = 0
    #: True if the server has answered the content of a message
    carried: bool = False


NO_HISTORY = ConnectionHistory()


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """One connection at the beginning of a call of `ISession.send`."""

    extensions: Extensions
    #: use PIPELINING
    pipelining: bool
    #: says whether an envelope passed the preflight on this very connection
    passed: Callable[[Envelope], bool]
    #: the mail transaction that the preflight left open
    open_transaction: MailTransaction | None = None
    #: True if there may be a mail transaction that has to be reset first
    dirty: bool = False
    #: True if the server has answered since the connection was taken; content waits for that
    proven: bool = True
    history: ConnectionHistory = NO_HISTORY
    #: the memory of the server if the session can open another connection to it, else None
    memory: ServerMemory | None = None
    #: messages that this connection may still carry; None is any number
    messages_left: int | None = None

    @property
    def no_reset(self) -> bool:
        """True if the server is known not to know RSET."""
        return self.memory is not None and self.memory.no_reset
