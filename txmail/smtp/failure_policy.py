"""Says what one reply, or the lack of one, means for a message. No I/O.

The policy is a table, ``failures.txt`` beside this file, whose head says how to read it. The most
exact row of a stage decides: a code with its enhanced status code (RFC 3463), then the code, then
its class. So an unknown 4yz defers, and an unknown 5yz fails for the scope of its stage. A reply
without a row (a 2yz or 3yz that has no place there) is the route's fault. Only a complete,
well-formed 5yz about this recipient or message is permanent.

A stage of the table is a `Step`, or another moment such as "content" or "idle reuse".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

from ..outcome import Action, Scope, Status
from ..reply import Reply


class Step(StrEnum):
    """A step of the dialogue: the command that a reply answers."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
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
    """The meaning of a reply or an event: status, scope, and what to do."""

    status: Status
    scope: Scope
    action: Action


@cache
def _verdict(status: str, scope: str, action: str) -> Verdict:
    """The one verdict of these words, so that verdicts can be compared with ``is``."""
    return Verdict(Status(status), Scope(scope), Action(action))


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    stages: tuple[str, ...]
    #: the replies of the row, as the table has them; none for an event
    replies: tuple[str, ...]
    #: the event of the row; empty for replies
    event: str
    verdict: Verdict
    why: str


#: A code or a class of codes, perhaps with an enhanced status code that may end in x.
_COLUMN = re.compile("=+", re.ASCII)
_REPLY = re.compile(
    r"[2-5](?:[0-9]{2}|xx)(?: [245]\.(?:x\.x|[0-9]{1,3}\.(?:x|[0-9]{1,3})))?", re.ASCII
)


def _read(text: str) -> Iterator[Row]:
    """The rows of a reStructuredText "simple table", with any text before it."""
    _, border, rest = text[text.index("\n==") :].split("\n", 2)
    starts = [column.start() for column in _COLUMN.finditer(border)]
    slices = [slice(*pair) for pair in zip(starts, [*starts[1:], None], strict=True)]
    _, rows, _ = rest.split(border)
    for line in rows.strip("\n").split("\n"):
        stages, what, status, scope, action, why = (line[cell].strip(" ") for cell in slices)
        replies = tuple(what.split(", "))
        if not all(_REPLY.fullmatch(reply) for reply in replies):
            replies = ()
        event = "" if replies else what
        verdict = _verdict(status, scope, action)
        yield Row(tuple(stages.split(", ")), replies, event, verdict, why)


#: The whole table.
TABLE = tuple(_read(files(__package__).joinpath("failures.txt").read_text("utf-8")))


def _each(table: Iterable[Row], *, events: bool) -> dict[tuple[str, str], Verdict]:
    """The verdicts, by stage and reply or event. Raises ValueError for two on the same."""
    found: dict[tuple[str, str], Verdict] = {}
    for row in table:
        for stage in row.stages:
            for what in (row.event,) if events else row.replies:
                if what and found.setdefault((stage, what), row.verdict) is not row.verdict:
                    raise ValueError(f"two verdicts on {what} at {stage}")
    return found


_EVENTS = _each(TABLE, events=True)
_REPLIES = _each(TABLE, events=False)

ACCEPTED = _REPLIES[Step.FINAL, "2xx"]
IN_DOUBT = _EVENTS[Step.FINAL, "EOF"]
#: the connection ended before the final dot of a message whose content was on its way
CUT_SHORT = _EVENTS["content", "connection lost before the final dot"]
#: nothing of the message was sent
UNSENT = _EVENTS[Step.MAIL, "time-out"]
#: known here to be impossible: too large, SMTPUTF8 or 8BITMIME needed and not offered
UNSENDABLE = _EVENTS["local", "SMTPUTF8 not offered"]
#: not asked about although ``preflight=always``, because of a limit
NOT_ASKED = _verdict("unsent", "message", "fail")
#: SMTPUTF8 is needed, and the server knows HELO only
NEEDS_EHLO = _EVENTS[Step.EHLO, "500, 502 or 504, SMTPUTF8 needed"]
#: too many recipients at once: the rest goes at once, in the next mail transaction
SPLIT = _REPLIES[Step.RCPT, "452 4.5.3"]
#: a recipient that cannot be taken now
DEFER_RECIPIENT = _REPLIES[Step.RCPT, "4xx"]
#: a reply that has no place where it came
_OUT_OF_PLACE = _verdict("deferred", "route", "defer_route")
#: stages and codes of which an enhanced status code may say more
_REFINED = {(stage, what[:3]) for stage, what in _REPLIES if " " in what}


def judge(step: Step, reply: Reply) -> Verdict:
    """The verdict on a complete, well-formed `reply` at `step`."""
    if reply.code == 250:
        return _plain(step, 250)
    if (step, str(reply.code)) in _REFINED and (status := reply.enhanced) is not None:
        for detail in (f"{status}", f"{status.klass}.{status.subject}.x", f"{status.klass}.x.x"):
            verdict = _REPLIES.get((step, f"{reply.code} {detail}"))
            if verdict is not None:
                return verdict
    return _plain(step, reply.code)


@cache
def _plain(step: Step, code: int) -> Verdict:
    """The verdict on a reply by its code alone."""
    of_class = _REPLIES.get((step, f"{code // 100}xx"), _OUT_OF_PLACE)
    return _REPLIES.get((step, str(code)), of_class)


def concerns_connection(step: Step, reply: Reply) -> bool:
    """True if `reply` may be about a connection that has carried a message, and nothing else.

    Servers limit the messages of one connection, and say so with any reply to the next MAIL or
    DATA. A reply that names an address, a mailbox, the size or the content is not about the
    connection; a 5yz to RCPT is always about the recipient.
    """
    status = reply.enhanced
    if step is Step.RCPT:
        return reply.temporary and (status is None or status.subject != 2)
    if step not in (Step.MAIL, Step.DATA) or not (reply.temporary or reply.permanent):
        return False
    if reply.temporary or status is None:
        return True
    return status.subject not in (1, 2, 6) and (status.subject, status.detail) != (3, 4)
