"""The contracts between the parts, in prose, with what breaking each of them costs.

An application sees `IMailer` and `IMessage`. At commit the one `IMailDataManager` of the
transaction asks each `IDeliveryMethod` that has mail in it for an `IDeliveryRun`, and a run sends
through an `ISession` of its `ITransport`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transaction.interfaces import ISavepointDataManager
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from datetime import datetime

    from .budget import Budget
    from .envelope import Envelope
    from .outcome import Outcome
    from .submission import KnownOutcomes, Listener, StagedSubmission, Submission
    from .types import PriorityName, Sendable, Several, TransactionManager
    from .witness_answer import WitnessAnswer


class IMailer(Interface):
    """What an application holds. One object serves any number of threads."""

    transaction_manager = Attribute(
        "The `transaction` manager whose current transaction `send` joins."
    )
    default_sender = Attribute("The From of messages that have none, or None.")
    events = Attribute("`txmail.events.Events`: who is told what happened.")
    queue = Attribute("The `IQueue`, or None; of a dummy mailer, the list of what was enqueued.")
    last_outcomes = Attribute(
        "The `Outcome` s of the last commit, or `send_immediately`, that this thread did with "
        "mail of this mailer or of one it was bound from, good or failed, whoever failed; a tuple, "
        "empty before the first, and after an abort of such mail without a commit."
    )
    pending = Attribute(
        "The `Envelope` s that this mailer, or one it was bound from, has handed to the current "
        "transaction, and that wait for its commit; of a dummy mailer, copies of the messages."
    )

    def send(
        message: Sendable, *, sender: str | None = None, recipients: Several[str] | None = None
    ) -> str:
        """Send `message` when the current transaction commits; return its Message-ID.

        `message` is an `IMessage`, a stdlib message or an `Envelope`. It is rendered here and
        now: what is done to it later is not sent. `sender` and `recipients` replace the envelope's.

        Nothing is sent here. If the message cannot be sent for a reason that is known now, a
        `MessageError`, `AddressError` or `TransactionClosed` is raised here.

        `commit()` raises `DeliveryRefused` or `DeliveryUnavailable` if nothing went out, and
        `PartialDelivery` if something did; in each case the transaction was aborted.
        """

    def send_immediately(message: Sendable, fail_silently: bool = False) -> tuple[Outcome, ...]:
        """Send `message` now, outside any transaction; return its outcomes.

        Raises what `commit()` would raise. With `fail_silently`, a delivery that fails raises
        nothing and the outcomes say what happened; bad input still raises.
        """

    def enqueue(
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
        """Put `message` into the queue when the current transaction commits; return its Message-ID.

        `message`, `sender` and `recipients` are those of `send`. `priority` is high, normal or
        bulk. `not_before` and `expires`, aware datetimes, bound when it is sent. Of all messages
        with one `idempotency_key`, a string of at most 255 characters, the first that is committed
        is sent, and the others are cancelled. Without `wake`, workers find it when they look the
        next time.

        Raises what `send` raises, and `ConfigurationError` where there is no queue. `commit()`
        raises `QueueUnavailable` if the queue cannot take it; the transaction was aborted then.
        """

    def bind(
        *,
        transaction_manager: TransactionManager = ...,
        default_sender: str | None = ...,
        session: Any = None,
    ) -> Any:
        """A mailer with another `transaction_manager`, `default_sender` or `session`.

        `session` is the SQLAlchemy session through which a queue in the application's database is
        written. Everything else (connections, subscribers, outcomes) is shared with this one.
        """

    def close() -> None:
        """End all idle connections. The mailer can be used again and will connect anew."""


class IMessage(Interface):
    """A message that knows how to become an envelope: `txmail.Message`."""

    def to_envelope(
        *, sender: Any = None, recipients: Iterable[Any] | None = None, default_sender: Any = None
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
        "Text and `Field` s (`txmail.message.templates.template_values`), if there is nothing else "
        "in the template, so that it can be compiled; otherwise None."
    )

    def render(fields: Mapping[str, Any]) -> str:
        """The text with `fields` in it, which are plain data and must stay data.

        The template may be hostile: it must not get at anything but `fields`, and its time and
        its output must be bounded, or one template stops a process that sends for many.

        Raises `TemplateError` for a field that is missing and for anything else that goes wrong.
        """


class IDeliveryMethod(Interface):
    """What a commit does with submissions. Shared by threads, holds no state of a transaction."""

    route = Attribute("Printable name of the place that it sends to, without secrets.")
    events = Attribute("`txmail.events.Events`: who is told what happened.")
    commit_timeout = Attribute("Seconds of network time that one transaction may take.")
    transient = Attribute(
        "True if errors that another try may mend are raised as `TransientError` too."
    )
    queue = Attribute("The `IQueue` that its runs stage submissions in, or None.")
    is_missed_unsent = Attribute("True if txmail warns of mail for it that is never committed.")

    def begin(budget: Budget, first: bool = True) -> IDeliveryRun:
        """Return an `IDeliveryRun` for one transaction.

        `budget` is the `Budget` of the transaction's network time. `first` is False if the
        transaction has a run already. This run must never wait for a connection then: two
        transactions that wait for each other's connections wait for ever.
        """


class IDeliveryRun(Interface):
    """The part of one delivery method in one transaction. Used by one thread."""

    sends = Attribute("True if `send` sends something, False if the queue has it all.")

    def prepare(submissions: Sequence[Submission], wait: bool) -> list[Outcome]:
        """Do everything revocable for `submissions`, all that this transaction has so far.

        Called several times, with more submissions or with fewer; does nothing again that it has
        done on the present connection. It may wait for a free connection with `wait`, but not after
        `tpc_begin`: other databases hold locks that the connection's present owner may need.

        Returns the outcomes that forbid sending; their `position` is that of the submission. Must
        not do what cannot be taken back: a transaction that fails later would have sent mail.
        """

    def to_stage(submissions: Sequence[Submission]) -> list[StagedSubmission]:
        """What the queue has to hold before the commit, of `submissions` that were prepared."""

    def send(submissions: Sequence[Submission]) -> Generator[Outcome, None, None]:
        """Send `submissions` in their order; an iterator over their outcomes, in that order.

        Without a queue to go on with the rest, the first outcome that is not `accepted` ends
        sending: all that follow are `unsent`. Yields each outcome when it is known. Its
        ``close()`` ends sending at once. After that, and after an exception, `unsettled` has the
        outcomes that it did not yield.
        """

    def unsettled() -> list[Outcome]:
        """The outcomes that are known and that `send` did not yield.

        Some may repeat what it has yielded. A submission that has no outcome in either is in doubt.
        """

    def goes_on(outcomes: Sequence[Outcome]) -> bool:
        """True if, after these `outcomes` of all recipients, the queue goes on with the rest."""

    def finish() -> None:
        """Give the connection back after a commit. Never raises, never blocks."""

    def abort() -> None:
        """Give the connection back after an abort, or close it.

        Legal in every state, any number of times. Never raises, which would hide another error, and
        never blocks.
        """


class IQueue(Interface):
    """A durable store of mail. Shared by threads; works in a forked child."""

    name = Attribute("Printable name, such as ``sqlite:////var/lib/app/mail.db``; no secrets.")
    in_session = Attribute("True if mailers have to be bound to an SQLAlchemy session.")
    witnesses = Attribute("The `IWitness` es of the databases that its transactions change.")

    def bind(session: Any) -> IQueue:
        """The queue for a mailer that is bound to `session`, an SQLAlchemy session."""

    def begin(transaction: Any, transaction_manager: Any) -> IBatch:
        """Return an `IBatch` for the mail of `transaction`. Touches no database.

        `transaction` is None for mail that is sent now, without the application's transaction.
        """

    def close() -> None:
        """End all connections, once what is under way is done. The queue can be used again."""


class IBatch(Interface):
    """The mail of one transaction in a queue. Used by one thread.

    All of it becomes visible to workers together, if and only if the transaction commits. If the
    process dies before it has written how the transaction ended, the witnesses decide.

    What ends a batch can be called any number of times, and never raises. `abort`, `mark_unknown`
    and `release` never block.
    """

    def stage(
        rows: Sequence[StagedSubmission], resources: list[Any], timeout: float, late: bool = False
    ) -> None:
        """Hold `rows`, all that the transaction has so far, so that they survive a crash.

        Called several times, with more rows or with fewer. `resources` are the other data managers
        that take part. `timeout` is in seconds. `late` is True after `tpc_begin`: databases have
        begun their commit then, and their witnesses cannot note anything any more.

        Raises `QueueUnavailable` or `QueueFull`. No worker sees the rows yet.
        """

    def decide(last: bool, timeout: float) -> None:
        """Write that the transaction commits, in its vote and before anything is sent.

        Called only if no other data manager takes part: nobody else can tell later how it ended.
        (Others hold locks now, and they or their databases know.) With `last` nothing is sent after
        this, and the rows are published. Called again, with `last`, if no server took anything of
        what was sent, so that the queue has to go on with it all. Raises `QueueUnavailable`.
        """

    def revoke(known: KnownOutcomes, timeout: float) -> None:
        """Take back what `decide` wrote: the vote has failed after it. Never raises."""

    def finish(known: KnownOutcomes) -> None:
        """The transaction has committed: publish its mail, with the outcomes of what it sent.

        What cannot be written now, this process tries to write again while it lives.
        """

    def abort(known: KnownOutcomes) -> None:
        """The transaction was aborted, at any moment before `finish`: keep only what was sent."""

    def mark_unknown(known: KnownOutcomes) -> None:
        """The transaction failed after our vote, and may have committed: the witnesses decide."""

    def may_be_committed(error: BaseException | None) -> bool:
        """True if its rows may be committed, although the transaction has failed with `error`.

        They may if they are in a database that commits in its own vote, before ours.
        """

    def release() -> None:
        """Close what is still open: all others know by now that the transaction has failed."""


class IWitness(Interface):
    """Can say, after a crash, whether a transaction committed. One for each database."""

    name = Attribute("Printable name by which a batch remembers it: the same in every process.")

    def begin(transaction: Any, batch: int) -> None:
        """The first mail of `transaction` was handed in. Must not touch the network."""

    def note(transaction: Any, transaction_manager: Any, batch: int) -> Mapping[str, Any] | None:
        """Leave `batch` in the database, as a part of `transaction`; what to remember of that.

        Called before the commit, and again if something has changed since. Returns a value for
        JSON that `ask` will get, or None if the database takes no part in the transaction, so that
        it will not be asked.
        """

    def ask(batch: int, noted: Mapping[str, Any]) -> WitnessAnswer:
        """Whether the transaction of `batch` committed: a `WitnessAnswer`, yes, no or unknown.

        Asked only about batches whose process is dead or has given them up. A "no" must be
        certain: the mail is thrown away. Raises nothing; what keeps it from knowing is the reason
        of an unknown.
        """


class IMailDataManager(ISavepointDataManager):
    """Our one participant in a transaction: two-phase commit and nothing else.

    It serves all mailers, binds and transports of the transaction. Two managers would have one sort
    key: one would have sent when the server of the other refuses.
    """

    transaction_manager = Attribute("The transaction manager that its transaction is of.")

    def add(method: IDeliveryMethod, submission: Submission, listener: Listener) -> None:
        """Buffer `submission` until the commit, for `method`.

        When the commit has tried to send, `listener` gets the outcomes of all submissions that were
        added with it. Raises `TransactionClosed` where no commit will follow.
        """

    def pending(listener: Listener) -> tuple[Envelope, ...]:
        """The envelopes that were added with `listener`, and wait for the commit."""

    def notice() -> None:
        """Tell the listeners what is known of a commit that has begun and not ended, if any."""


class ITransport(Interface):
    """Carries envelopes out now. Threads share it."""

    name = Attribute("Printable name, such as ``smtp://mx.example.com:25``; without secrets.")
    asks_server = Attribute(
        "True if a preflight asks a server, so that direct delivery does one by default."
    )

    def open(
        *, timeout: float | None = None, wait: bool = True, fresh: bool = False, verify: bool = True
    ) -> ISession:
        """Return an `ISession`, new or kept.

        `timeout` limits the call, in seconds. If all connections are in use, the call waits for
        one; without `wait` it opens one beyond the limit. With `fresh` it uses no kept connection:
        the caller has just seen one fail. With `verify` the server has to answer first on a
        connection that was idle for long. Without it the caller's first command does that, and the
        caller knows what to do if no answer comes.

        Raises `TransportError`.
        """

    def close() -> None:
        """Close all idle connections."""


class ISession(Interface):
    """One open connection of a transport. Used by one thread at a time."""

    host = Attribute("Printable name of the server, program or folder.")
    fresh = Attribute("True until the session is closed for the first time.")
    restartable = Attribute(
        "True if the last `send` lost the connection before any content was sent: another session "
        "can send the same envelopes, and nothing arrives twice."
    )

    def preflight(
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """Ask the server about sender and recipients of `envelopes`, before anything irrevocable.

        Returns an `Outcome` for each recipient that the server does not take, in the order of the
        envelopes, with the `position` of its envelope; empty if the server takes all. With
        `keep_open`, the mail transaction of the first envelope stays open, so that sending it needs
        one round trip less. The session remembers what passed until the connection ends.

        The number of questions without a message is limited. Envelopes beyond it are not asked
        about (`Outcome.preflighted` is False) or, with `always`, refused with a reason that names
        the limit. `timeout` is in seconds, for the whole call.

        Raises `TransportError` if the connection fails or the server turns us away.
        """

    def send(
        envelopes: Iterable[Envelope],
        *,
        strict: bool = False,
        timeout: float | None = None,
        window: int | None = None,
        keep_untaken: bool = False,
        guard: Callable[[], object] | None = None,
    ) -> Iterator[Outcome]:
        """Send `envelopes`; an iterator of one `Outcome` per recipient, as they are known.

        `Outcome.position` says which of the envelopes it is about. The outcomes come in order
        unless there are several connections, or a server takes a message in parts.

        Network failures end in outcomes, not in errors. `strict` is for all or nothing: if a
        recipient is refused, its message is not sent to the others either, and the first outcome
        that is not `accepted` ends sending.

        `window` is the number of messages that may be on their way without an answer on one
        connection, and so be in doubt if it breaks. The default is 1 with `strict` and 16 without;
        a transport that was set up with a window uses that.

        `guard` is called immediately before anything leaves, and so before each final dot. An error
        that it raises ends sending at once. If it has a method ``rest``, that is called several
        times a second while nothing comes and no content is on its way; it may raise, too.

        With `keep_untaken`, envelopes that were not taken from the iterator when sending ends stay
        there, without an outcome; otherwise all are taken, and reported as unsent.

        If the iterator is closed or raises (KeyboardInterrupt), the connection is closed at once,
        never with a final dot, and `unsettled` has the outcomes of the rest.
        """

    def unsettled() -> list[Outcome]:
        """Outcomes of the last `send` that it did not hand out.

        A recipient may have a second outcome here: the first one is right.
        """

    def close(*, dirty: bool = False) -> None:
        """Give the connection back to its transport. Never blocks, never raises.

        `dirty` is True if a mail transaction may be open on it: the next user resets it first.
        """
