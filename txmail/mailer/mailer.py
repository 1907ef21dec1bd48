"""`Mailer`: hands messages to the current transaction, or sends them now."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import transaction
from zope.interface import implementer

from ..budget import COMMIT_TIMEOUT, Budget
from ..config import PREFIX, Settings, read_settings
from ..datamanager import MailDataManager, join
from ..delivery import DirectDelivery, delivery_error, in_order
from ..envelope import Envelope, Outcome, Status
from ..events import Events, MessageSettled
from ..exceptions import ConfigurationError
from ..interfaces import IMailer, ITransport
from ..message import to_envelope
from ..secret import Unshown

_BIND_OPTIONS = ("default_sender", "transaction_manager")


class _LastOutcomes(threading.local):
    """The outcomes of this thread's last commit or `send_immediately`; shared by binds."""

    outcomes: tuple[Outcome, ...] = ()

    def set(self, outcomes: tuple[Outcome, ...]) -> None:
        self.outcomes = outcomes


@implementer(IMailer)
class Mailer:
    """Sends the mail of a transaction when it commits. See `IMailer`.

    A mailer can be kept on a persistent object. Its pickle has the transport, without connections
    and password (see `txmail.secret`), and the options, but no subscribers and no outcomes; where
    it is loaded it uses `transaction.manager`.

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
    html_to_text: Callable[[str], str] | None = None

    def __init__(
        self,
        transport: ITransport,
        *,
        transaction_manager: Any = None,
        default_sender: str | None = None,
        preflight: str = "auto",
        transient: bool = False,
        commit_timeout: float = COMMIT_TIMEOUT,
        events: Events | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        """`transaction_manager` defaults to `transaction.manager`, that of the current thread.

        `html_to_text`, an `IHtmlToText`, makes the text of messages that have HTML only. The other
        options are explained at `DirectDelivery`. Raises `ConfigurationError`.
        """
        delivery = DirectDelivery(
            transport,
            events=events,
            preflight=preflight,
            transient=transient,
            commit_timeout=commit_timeout,
        )
        self._setup(delivery, transaction_manager, default_sender, _LastOutcomes())
        self.html_to_text = html_to_text

    def _setup(
        self,
        delivery: DirectDelivery,
        transaction_manager: Any,
        default_sender: str | None,
        last: _LastOutcomes,
    ) -> None:
        self._delivery = delivery
        self._last = last
        self.transaction_manager = (
            transaction.manager if transaction_manager is None else transaction_manager
        )
        self.default_sender = default_sender

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None, prefix: str = PREFIX) -> Self:
        """A mailer for the settings under `prefix`. Raises `ConfigurationError`."""
        given = Unshown(settings)
        del settings
        return cls._from_settings(read_settings(given, prefix))

    @classmethod
    def _from_settings(cls, settings: Settings) -> Self:
        mailer = cls.__new__(cls)
        mailer._setup(settings.delivery(), None, settings.default_sender, _LastOutcomes())
        mailer.html_to_text = settings.html_to_text
        return mailer

    @property
    def events(self) -> Events:
        """See `IMailer`."""
        return self._delivery.events

    @property
    def last_outcomes(self) -> tuple[Outcome, ...]:
        """See `IMailer`."""
        return self._last.outcomes

    def bind(self, **options: Any) -> Self:
        """See `IMailer`. Raises `ConfigurationError` for any other option."""
        for name in options:
            if name not in _BIND_OPTIONS:
                raise ConfigurationError("there is no such option of bind", field=name)
        bound = type(self).__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.__dict__.update(options)
        return bound

    def send(
        self,
        message: Any,
        *,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
    ) -> str:
        """See `IMailer`."""
        envelope = self._envelope(message, sender, recipients)
        self._join().add(self._delivery, envelope, self._last.set)
        return envelope.message_id

    def _envelope(
        self, message: Any, sender: str | None = None, recipients: Iterable[str] | None = None
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

    def send_immediately(self, message: Any, fail_silently: bool = False) -> tuple[Outcome, ...]:
        """See `IMailer`."""
        return self._send_now(self._envelope(message), fail_silently)

    def _send_now(self, envelope: Envelope, fail_silently: bool) -> tuple[Outcome, ...]:
        run = self._delivery.begin(Budget(self._delivery.commit_timeout))
        try:
            refusals = run.prepare([envelope], wait=True)
            outcomes = tuple(in_order([envelope], refusals) if refusals else run.send([envelope]))
        finally:
            run.finish()
        self._last.set(outcomes)
        self.events.emit(MessageSettled(envelope.message_id, self._delivery.route, outcomes))
        if not fail_silently and any(o.status is not Status.ACCEPTED for o in outcomes):
            raise delivery_error(outcomes, transient=self._delivery.transient)
        return outcomes

    def close(self) -> None:
        """See `IMailer`."""
        self._delivery.transport.close()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: outcomes, subscribers, connections and passwords stay behind.

        Raises `ConfigurationError` for a mailer that is bound to a transaction manager of its own:
        wherever the pickle is read, it would join the transactions of another.
        """
        if self.transaction_manager is not transaction.manager:
            raise ConfigurationError(
                "a mailer with a transaction manager of its own cannot be pickled; "
                "pickle the one it was bound from",
                field="transaction_manager",
            )
        left_behind = ("_last", "transaction_manager")
        return {name: value for name, value in vars(self).items() if name not in left_behind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.transaction_manager = transaction.manager
        self._last = _LastOutcomes()

    def __copy__(self) -> Self:
        """A mailer with connections and outcomes of its own, and the same transaction manager."""
        made = type(self).__new__(type(self))
        vars(made).update(vars(self), _delivery=copy.copy(self._delivery), _last=_LastOutcomes())
        return made

    def __deepcopy__(self, memo: object) -> Self:
        return copy.copy(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._delivery.route}>"


def mailer_from_settings(settings: Mapping[str, Any] | None, prefix: str = PREFIX) -> Mailer:
    """A `Mailer` for the settings under `prefix`. Raises `ConfigurationError`."""
    given = Unshown(settings)
    del settings
    return Mailer._from_settings(read_settings(given, prefix))
