"""`DummyMailer`: for tests of applications. Takes part in the transaction, sends nothing."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from zope.interface import implementer

from ..budget import Budget
from ..config import Settings
from ..datamanager import MailDataManager
from ..delivery import DirectDelivery
from ..envelope import Envelope, Outcome, Status
from ..exceptions import ConfigurationError
from ..interfaces import IDelivery, IDeliveryRun
from ..reply import Reply
from ..transports.memory import MemorySession, MemoryTransport
from .mailer import Mailer, _LastOutcomes


class Outbox(list[Any]):
    """A list of messages; an empty one says in its `repr` what still waits for a commit."""

    def __init__(self, pending: Callable[[], list[Any]]) -> None:
        super().__init__()
        self._pending = pending

    def __repr__(self) -> str:
        if self or not (waiting := self._pending()):
            return super().__repr__()
        return f"[] ({len(waiting)} waiting for a commit: {', '.join(map(repr, waiting))})"


@dataclass(frozen=True, slots=True, eq=False)
class _Posted(Envelope):
    """An envelope that remembers the message it was rendered from."""

    message: Any = None


@implementer(IDelivery)
class DummyDelivery(DirectDelivery):
    """Delivers into lists. See `IDelivery`."""

    transport: MemoryTransport

    def __init__(self) -> None:
        super().__init__(MemoryTransport())
        #: who may have mail in a transaction that has not ended
        self.managers: weakref.WeakSet[MailDataManager] = weakref.WeakSet()
        self.outbox = Outbox(self.pending)
        self.queue = Outbox(self.pending)
        self.envelopes: list[Envelope] = []

    @property
    def route(self) -> str:
        """See `IDelivery`."""
        return "dummy:"

    def begin(self, budget: Budget, first: bool = True) -> IDeliveryRun:
        """See `IDelivery`."""
        return DummyRun(self)

    def pending(self) -> list[Any]:
        """Messages that wait for a commit."""
        managers = list(self.managers)
        return [
            envelope.message
            for manager in managers
            for envelope in manager.buffered(self)
            if isinstance(envelope, _Posted)
        ]

    def deliver(self, envelopes: Iterable[Envelope]) -> None:
        """Put them where a test looks for them."""
        for envelope in envelopes:
            self.envelopes.append(envelope)
            self.outbox.append(envelope.message if isinstance(envelope, _Posted) else envelope)


@implementer(IDeliveryRun)
class DummyRun:
    """Delivers when the transaction is over, where a real one has sent in the vote."""

    def __init__(self, delivery: DummyDelivery) -> None:
        self._delivery = delivery
        self._session = MemorySession(delivery.transport)
        self._accepted: list[Envelope] = []

    def prepare(self, envelopes: Sequence[Envelope], wait: bool) -> list[Outcome]:
        """See `IDeliveryRun`."""
        return self._session.preflight(envelopes)

    def send(self, envelopes: Sequence[Envelope]) -> Generator[Outcome, None, None]:
        """See `IDeliveryRun`."""
        outcomes = list(self._session.send(envelopes, strict=True))
        if all(o.status is Status.ACCEPTED for o in outcomes):
            self._accepted = list(envelopes)
        yield from outcomes

    def unsettled(self) -> list[Outcome]:
        """See `IDeliveryRun`: nothing here can be interrupted half-way."""
        return []

    def finish(self) -> None:
        """See `IDeliveryRun`."""
        self._delivery.deliver(self._accepted)

    def abort(self) -> None:
        """See `IDeliveryRun`."""


class DummyMailer(Mailer):
    """A mailer for tests that takes part in the transaction and keeps what would be sent.

    `outbox`
        Copies of the messages whose transaction has committed.
    `pending`
        Copies of those that wait for the commit of theirs.
    `envelopes`
        What would have gone over the wire, for the messages of `outbox`.
    `queue`
        As `outbox`, for queued mail; this version has none.

    Messages are validated and rendered as by the real mailer, with the same errors. `refuse` makes
    it fail as a server would. Binds share the lists.

    A pickle of it has empty lists and accepts everything.

    With ``transactional=False`` messages are in the outbox at once, whatever becomes of the
    transaction: for tests written for mailers that know no better.
    """

    _delivery: DummyDelivery

    def __init__(
        self,
        transactional: bool = True,
        *,
        transaction_manager: Any = None,
        default_sender: str | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        self._setup(DummyDelivery(), transaction_manager, default_sender, _LastOutcomes())
        self.html_to_text = html_to_text
        self.transactional = transactional

    @classmethod
    def _from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.dummy_transactional,
            default_sender=settings.default_sender,
            html_to_text=settings.html_to_text,
        )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        kept = ("transactional", "default_sender", "html_to_text")
        return {name: state[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._setup(DummyDelivery(), None, state["default_sender"], _LastOutcomes())
        self.transactional = state["transactional"]
        self.html_to_text = state.get("html_to_text")

    @property
    def outbox(self) -> list[Any]:
        """Copies of the messages whose transaction has committed."""
        return self._delivery.outbox

    @property
    def queue(self) -> list[Any]:
        """As `outbox`, for queued mail."""
        return self._delivery.queue

    @property
    def pending(self) -> list[Any]:
        """Copies of the messages that wait for a commit."""
        return self._delivery.pending()

    @property
    def envelopes(self) -> list[Envelope]:
        """What would have gone over the wire."""
        return self._delivery.envelopes

    def refuse(self, recipient: str, reply: str = "550 5.1.1 no such user") -> None:
        """From now on have the server answer `reply` to `recipient` (``"*"``: to everybody).

        A 5yz makes a commit raise `DeliveryRefused`, a 4yz `DeliveryUnavailable`. Raises
        `ConfigurationError` for a reply that is neither.
        """
        code, _, text = reply.partition(" ")
        if not (len(code) == 3 and code.isascii() and code.isdigit() and code[0] in "45"):
            raise ConfigurationError("a 4yz or 5yz reply is needed", field="reply", value=reply)
        self._delivery.transport.refuse(recipient, Reply(int(code), (text,)))

    def accept_all(self) -> None:
        """Forget what `refuse` was told."""
        self._delivery.transport.accept_all()

    def send(
        self,
        message: Any,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
    ) -> str:
        """See `IMailer`."""
        if not self.transactional:
            envelope = self._envelope(message, sender, recipients)
            self._send_now(envelope, fail_silently=False)
            return envelope.message_id
        return super().send(message, sender=sender, recipients=recipients)

    def _envelope(
        self, message: Any, sender: str | None = None, recipients: Iterable[str] | None = None
    ) -> Envelope:
        envelope = super()._envelope(message, sender, recipients)
        if isinstance(message, Envelope):
            return envelope
        kept = copy.deepcopy(message)
        return _Posted(envelope.sender, envelope.recipients, envelope.content, kept)

    def _join(self) -> MailDataManager:
        manager = super()._join()
        self._delivery.managers.add(manager)
        return manager

    def __repr__(self) -> str:
        return f"<DummyMailer: {len(self.outbox)} sent, {len(self.pending)} waiting for a commit>"
