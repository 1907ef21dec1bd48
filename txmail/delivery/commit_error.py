"""The error that a commit raises, and the note on an error that is not ours."""

from __future__ import annotations

from collections.abc import Sequence

from ..common.logs import quiet_logger
from ..exceptions import (
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    QueueUnavailable,
    SchemaError,
    TransientDeliveryUnavailable,
    TransientQueueUnavailable,
    TxmailError,
)
from ..outcome import Action, Outcome, Status
from .ending import MAYBE_COMMITTED
from .report import Line

log = quiet_logger("txmail")

#: The beginning of the note that says what became of the mail, on an error that is not ours.
NOTE = "while sending mail: "


def delivery_error(lines: Sequence[Line], *, databases_may_be_committed: bool) -> DeliveryError:
    """The error for `lines` that do not permit a commit.

    It is `PartialDelivery` if anything was accepted or is in doubt, else `DeliveryRefused` if
    anything was refused for good, else `DeliveryUnavailable`: as a `TransientError` if all delivery
    methods ask for that and no person has to act first.
    """
    outcomes = _outcomes(lines)
    statuses = {o.status for o in outcomes}
    kind: type[DeliveryError] = DeliveryUnavailable
    if statuses & {Status.ACCEPTED, Status.IN_DOUBT}:
        kind = PartialDelivery
    elif Status.FAILED in statuses or any(o.action is Action.FAIL for o in outcomes):
        kind = DeliveryRefused
    elif _is_transient(lines) and not any(o.action is Action.STOP_ROUTE for o in outcomes):
        kind = TransientDeliveryUnavailable
    bad = [o for o in outcomes if not o.permits_commit] or list(outcomes)
    decisive = [o for o in bad if o.status is not Status.UNSENT or o.action is Action.FAIL] or bad
    problem = f"{decisive[0]}" + (f" and {len(decisive) - 1} more" if decisive[1:] else "")
    return kind(problem, outcomes, databases_may_be_committed=databases_may_be_committed)


def queue_error(
    error: QueueUnavailable | SchemaError, lines: Sequence[Line]
) -> QueueUnavailable | SchemaError:
    """`error` of a queue, with the outcomes of a transaction of which nothing was sent."""
    kind = type(error)
    if kind is QueueUnavailable and _is_transient(lines):
        kind = TransientQueueUnavailable
    return kind(str(error), _outcomes(lines))


def note(error: BaseException, lines: Sequence[Line]) -> None:
    """Write on `error`, once, and into the log, what became of the mail."""
    if any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
        return
    text = NOTE + "; ".join(str(o) for o in _outcomes(lines))
    error.add_note(text)
    log.error("interrupted %s (%s)", text, type(error).__name__)


def note_unless_told(error: BaseException, lines: Sequence[Line]) -> None:
    """`note` on an error that does not tell what became of the mail, if that is not obvious.

    It is obvious after an `Exception` if nothing is out: the mail is gone with the transaction.
    """
    if isinstance(error, TxmailError):
        return
    if not isinstance(error, Exception) or any(map(_is_unsure, _outcomes(lines))):
        note(error, lines)


def _is_unsure(outcome: Outcome) -> bool:
    """True if mail of a transaction that has failed may be out."""
    return outcome.status in (Status.ACCEPTED, Status.IN_DOUBT) or outcome.reason == MAYBE_COMMITTED


def _outcomes(lines: Sequence[Line]) -> tuple[Outcome, ...]:
    """All outcomes, in call order."""
    return tuple(outcome for line in lines for outcome in line.outcomes)


def _is_transient(lines: Sequence[Line]) -> bool:
    """True if all delivery methods want temporary errors as `TransientError` s."""
    return all(line.buffered.method.transient for line in lines)
