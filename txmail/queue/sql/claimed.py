"""Claimed deliveries as a worker sends them: a message with its recipients that are due.

A delivery that cannot be read fails, and does not hold up others: a person or a broken disk may
have written to the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from ...envelope import Envelope
from ...exceptions import FieldError
from ..digest import DamagedContent, checked
from ..retry import MAX_REPLY, Settlement
from ..schema import message
from ..states import State

#: Recipients of one message that travel in one SMTP transaction.
MAX_RECIPIENTS = 100
#: The largest number of tries that the column can hold.
MAX_ATTEMPTS = 2**15 - 1
#: Octets of a small content, which is read with its message: dozens of them wait in memory.
SMALL = 64 * 1024

#: A delivery that cannot be read: its id, the token that holds it, and its new values.
Unreadable = tuple[int, int, Settlement]

# The content as the driver returns it: a value of a wrong type must not hold up others.
_content: Any = sa.type_coerce(message.c.content, sa.types.NullType())
_digest: Any = sa.type_coerce(message.c.digest, sa.types.NullType())
_octets: Any = sa.func.length(message.c.content)
_ids: Any = message.c.id.in_(sa.bindparam("ids", expanding=True))
_MESSAGES = sa.select(
    message.c.id,
    message.c.sender,
    message.c.created,
    _octets.label("octets"),
    sa.case((_octets <= SMALL, _content)).label("content"),
    _digest.label("digest"),
).where(_ids)
_CONTENTS = sa.select(message.c.id, _content.label("content"), _digest.label("digest")).where(_ids)

#: The columns of a claimed delivery that are read.
COLUMNS = (
    *("id", "message", "recipient", "priority", "attempts", "expires"),
    *("since", "code", "reply"),
)
_PRIORITY_AND_ID = itemgetter(COLUMNS.index("priority"), COLUMNS.index("id"))
#: Deliveries for which these are equal travel together.
_TOGETHER = itemgetter(*map(COLUMNS.index, ("priority", "message", "expires")))


@dataclass(slots=True, eq=False)
class ClaimedMessage:
    """One message with its recipients that are due.

    Many of them wait in memory at once, so a large content is there only from `load` to `unload`.
    """

    #: the ids of the deliveries, in the order of the envelope's recipients
    ids: tuple[int, ...]
    #: tries before this one
    attempts: tuple[int, ...]
    #: milliseconds since 1970 since when its route had no use for it, and the last reply
    since: tuple[int | None, ...]
    before: tuple[str, ...]
    #: what the worker sends; its content is empty unless it is `loaded`
    envelope: Envelope
    priority: int
    #: milliseconds since 1970: when it was enqueued, and its end
    created: int
    expires: int | None
    token: int
    message: int
    #: octets of the content
    size: int
    #: True if the content is there
    loaded: bool
    #: the lane of the worker that sends it
    lane: Any = None

    def only(self, places: Sequence[int]) -> ClaimedMessage:
        """The same message for the recipients at these places."""
        return replace(
            self,
            ids=tuple(self.ids[place] for place in places),
            attempts=tuple(self.attempts[place] for place in places),
            since=tuple(self.since[place] for place in places),
            before=tuple(self.before[place] for place in places),
            envelope=self.envelope.only([self.envelope.recipients[place] for place in places]),
        )

    def fill(self, found: Any) -> None:
        """Take the content of the row `found`. Raises `FieldError` if it is missing or damaged."""
        if found is None:
            raise FieldError("its message is missing")
        self.envelope = self.envelope.with_content(checked(found.content, found.digest))
        self.loaded = True

    def unload(self) -> None:
        """Drop the content, if it is large: it is not needed any more."""
        if self.size > SMALL:
            self.envelope = self.envelope.with_content(b"")
            self.loaded = False


def read(
    connection: sa.Connection, found: Sequence[Any], token: int
) -> tuple[list[ClaimedMessage], list[Unreadable]]:
    """The messages of claimed deliveries, the most urgent first, in the order of their ids.

    `load` reads large contents. The second list has the deliveries that cannot be read.
    """
    unreadable: list[Unreadable] = []
    if not found:
        return [], unreadable
    together: dict[tuple[int, int, int | None], list[Any]] = {}
    for row in sorted(found, key=_PRIORITY_AND_ID):
        together.setdefault(_TOGETHER(row), []).append(row)
    ids = list({number for _, number, _ in together})
    messages = {row.id: row for row in connection.execute(_MESSAGES, {"ids": ids})}
    claimed: list[ClaimedMessage] = []
    for (_, number, _), rows in together.items():
        for start in range(0, len(rows), MAX_RECIPIENTS):
            some = rows[start : start + MAX_RECIPIENTS]
            try:
                claimed.append(_claimed(some, messages.get(number), token))
            except (FieldError, TypeError, ValueError):
                claimed += _readable(some, messages, token, unreadable)
    return claimed, unreadable


def _claimed(rows: Sequence[Any], found: Any, token: int) -> ClaimedMessage:
    """The message of `rows`. Raises `FieldError`, TypeError or ValueError if it is damaged."""
    if found is None:
        raise FieldError("its message is missing")
    number, sender, created, octets, content, digest = found
    ids, _, recipients, priorities, attempts, expires, since, codes, replies = zip(
        *rows, strict=True
    )
    for tries in attempts:
        if not isinstance(tries, int) or not 0 <= tries < MAX_ATTEMPTS:
            raise FieldError("the number of its tries is not valid")
    # All have the same end.
    if not isinstance(created, int) or not isinstance(expires[0], int | None):
        raise FieldError("a time is not valid")
    small = content is not None
    envelope = Envelope(sender, recipients, checked(content, digest) if small else b"")
    if len(envelope.recipients) != len(rows):
        raise FieldError("it has a recipient twice")
    return ClaimedMessage(
        ids,
        attempts,
        tuple(moment if isinstance(moment, int) else None for moment in since),
        tuple(
            said if code is not None and isinstance(said, str) else ""
            for code, said in zip(codes, replies, strict=True)
        ),
        envelope,
        priorities[0],
        created,
        expires[0],
        token,
        number,
        octets or 0,
        small,
    )


def _readable(
    rows: Sequence[Any], messages: Any, token: int, unreadable: list[Unreadable]
) -> list[ClaimedMessage]:
    """The messages of those `rows` that can be read, one each; others go into `unreadable`."""
    claimed: list[ClaimedMessage] = []
    for row in rows:
        try:
            claimed.append(_claimed([row], messages.get(row.message), token))
        except (FieldError, TypeError, ValueError) as error:
            unreadable.append((row.id, token, _unreadable(error)))
    return claimed


def _unreadable(error: Exception) -> Settlement:
    damaged = isinstance(error, DamagedContent)
    why = str(error) if damaged else f"it cannot be read: {error}"[:MAX_REPLY]
    return Settlement(State.FAILED, None, 0, False, None, why)


def load(connection: sa.Connection, claimed: Sequence[ClaimedMessage]) -> list[Unreadable]:
    """Read the contents that are not loaded; the deliveries whose content cannot be read."""
    failed: list[Unreadable] = []
    lacking = [one for one in claimed if not one.loaded]
    if not lacking:
        return failed
    ids = list({one.message for one in lacking})
    contents = {row.id: row for row in connection.execute(_CONTENTS, {"ids": ids})}
    for one in lacking:
        try:
            one.fill(contents.get(one.message))
        except FieldError as error:
            failed += [(id_, one.token, _unreadable(error)) for id_ in one.ids]
    return failed
