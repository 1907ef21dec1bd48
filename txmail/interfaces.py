"""The contracts between the parts, in prose, with what breaking each of them costs.

An application sees `IMailer` and `IMessage`. At commit the one `IMailDataManager` of the
transaction asks each `IDelivery` that has mail in it for an `IDeliveryRun`, and a run sends
through an `ISession` of its `ITransport`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transaction.interfaces import ISavepointDataManager
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from .budget import Budget
    from .envelope import Envelope, Outcome


class IMailer(Interface):
    """What an application holds. One object serves any number of threads."""

    transaction_manager = Attribute(
        "The `transaction` manager whose current transaction `send` joins."
    )
    default_sender = Attribute("The From of messages that have none, or None.")
    events = Attribute("`txmail.events.Events`: who is told what happened.")
    last_outcomes = Attribute(
        "The `Outcome` s of the last commit, or `send_immediately`, that this thread did with "
        "mail of this mailer or of one it was bound from; a tuple, empty before the first."
    )

    def send(
        message: Any, *, sender: str | None = None, recipients: Iterable[str] | None = None
    ) -> str:
        """Send `message` when the current transaction commits; return its Message-ID.

        `message` is an `IMessage`, a stdlib message or an `Envelope`. It is rendered here and
        now: what is done to it later is not sent. `sender` and `recipients` replace the envelope's.

        Nothing is sent here. If the message cannot be sent for a reason that is known now, a
        `MessageError`, `AddressError` or `TransactionClosed` is raised here.

        `commit()` raises `DeliveryRefused` or `DeliveryUnavailable` if nothing went out, and
        `PartialDelivery` if something did; in each case the transaction was aborted.
        """

    def send_immediately(message: Any, fail_silently: bool = False) -> tuple[Outcome, ...]:
        """Send `message` now, outside any transaction; return its outcomes.

        Raises what `commit()` would raise. With `fail_silently`, a delivery that fails raises
        nothing and the outcomes say what happened; bad input still raises.
        """

    def bind(**options: Any) -> Any:
        """A mailer with another `transaction_manager` or `default_sender`.

        Everything else (connections, subscribers, outcomes) is shared with this one.
        """

    def close() -> None:
        """End all idle connections. The mailer can be used again and will connect anew."""


class IMessage(Interface):
    """A message that knows how to become an envelope: `txmail.Message`."""

    def to_envelope(
        *,
        sender: Any = None,
        recipients: Iterable[Any] | None = None,
        default_sender: Any = None,
    ) -> Envelope:
        """Render to an `Envelope`. Must not write to the message: the caller may send it again."""


class IHtmlToText(Interface):
    """Makes the text of a message that has HTML only. Shared by threads."""

    def __call__(html: str) -> str:
        """The text of `html`, empty if there is none in it.

        It must be the same for the same HTML, or a message is not rendered to the same octets
        again. May raise anything for what it cannot read: `send()` raises `InvalidMessage` then.
        """


class ITemplateEngine(Interface):
    """Reads templates. Shared by threads."""

    def compile(source: str, part: str, *, html: bool = False) -> ITemplateText:
        """The template whose text is `source`.

        `part` names it in errors. With `html`, the values of fields are escaped for HTML.

        Raises `TemplateError`, with its line, for a template that cannot be read.
        """


class ITemplateText(Interface):
    """One template, read. Shared by threads."""

    pieces = Attribute(
        "Text and `txmail.message.merge.Field` s, if there is nothing else in the template, so "
        "that it can be compiled; None if there is."
    )

    def render(fields: Mapping[str, Any]) -> str:
        """The text with `fields` in it, which are plain data and must stay data.

        The template may be hostile: it must not get at anything but `fields`, and its time and
        its output must be bounded, or one template stops a process that sends for many.

        Raises `TemplateError` for a field that is missing and for anything else that goes wrong.
        """


class IDelivery(Interface):
    """What a commit does with envelopes. Shared by threads, holds no state of a transaction."""

    route = Attribute("Printable name of where it sends, without secrets.")
    events = Attribute("`txmail.events.Events`: who is told what happened.")
    commit_timeout = Attribute("Seconds of network time that one transaction may take.")
    transient = Attribute(
        "True if errors that another try may mend are raised as `TransientError` too."
    )

    def begin(budget: Budget, first: bool = True) -> IDeliveryRun:
        """Return an `IDeliveryRun` for one transaction.

        `budget` is the `Budget` of the transaction's network time. `first` is False if the
        transaction already has a run: it then must never wait for a connection, because two
        transactions that wait for each other's connections would wait for ever.
        """


class IDeliveryRun(Interface):
    """One delivery's part in one transaction. Used by one thread."""

    def prepare(envelopes: Sequence[Envelope], wait: bool) -> list[Outcome]:
        """Do everything revocable for `envelopes`, all that this transaction has so far.

        May be called several times, with more or with fewer; what was prepared on the present
        connection is not done again. Waits for a free connection only if `wait`: after
        `tpc_begin` other databases hold locks that the connection's present owner may need.

        Returns the outcomes that forbid sending, empty if there are none. Must not do anything
        that cannot be taken back: a transaction that fails later would have sent mail.
        """

    def send(envelopes: Sequence[Envelope]) -> Generator[Outcome, None, None]:
        """Send `envelopes` in their order; an iterator over their outcomes, in that order.

        The first outcome that is not `accepted` ends sending: all that follow are `unsent`.
        Yields each outcome when it is known; its ``close()`` ends sending at once. If it raises,
        `unsettled` has the outcomes it did not get to yield.
        """

    def unsettled() -> list[Outcome]:
        """The outcomes `send` has not handed out yet (the last one handed out may be repeated)."""

    def finish() -> None:
        """Give the connection back after a commit. Never raises, never blocks."""

    def abort() -> None:
        """Give the connection back after an abort, or close it.

        Legal in every state, any number of times; never raises, never blocks: it is called while
        other databases roll back, and an error here would hide the one that caused it.
        """


class IMailDataManager(ISavepointDataManager):
    """Our one participant in a transaction: two-phase commit and nothing else.

    One serves all mailers, binds and transports of a transaction, because two managers under one
    sort key would tear: one would have sent when the other's server refuses.
    """

    def add(
        delivery: IDelivery, envelope: Envelope, report: Callable[[tuple[Outcome, ...]], object]
    ) -> None:
        """Buffer `envelope` for `delivery` in this transaction, joining it if need be.

        `report` is called with the outcomes of its caller's envelopes when the commit has tried
        to send them. Raises `TransactionClosed` where no commit will follow.
        """


class ITransport(Interface):
    """Carries envelopes out now. Shared by threads."""

    name = Attribute("Printable name, such as ``smtp://mx.example.com:25``; without secrets.")
    asks_server = Attribute(
        "True if a preflight asks a server, so that direct delivery does one by default."
    )

    def open(
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> ISession:
        """Return an `ISession`, verified or new.

        `timeout` bounds opening it, in seconds. If all connections are in use, `wait` allows
        waiting for one; otherwise one is opened beyond the limit. `fresh` never reuses one: the
        caller has just seen a kept one fail. `verify` has a kept one that was idle for long answer
        first; without it the caller's own first question does that, and the caller knows what to
        do if there is no answer.

        Raises `TransportError`.
        """

    def close() -> None:
        """End all idle connections."""


class ISession(Interface):
    """One open connection of a transport. Used by one thread at a time."""

    host = Attribute("Printable name of who is at the other end.")
    fresh = Attribute("True until the session is closed for the first time.")
    restartable = Attribute(
        "True if the last `send` lost the connection before any content had been sent: on another "
        "session the same envelopes can be sent without anything arriving twice."
    )

    def preflight(
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        stage: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """Ask the server about sender and recipients of `envelopes`, before anything irrevocable.

        Returns the `Outcome` s of what it would not take, in the order of the envelopes; empty
        if it would take all. With `stage`, the first envelope is left open, so that sending it
        needs one round trip less. What passed is remembered until the connection ends.

        How many questions a server may be asked without a message is limited; past it envelopes
        go unasked (`Outcome.preflighted` is False) or, with `always`, are refused with a reason
        that names the limit. `timeout` is in seconds, for all of it.

        Raises `TransportError` if the connection fails or the server turns us away.
        """

    def send(
        envelopes: Iterable[Envelope],
        *,
        strict: bool = False,
        timeout: float | None = None,
        window: int | None = None,
        leave: bool = False,
    ) -> Iterator[Outcome]:
        """Send `envelopes`; an iterator of one `Outcome` per recipient, as they are known.

        `Outcome.position` says which of the envelopes it is about: they come in order unless there
        are several connections, or a server takes a message in parts.

        Network failures end in outcomes, not in errors. `strict` is for all or nothing: one
        refused recipient means that its message is not sent to the others either, and the first
        outcome that is not `accepted` ends sending.

        `window` is how many messages may be on their way without an answer, on one connection, and
        so how many can be in doubt if it breaks. By default 1 with `strict` and 16 without; a
        transport that was set up with a window uses that.

        With `leave`, envelopes that were not taken from the iterator when sending ended stay
        there, without an outcome; otherwise all are taken, and reported as unsent.

        If the iterator is closed or raises (KeyboardInterrupt), the connection is closed at once,
        never with a final dot, and `unsettled` tells what became of the rest.
        """

    def unsettled() -> list[Outcome]:
        """Outcomes of the last `send` that it did not hand out.

        Some may repeat what was said of a recipient before: then the first was right.
        """

    def close(*, dirty: bool = False) -> None:
        """Give the connection back to its transport. Never blocks, never raises.

        `dirty`: there may be an open mail transaction on it; the next user resets it first.
        """
