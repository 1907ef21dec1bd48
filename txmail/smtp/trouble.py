"""What a reply, or the lack of one, means: the failure policy, apart from the dialogue.

Read as a table. The first rule that fits the stage and the reply decides; within a stage enhanced
status codes (RFC 3463) come before basic codes. Unknown 4yz defers and unknown 5yz fails, for the
scope of its stage; anything else (a 2yz or 3yz where none belongs) is the route's fault. Only a
complete, well-formed 5yz about this recipient or message is permanent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..envelope import Action, Scope, Status
from ..reply import EnhancedStatus, Reply


class Stage(StrEnum):
    """Where in the dialogue we are: which command a reply answers."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    #: the reply to the final dot
    FINAL = "final dot"
    RSET = "RSET"
    NOOP = "NOOP"
    QUIT = "QUIT"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of it, what it is about, and what to do."""

    status: Status
    scope: Scope
    action: Action


ACCEPTED = Verdict(Status.ACCEPTED, Scope.MESSAGE, Action.DONE)
IN_DOUBT = Verdict(Status.IN_DOUBT, Scope.MESSAGE, Action.IN_DOUBT)
#: the connection ended before the final dot of a message whose content was on its way
CUT_SHORT = Verdict(Status.DEFERRED, Scope.ROUTE, Action.DEFER_ROUTE)
#: nothing of the message was sent
UNSENT = Verdict(Status.UNSENT, Scope.ROUTE, Action.DEFER_ROUTE)
#: known here to be impossible: too large, SMTPUTF8 or 8BITMIME needed and not offered
UNSENDABLE = Verdict(Status.FAILED, Scope.MESSAGE, Action.FAIL)

_DEFER_ROUTE = Verdict(Status.DEFERRED, Scope.ROUTE, Action.DEFER_ROUTE)
_STOP_ROUTE = Verdict(Status.DEFERRED, Scope.ROUTE, Action.STOP_ROUTE)
_DEFER = Verdict(Status.DEFERRED, Scope.MESSAGE, Action.DEFER)
_FAIL = Verdict(Status.FAILED, Scope.MESSAGE, Action.FAIL)
DEFER_RECIPIENT = Verdict(Status.DEFERRED, Scope.RECIPIENT, Action.DEFER)
_FAIL_RECIPIENT = Verdict(Status.FAILED, Scope.RECIPIENT, Action.FAIL)
#: too many recipients at once: the rest goes in a mail transaction of its own
SPLIT = Verdict(Status.DEFERRED, Scope.RECIPIENT, Action.SPLIT)

_ANY_TRANSACTION = (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.FINAL)

#: (stages, codes, enhanced status codes, verdict). Of an enhanced status code the first two numbers
#: may do; None is "whatever it is", an empty tuple "there is none".
_RULES: tuple[tuple[tuple[Stage, ...], tuple[int, ...], tuple[str, ...] | None, Verdict], ...] = (
    # The rate we are allowed, and who we are: about us, not about the message.
    (_ANY_TRANSACTION, (421, 454), ("4.7.0",), _DEFER_ROUTE),
    (_ANY_TRANSACTION, (450, 451), ("4.7",), _DEFER_ROUTE),
    (_ANY_TRANSACTION, (550,), ("5.4.5",), _DEFER_ROUTE),
    ((Stage.MAIL,), (530,), None, _STOP_ROUTE),
    ((Stage.MAIL,), (421,), None, _DEFER_ROUTE),
    # Too many recipients at once is no refusal; a full mailbox may be emptied.
    ((Stage.RCPT,), (452, 552), ("4.5.3", "5.5.3"), SPLIT),
    ((Stage.RCPT,), (452, 552), ("4.2.2", "5.2.2"), DEFER_RECIPIENT),
    ((Stage.RCPT,), (452, 552), (), SPLIT),
)

_FALLBACK = {
    Stage.MAIL: (_DEFER, _FAIL),
    Stage.RCPT: (DEFER_RECIPIENT, _FAIL_RECIPIENT),
    Stage.DATA: (_DEFER, _FAIL),
    Stage.FINAL: (_DEFER, _FAIL),
}


def judge(stage: Stage, reply: Reply) -> Verdict:
    """The verdict of a complete, well-formed `reply` at `stage`."""
    if reply.positive and stage in (Stage.MAIL, Stage.RCPT, Stage.FINAL):
        return ACCEPTED
    status = reply.enhanced
    for stages, codes, details, verdict in _RULES:
        if stage in stages and reply.code in codes and _fits(details, status):
            return verdict
    temporary, permanent = _FALLBACK.get(stage, (_DEFER_ROUTE, _STOP_ROUTE))
    if reply.temporary:
        return temporary
    return permanent if reply.permanent else _DEFER_ROUTE


def _fits(details: tuple[str, ...] | None, status: EnhancedStatus | None) -> bool:
    if details is None:
        return True
    if status is None:
        return not details
    return str(status) in details or f"{status.klass}.{status.subject}" in details
