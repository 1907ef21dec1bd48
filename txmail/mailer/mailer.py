"""`Mailer`: hands messages to the current transaction, or sends them now."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Never, Self, SupportsIndex, cast

import transaction
from zope.interface import implementer

from ..address import plain_text
from ..budget import COMMIT_TIMEOUT
from ..common.nearest import did_you_mean
from ..common.process_wide import is_of_a_database, the_one_like
from ..config.settings import (
    DELIVERY,
    DIRECT,
    PREFIX,
    Settings,
    find_witnesses,
    named_by,
    read_settings,
)
from ..datamanager import MailDataManager, join, joined
from ..delivery.direct import DirectDelivery
from ..envelope import Envelope
from ..events import Events
from ..exceptions import ConfigurationError, DeliveryError
from ..interfaces import IDeliveryMethod, IMailer, IQueue, ITransport
from ..message import to_envelope
from ..outcome import Outcome
from ..secret import Unshown
from ..submission import DEFAULT, Options, Submission, options
from ..types import (
    DeliveryName,
    FallbackName,
    PreflightName,
    PriorityName,
    Sendable,
    Several,
    TransactionManager,
    Transport,
)
from .immediate import send_now

if TYPE_CHECKING:
    from ..queue.queue import Queue
    from ..queue.session import Sessions
    from ..worker.router import Route

_BIND_OPTIONS = ("default_sender", "session", "transaction_manager")
#: An option of `bind` that is not given.
_KEPT: Any = object()


class _LastOutcomes(threading.local):
    """The outcomes of this thread's last commit or `send_immediately`; bound mailers share it."""

    def __init__(self) -> None:
        self._outcomes: tuple[Outcome, ...] = ()
        #: managers whose commit has not ended, or may have failed before it reached them
        self._managers: weakref.WeakSet[MailDataManager] = weakref.WeakSet()

    def follow(self, manager: MailDataManager) -> None:
        """Note that `manager` has got mail."""
        self._managers.add(manager)

    def set(self, outcomes: tuple[Outcome, ...]) -> None:
        self._outcomes = outcomes

    def get(self) -> tuple[Outcome, ...]:
        for manager in list(self._managers):
            manager.notice()
        return self._outcomes


@implementer(IMailer)
class Mailer:
    """Sends the mail of a transaction when it commits. See `IMailer`.

    A persistent object can hold a mailer. A pickle contains the options and the transport, without
    connections and password (see `txmail.secret`), and no subscribers and no outcomes. A loaded
    mailer uses `transaction.manager`.

    >>> import transaction
    >>> from txmail import Mailer, Message, transport_from_url
    >>> mailer = Mailer(transport_from_url("memory:"), default_sender="shop@example.com")
    >>> message = Message("Your order", ["ann@example.com"], "Thank you!")
    >>> with transaction.manager:
    ...     message_id = mailer.send(message)
    >>> [str(outcome) for outcome in mailer.last_outcomes]
    ['ann@example.com accepted (250 2.0.0 kept in memory)']
    """

    #: see `IHtmlToText`; None sends HTML as it is
    html_to_text: Callable[[str], str] | None
    transaction_manager: TransactionManager
    default_sender: str | None
    #: the routes for workers; empty if workers use `transport`
    routes: tuple[Route, ...] = ()
    #: False if no worker is needed to send enqueued mail
    needs_worker = True

    def __init__(
        self,
        transport: Transport | ITransport,
        *,
        transaction_manager: TransactionManager | None = None,
        default_sender: str | None = None,
        queue: Queue | IQueue | None = None,
        routes: Sequence[Route] = (),
        delivery: DeliveryName = "direct",
        preflight: PreflightName = "auto",
        on_unavailable: FallbackName | None = None,
        on_partial: FallbackName | None = None,
        transient: bool = False,
        commit_timeout: float = COMMIT_TIMEOUT,
        events: Events | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        """Make a mailer. The default `transaction_manager` is that of the current thread.

        `enqueue` puts mail into `queue`; with `delivery` ``queue``, `send` does, too. The workers
        of that queue use `routes`, each a `txmail.worker.Route`, instead of `transport`.
        `html_to_text`, an `IHtmlToText`, makes the text of messages that have HTML only.
        `DirectDelivery` explains the other options.

        Raises `ConfigurationError`.
        """
        direct = DirectDelivery(
            cast("ITransport", transport),
            events=events,
            preflight=preflight,
            transient=transient,
            commit_timeout=commit_timeout,
            queue=queue,
            on_unavailable=on_unavailable,
            on_partial=on_partial,
        )
        queued = None if queue is None else direct.queued(queue)
        self._setup(direct, queued, delivery, default_sender, html_to_text, transaction_manager)
        self.routes = tuple(routes)

    def _setup(
        self,
        direct: DirectDelivery,
        queued: IDeliveryMethod | None,
        delivery: str,
        default_sender: str | None,
        html_to_text: Callable[[str], str] | None,
        transaction_manager: TransactionManager | None = None,
    ) -> None:
        delivery = plain_text(delivery)
        if delivery not in DELIVERY:
            raise ConfigurationError(
                f"one of {', '.join(DELIVERY)} is needed", field="delivery", value=delivery
            )
        if queued is None and delivery != DIRECT:
            raise ConfigurationError("there is no queue: queue_url is needed", field="delivery")
        self._direct = direct
        self._queued = queued
        self._find_witnesses()
        self._sends_directly = delivery == DIRECT
        self._last = _LastOutcomes()
        self.transaction_manager = (
            transaction.manager if transaction_manager is None else transaction_manager
        )
        self.default_sender = default_sender
        self.html_to_text = html_to_text

    def _find_witnesses(self) -> None:
        """Let the queue find witnesses among the databases of its transactions."""
        queue: Any = None if self._queued is None else self._queued.queue
        if queue is not None and getattr(queue, "find_witnesses", queue) is None:
            queue.find_witnesses = find_witnesses

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None, prefix: str = PREFIX) -> Self:
        """A mailer for the settings under `prefix`. Raises `ConfigurationError`."""
        given = Unshown(settings)
        del settings
        found = read_settings(given, prefix)
        try:
            return cls._from_settings(found)
        except ConfigurationError as error:
            raise named_by(error, prefix) from error.__cause__

    @classmethod
    def _from_settings(cls, settings: Settings) -> Self:
        mailer = cls.__new__(cls)
        Mailer.__init__(
            mailer,
            settings.transport,
            default_sender=settings.default_sender,
            queue=settings.queue,
            routes=settings.routes,
            delivery=cast("DeliveryName", settings.delivery),
            preflight=cast("PreflightName", settings.preflight),
            on_unavailable=cast("FallbackName | None", settings.on_unavailable),
            on_partial=cast("FallbackName | None", settings.on_partial),
            transient=settings.transient,
            commit_timeout=settings.commit_timeout,
            html_to_text=settings.html_to_text,
        )
        return mailer

    @property
    def events(self) -> Events:
        """See `IMailer`."""
        return self._direct.events

    @property
    def transport(self) -> Transport:
        """The transport that sends the mail."""
        return cast("Transport", self._direct.transport)

    @property
    def queue(self) -> Queue | None:
        """See `IMailer`."""
        return None if self._queued is None else cast("Queue", self._queued.queue)

    @property
    def last_outcomes(self) -> tuple[Outcome, ...]:
        """See `IMailer`."""
        return self._last.get()

    @property
    def pending(self) -> Sequence[Envelope]:
        """See `IMailer`."""
        manager = joined(self.transaction_manager)
        return () if manager is None else manager.pending(self._last.set)

    def bind(
        self,
        *,
        transaction_manager: TransactionManager = _KEPT,
        default_sender: str | None = _KEPT,
        session: Sessions | None = None,
        **unknown: Never,
    ) -> Self:
        """See `IMailer`. Raises `ConfigurationError` for any other option."""
        for name in unknown:
            problem = "there is no such option of bind" + did_you_mean(name, _BIND_OPTIONS)
            raise ConfigurationError(problem, field=name)
        given = {"transaction_manager": transaction_manager, "default_sender": default_sender}
        bound = type(self).__new__(type(self))
        vars(bound).update(vars(self), **{k: v for k, v in given.items() if v is not _KEPT})
        if session is not None:
            bound._bind_session(session)
        return bound

    def _bind_session(self, session: Any) -> None:
        method = self._needed()
        if method.queue is not None:
            self._direct, self._queued = self._direct.in_session(method.queue, session)

    def send(
        self,
        message: Sendable,
        *,
        sender: str | None = None,
        recipients: Several[str] | None = None,
    ) -> str:
        """See `IMailer`."""
        method = self._direct if self._sends_directly else self._needed()
        return self._add(method, message, DEFAULT, sender, recipients)

    def enqueue(
        self,
        message: Sendable,
        *,
        priority: PriorityName = "normal",
        not_before: datetime | None = None,
        expires: datetime | None = None,
        idempotency_key: str | None = None,
        wake: bool = True,
        sender: str | None = None,
        recipients: Several[str] | None = None,
    ) -> str:
        """See `IMailer`."""
        method = self._needed()
        chosen = options(
            priority=priority,
            not_before=not_before,
            expires=expires,
            idempotency_key=idempotency_key,
            wake=wake,
        )
        return self._add(method, message, chosen, sender, recipients)

    def _needed(self) -> IDeliveryMethod:
        if self._queued is None:
            raise ConfigurationError("there is no queue: queue_url is needed", field="queue")
        return self._queued

    def _add(
        self,
        method: IDeliveryMethod,
        message: Sendable,
        chosen: Options,
        sender: str | None,
        recipients: Several[str] | None,
    ) -> str:
        envelope = self._envelope(message, sender, recipients)
        manager = self._join()
        self._last.follow(manager)
        manager.add(method, Submission(envelope, chosen), self._last.set)
        return envelope.message_id

    def _envelope(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: Several[str] | None = None,
    ) -> Envelope:
        return to_envelope(
            message,
            sender=sender,
            recipients=recipients,
            default_sender=self.default_sender,
            html_to_text=self.html_to_text,
        )

    def _join(self) -> MailDataManager:
        return join(self.transaction_manager)

    def send_immediately(
        self, message: Sendable, fail_silently: bool = False
    ) -> tuple[Outcome, ...]:
        """See `IMailer`."""
        return self._send_now(self._envelope(message), fail_silently)

    def _send_now(self, envelope: Envelope, fail_silently: bool) -> tuple[Outcome, ...]:
        try:
            return send_now(self._direct, Submission(envelope), self._last.set)
        except DeliveryError as error:
            if not fail_silently:
                raise
            return error.outcomes

    def close(self) -> None:
        """See `IMailer`."""
        for transport in (self.transport, *(route.transport for route in self.routes)):
            transport.close()
        if self._queued is not None and self._queued.queue is not None:
            self._queued.queue.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        if not is_of_a_database(protocol):
            return super().__reduce_ex__(protocol)
        self._share_routes()  # mailers that this process loads use the same routes
        return _loaded, (type(self), self.__getstate__())

    def _share_routes(self) -> None:
        self.routes = tuple(
            replace(route, transport=the_one_like(route.transport)) for route in self.routes
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: leaves out outcomes, subscribers, connections and passwords.

        Raises `ConfigurationError` for a mailer with a transaction manager of its own: a loaded
        mailer would join the transactions of another manager.
        """
        if self.transaction_manager is not transaction.manager:
            raise ConfigurationError(
                "a mailer with a transaction manager of its own cannot be pickled; "
                "pickle the mailer from which it was bound",
                field="transaction_manager",
            )
        left_behind = ("_last", "transaction_manager")
        return {name: value for name, value in vars(self).items() if name not in left_behind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._find_witnesses()
        self.transaction_manager = transaction.manager
        self._last = _LastOutcomes()

    def __copy__(self) -> Self:
        """A mailer with connections and outcomes of its own, and the same transaction manager."""
        made = type(self).__new__(type(self))
        vars(made).update(vars(self), _direct=copy.copy(self._direct), _last=_LastOutcomes())
        return made

    def __deepcopy__(self, memo: object) -> Self:
        return copy.copy(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._direct.route}>"


def _loaded(kind: type[Mailer], state: dict[str, Any]) -> Mailer:
    """The mailer that a database loads; all that this process loads share their routes."""
    made = kind.__new__(kind)
    made.__setstate__(state)
    made._share_routes()
    return made


def mailer_from_settings(settings: Mapping[str, Any] | None, prefix: str = PREFIX) -> Mailer:
    """A `Mailer` for the settings under `prefix`. Raises `ConfigurationError`."""
    given = Unshown(settings)
    del settings
    return Mailer._from_settings(read_settings(given, prefix))
