"""Types of the public face, for the type checkers of applications.

The interfaces of `txmail.interfaces` are what the parts of txmail look at while they run. A type
checker without a plug-in for `zope.interface` knows nothing of who provides them: what an
application hands in and gets is described here once more, as protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from email.message import Message as StandardMessage

    from .envelope import Envelope
    from .events import Events
    from .outcome import Outcome

_T_co = TypeVar("_T_co", covariant=True)

#: What goes first.
PriorityName: TypeAlias = Literal["high", "normal", "bulk"]
#: What `send` does with mail.
DeliveryName: TypeAlias = Literal["direct", "queue"]
#: When the server is asked about recipients before anything is sent.
PreflightName: TypeAlias = Literal["auto", "always", "never"]
#: What becomes of mail that cannot be sent at once.
FallbackName: TypeAlias = Literal["abort", "queue"]


class NotText(Protocol[_T_co]):
    """A list, a tuple, a set: any collection but a string, which would be taken letter by letter.

    What tells a string apart is that it can only contain strings.
    """

    def __iter__(self) -> Iterator[_T_co]:
        """Its members."""

    def __contains__(self, value: object, /) -> bool:
        """Whether it has `value`."""


#: Several of something: a collection that is no string, or an iterator.
Several: TypeAlias = NotText[_T_co] | Iterator[_T_co]


class ToEnvelope(Protocol):
    """See `txmail.interfaces.IMessage`."""

    def to_envelope(
        self,
        *,
        sender: Any = None,
        recipients: Any = None,
        default_sender: Any = None,
    ) -> Envelope:
        """Render to an `Envelope`."""


#: What can be sent.
Sendable: TypeAlias = "ToEnvelope | StandardMessage[Any, Any] | Envelope"


class Readable(Protocol):
    """A file."""

    def read(self) -> Any:
        """All of it, text or octets."""


#: What an attachment is made of.
Data: TypeAlias = str | bytes | bytearray | memoryview | Readable


class TransactionManager(Protocol):
    """A manager of the `transaction` package: ``transaction.manager``, ``request.tm``."""

    def get(self) -> Any:
        """The current transaction."""


class Session(Protocol):
    """One open connection of a transport. See `txmail.interfaces.ISession`."""

    host: str

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """Ask the server about sender and recipients of `envelopes`."""

    def send(
        self,
        envelopes: Iterable[Envelope],
        *,
        strict: bool = False,
        timeout: float | None = None,
        window: int | None = None,
        keep_untaken: bool = False,
        guard: Callable[[], object] | None = None,
    ) -> Iterator[Outcome]:
        """Send `envelopes`: an iterator of one `Outcome` for each recipient."""

    def unsettled(self) -> list[Outcome]:
        """Outcomes of the last `send` that it did not hand out."""

    def close(self, *, dirty: bool = False) -> None:
        """Give the connection back."""


class Transport(Protocol):
    """Carries envelopes out. See `txmail.interfaces.ITransport`."""

    @property
    def name(self) -> str:
        """Printable, without secrets."""

    @property
    def asks_server(self) -> bool:
        """True if a preflight asks a server."""

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> Session:
        """A connection, verified or new. Raises `TransportError`."""

    def close(self) -> None:
        """End all idle connections."""


class QueueUser(Protocol):
    """A mailer, as a worker sees it."""

    @property
    def queue(self) -> Any:
        """Its queue, or None."""

    @property
    def transport(self) -> Transport:
        """What carries its mail out."""

    @property
    def routes(self) -> Sequence[Any]:
        """Ways out for workers, instead of `transport`."""

    @property
    def events(self) -> Events:
        """Who is told."""
