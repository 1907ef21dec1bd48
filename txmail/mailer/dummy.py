"""`DummyMailer`, for tests of applications: takes part in the transaction, sends nothing."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from zope.interface import implementer

from ..budget import Budget
from ..common.ascii_text import is_digits
from ..config.settings import DIRECT, Settings
from ..datamanager import MailDataManager
from ..delivery.direct import DirectDelivery
from ..delivery.implied_outcomes import all_or_nothing
from ..envelope import Envelope
from ..exceptions import ConfigurationError
from ..interfaces import IDeliveryMethod, IDeliveryRun
from ..message import Message
from ..outcome import Outcome, Status
from ..reply import Reply
from ..submission import Options, StagedSubmission, Submission
from ..transports.memory import MemorySession, MemoryTransport
from ..types import Sendable, Several, TransactionManager
from .immediate import send_now
from .mailer import Mailer


class Outbox(list[Any]):
    """A list of messages. If it is empty, its `repr` shows messages that wait for a commit."""

    def __init__(self, pending: Callable[[], list[Any]]) -> None:
        super().__init__()
        self._pending = pending

    def __repr__(self) -> str:
        if self or not (waiting := self._pending()):
            return super().__repr__()
        return f"[] ({len(waiting)} waiting for a commit: {', '.join(map(repr, waiting))})"


@dataclass(frozen=True, slots=True, eq=False)
class _Posted(Envelope):
    """An envelope with the message from which it was rendered."""

    message: Any = None


class Boxes:
    """The mail of a dummy mailer, and the data managers that may hold more."""

    def __init__(self) -> None:
        #: the managers of transactions with mail; some may not have ended
        self.managers: weakref.WeakSet[MailDataManager] = weakref.WeakSet()
        self.direct = DummyDelivery(self)
        self.queued = DummyDelivery(self)
        self.outbox = Outbox(lambda: self.pending(self.direct))
        self.queue = Outbox(lambda: self.pending(self.queued))
        self.envelopes: list[Envelope] = []

    def pending(self, *methods: DummyDelivery) -> list[Any]:
        """Messages that wait for a commit and one of `methods`."""
        managers = list(self.managers)
        return [
            submission.envelope.message
            for manager in managers
            for submission in manager.buffered(*methods)
            if isinstance(submission.envelope, _Posted)
        ]

    def deliver(self, method: DummyDelivery, envelopes: Iterable[Envelope]) -> None:
        """Put `envelopes` into the lists of `method`."""
        box = self.outbox if method is self.direct else self.queue
        for envelope in envelopes:
            if method is self.direct:
                self.envelopes.append(envelope)
            box.append(envelope.message if isinstance(envelope, _Posted) else envelope)


@implementer(IDeliveryMethod)
class DummyDelivery(DirectDelivery):
    """Delivers into lists. See `IDeliveryMethod`."""

    transport: MemoryTransport
    #: a test may leave its transaction open on purpose
    is_missed_unsent = False

    def __init__(self, boxes: Boxes) -> None:
        super().__init__(MemoryTransport())
        self.boxes = boxes

    @property
    def route(self) -> str:
        """See `IDeliveryMethod`."""
        return "dummy:"

    def begin(self, budget: Budget, first: bool = True) -> IDeliveryRun:
        """See `IDeliveryMethod`."""
        return DummyRun(self)


@implementer(IDeliveryRun)
class DummyRun:
    """Delivers at the end of the transaction; a real delivery sends in the vote."""

    sends = True

    def __init__(self, method: DummyDelivery) -> None:
        self._method = method
        self._session = MemorySession(method.transport)
        self._accepted: list[Envelope] = []
        self._envelopes: list[Envelope] = []

    def prepare(self, submissions: Sequence[Submission], wait: bool) -> list[Outcome]:
        """See `IDeliveryRun`."""
        return self._session.preflight([submission.envelope for submission in submissions])

    def to_stage(self, submissions: Sequence[Submission]) -> list[StagedSubmission]:
        """See `IDeliveryRun`: there is no queue."""
        return []

    def send(self, submissions: Sequence[Submission]) -> Generator[Outcome, None, None]:
        """See `IDeliveryRun`."""
        self._envelopes = envelopes = [submission.envelope for submission in submissions]
        outcomes = list(self._session.send(envelopes, strict=True))
        if all(o.status is Status.ACCEPTED for o in outcomes):
            self._accepted = envelopes
        yield from outcomes

    def unsettled(self) -> list[Outcome]:
        """See `IDeliveryRun`: nothing is delivered before the end."""
        return list(all_or_nothing(self._envelopes, []))

    def goes_on(self, outcomes: Sequence[Outcome]) -> bool:
        """See `IDeliveryRun`: there is no queue."""
        return False

    def finish(self) -> None:
        """See `IDeliveryRun`."""
        self._method.boxes.deliver(self._method, self._accepted)

    def abort(self) -> None:
        """See `IDeliveryRun`."""


class DummyMailer(Mailer):
    """A mailer for tests: takes part in the transaction, and keeps mail instead of sending it.

    `outbox`
        Copies of the messages whose transaction has committed. A type checker takes them for
        `Message` s; other kinds of messages are copied as they are.
    `pending`
        Copies of the messages that wait for a commit.
    `envelopes`
        What a real mailer would have sent for the messages of `outbox`.
    `queue`
        Like `outbox`, for enqueued messages.

    It validates and renders messages like the real mailer, with the same errors. `refuse` makes a
    commit fail as a server's refusal does. Bound mailers share the lists.

    A mailer that is loaded from a pickle has empty lists and accepts everything.

    With ``transactional=False`` messages are in the outbox at once, even if the transaction aborts.
    That is for tests written for mailers without transactions.
    """

    needs_worker = False

    def __init__(
        self,
        transactional: bool = True,
        *,
        transaction_manager: TransactionManager | None = None,
        default_sender: str | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        self._boxes = Boxes()
        self._setup(
            self._boxes.direct,
            self._boxes.queued,
            DIRECT,
            default_sender,
            html_to_text,
            transaction_manager,
        )
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
        DummyMailer.__init__(
            self,
            state["transactional"],
            default_sender=state["default_sender"],
            html_to_text=state.get("html_to_text"),
        )

    @property
    def outbox(self) -> list[Message]:
        """Copies of the messages whose transaction has committed."""
        return self._boxes.outbox

    @property
    def queue(self) -> list[Message]:  # type: ignore[override]
        """Like `outbox`, for enqueued messages."""
        return self._boxes.queue

    @property
    def pending(self) -> list[Message]:  # type: ignore[override]
        """Copies of the messages that wait for a commit."""
        return self._boxes.pending(self._boxes.direct, self._boxes.queued)

    @property
    def envelopes(self) -> list[Envelope]:
        """What a real mailer would have sent."""
        return self._boxes.envelopes

    def refuse(self, recipient: str, reply: str = "550 5.1.1 no such user") -> None:
        """From now on the server answers `reply` to `recipient`; ``"*"`` means every recipient.

        A 5yz makes a commit raise `DeliveryRefused`, a 4yz `DeliveryUnavailable`. Raises
        `ConfigurationError` for a reply that is neither.
        """
        code, _, text = reply.partition(" ")
        if not (len(code) == 3 and is_digits(code) and code[0] in "45"):
            raise ConfigurationError("a 4yz or 5yz reply is needed", field="reply", value=reply)
        self._boxes.direct.transport.refuse(recipient, Reply(int(code), (text,)))

    def accept_all(self) -> None:
        """Accept all recipients again: undo every `refuse`."""
        self._boxes.direct.transport.accept_all()

    def _add(
        self,
        method: IDeliveryMethod,
        message: Sendable,
        chosen: Options,
        sender: str | None,
        recipients: Several[str] | None,
    ) -> str:
        if self.transactional:
            return super()._add(method, message, chosen, sender, recipients)
        envelope = self._envelope(message, sender, recipients)
        send_now(method, Submission(envelope, chosen), self._last.set)
        return envelope.message_id

    def _envelope(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: Several[str] | None = None,
    ) -> Envelope:
        envelope = super()._envelope(message, sender, recipients)
        if isinstance(message, Envelope):
            return envelope
        kept = copy.deepcopy(message)
        return _Posted(envelope.sender, envelope.recipients, envelope.content, kept)

    def _join(self) -> MailDataManager:
        manager = super()._join()
        self._boxes.managers.add(manager)
        return manager

    def __repr__(self) -> str:
        return f"<DummyMailer: {len(self.outbox)} sent, {len(self.pending)} waiting for a commit>"
