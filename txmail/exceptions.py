"""Every error txmail raises, on one screen.

::

    TxmailError
      FieldError                 bad input; names the field (also a ValueError)
        ConfigurationError       a setting or a URL
        AddressError             an address
        MessageError             a message
          InvalidMessage         something is missing or does not fit together
            BadHeaders           a header name or value that cannot be sent
          TemplateError          a template, or fields that do not fit it
          MessageTooLarge        beyond one of our own bounds
      TransactionClosed          send() where no commit will follow
      TransportError             a connection failed; says whether to try again
      DeliveryError              raised by commit(); carries every outcome
        DeliveryRefused          permanent; nothing went out
        DeliveryUnavailable      temporary; nothing went out
          QueueUnavailable       the queue cannot be reached, or does not do what it is told
            QueueFull            it has no room for more
            QueueInDoubt         nobody knows whether it has the mail (also a PartialDelivery)
        PartialDelivery          something went out, or is in doubt
      SchemaError                a queue whose tables are missing, or of another version
      IllegalMove                a delivery or a batch that may not come into the state asked for
    UnsentMailWarning            mail that was handed in and never committed (a UserWarning)

Errors never carry a password or the text of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transaction.interfaces import TransientError

from .common.shown import echo, shown

if TYPE_CHECKING:
    from .outcome import Outcome
    from .reply import Reply

#: How long a name of an argument, a header or a setting may be there.
FIELD_LIMIT = 400
_NO_VALUE: Any = object()


class TxmailError(Exception):
    """The root of all errors of this package. Its text is printable and short, see `shown`."""

    def __init__(self, problem: str = "") -> None:
        super().__init__(shown(problem))


class FieldError(TxmailError, ValueError):
    """Bad input. `field` names the argument, header or setting that was wrong."""

    field: str = ""

    def __init__(self, problem: str = "", *, field: str = "", value: object = _NO_VALUE) -> None:
        field = shown(field, FIELD_LIMIT)
        text = f"{field}: {problem}" if field else problem
        if value is not _NO_VALUE:
            text = f"{text}: {echo(value)}"
        super().__init__(text)
        self.field = field


class ConfigurationError(FieldError):
    """A setting or a URL that is unknown, unusable or not supported."""


class AddressError(FieldError):
    """An address that is not one (`txmail.address` has the grammar)."""


class MessageError(FieldError):
    """A message that cannot be sent as it is."""


class InvalidMessage(MessageError):
    """A message in which something is missing or does not fit together."""


class BadHeaders(InvalidMessage):
    """A header name or value that would not come out as the one header it is meant to be."""


class TemplateError(MessageError):
    """A template that cannot be read, or fields that it cannot be filled with.

    `field` is the part of the template, such as ``subject``, or the name of a field whose value is
    no plain data. `line` is where in the part it happened, from 1, and None where that is unknown.
    """

    line: int | None = None

    def __init__(
        self,
        problem: str = "",
        *,
        field: str = "",
        value: object = _NO_VALUE,
        line: int | None = None,
    ) -> None:
        if line is not None:
            problem = f"line {line}: {problem}"
        super().__init__(problem, field=field, value=value)
        self.line = line


class MessageTooLarge(MessageError):
    """A message beyond one of the bounds of `txmail.message` (octets, parts, nesting, headers)."""


class TransactionClosed(TxmailError, RuntimeError):
    """Mail was handed in where no commit will follow, so that it would silently never leave."""


class TransportError(TxmailError):
    """A route could not be used.

    `temporary`
        Another try may succeed (RFC 5321 section 4.2.1); otherwise a person has to act.
    `lost`
        An existing connection ended (EOF, reset, 421): a new one may serve at once.
    `reply`
        What the server said, if it said anything.
    """

    def __init__(
        self,
        problem: str,
        *,
        temporary: bool = True,
        lost: bool = False,
        reply: Reply | None = None,
    ) -> None:
        super().__init__(problem)
        self.temporary = temporary
        self.lost = lost
        self.reply = reply


class DeliveryError(TxmailError):
    """A commit failed because of its mail: the transaction was aborted.

    `outcomes`
        What became of every recipient of every message of the transaction, in call order.
    `databases_may_be_committed`
        True if a database that commits in its own vote (one-phase zope.sqlalchemy) had voted
        before the mail failed: its changes may be there although the transaction was aborted.
    """

    #: True if the same messages may be accepted later.
    temporary: bool = False

    def __init__(
        self,
        problem: str,
        outcomes: tuple[Outcome, ...] = (),
        *,
        databases_may_be_committed: bool = False,
    ) -> None:
        super().__init__(problem)
        self.outcomes = outcomes
        self.databases_may_be_committed = databases_may_be_committed

    @property
    def in_doubt(self) -> tuple[Outcome, ...]:
        """The outcomes of which nobody can say whether the next hop has the message."""
        return tuple(o for o in self.outcomes if o.status == "in_doubt")


class DeliveryRefused(DeliveryError):
    """A permanent refusal. Nothing was sent."""


class DeliveryUnavailable(DeliveryError):
    """The mail server could not be reached or asked to come back later. Nothing was sent."""

    temporary = True


class PartialDelivery(DeliveryError):
    """At least one message was accepted, or may have been, before sending failed."""


class TransientDeliveryUnavailable(DeliveryUnavailable, TransientError):
    """`DeliveryUnavailable` for mailers with ``transient=True``: `transaction` retries on it."""


class QueueUnavailable(DeliveryUnavailable):
    """The queue cannot be reached, is locked by others for too long, or fails.

    Nothing was sent, and nothing was acknowledged.
    """


class QueueFull(QueueUnavailable):
    """The disk or the queue is full. Nothing was sent, and nothing was acknowledged."""


class QueueInDoubt(PartialDelivery, QueueUnavailable):
    """Nobody knows whether the queue has the mail, and the transaction was aborted.

    The reply to the COMMIT that published it was lost, and the queue could not be asked within the
    budget. If the queue has it, this process takes back what no worker has begun with by the time
    the queue can be reached again; the rest is sent, and its batch says why. So this is never
    temporary: a second try may send a second copy.
    """

    temporary = False


class TransientQueueUnavailable(QueueUnavailable, TransientError):
    """`QueueUnavailable` for mailers with ``transient=True``: `transaction` retries on it."""


class SchemaError(TxmailError):
    """The tables of a queue are missing, or were made by another version of txmail.

    `outcomes`, if a commit failed because of it, are those of what was not sent.
    `outdated` is True if the tables were upgraded past this process: it has to be started again,
    with a newer txmail.
    """

    def __init__(
        self,
        problem: str = "",
        outcomes: tuple[Outcome, ...] = (),
        *,
        outdated: bool = False,
    ) -> None:
        super().__init__(problem)
        self.outcomes = outcomes
        self.outdated = outdated


class IllegalMove(TxmailError):
    """A delivery or batch is in a state from which it may not come into the one asked for."""


class UnsentMailWarning(TxmailError, UserWarning):
    """Mail was handed to a transaction that nobody has committed or aborted: it is not sent.

    `message_ids` are those of all its messages.
    """

    def __init__(self, problem: str = "", message_ids: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.message_ids = message_ids
