"""Claimed deliveries as what a worker sends: a message, for those of its recipients that are due.

What cannot be read is to fail, and nothing else suffers from it: anybody can write to the tables.
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
#: As many tries as the column can count.
MAX_ATTEMPTS = 2**15 - 1
#: Octets of a content that is read with all else: dozens of them may wait in memory at once.
SMALL = 64 * 1024

#: What could not be read: the delivery, the token it is held by, and what becomes of it.
Unreadable = tuple[int, int, Settlement]

# The content as it comes: what is none must not keep others from being read.
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

#: Of a claimed delivery.
COLUMNS = (
    *("id", "message", "recipient", "priority", "attempts", "expires"),
    *("since", "code", "reply"),
)
_PRIORITY_AND_ID = itemgetter(COLUMNS.index("priority"), COLUMNS.index("id"))
#: What those have in common that travel together.
_TOGETHER = itemgetter(*map(COLUMNS.index, ("priority", "message", "expires")))


@dataclass(slots=True, eq=False)
class ClaimedMessage:
    """One message for those of its recipients that are due.

    Many wait at once: a content that is not `SMALL` is there only from `load` to `unload`.
    """

    #: the deliveries, in the order of the envelope's recipients
    ids: tuple[int, ...]
    #: tries before this one
    attempts: tuple[int, ...]
    #: milliseconds since 1970 since when its route had no use for it, and the last reply
    since: tuple[int | None, ...]
    before: tuple[str, ...]
    #: what is to be sent; its content is empty unless it is `loaded`
    envelope: Envelope
    priority: int
    #: milliseconds since 1970: when it was enqueued, and when nobody wants it any more
    created: int
    expires: int | None
    token: int
    message: int
    #: octets of the content
    size: int
    #: True if the content is there
    loaded: bool
    #: where the worker has put it
    lane: Any = None

    def only(self, places: Sequence[int]) -> ClaimedMessage:
        """The same for those of its recipients who have these places."""
        return replace(
            self,
            ids=tuple(self.ids[place] for place in places),
            attempts=tuple(self.attempts[place] for place in places),
            since=tuple(self.since[place] for place in places),
            before=tuple(self.before[place] for place in places),
            envelope=self.envelope.only([self.envelope.recipients[place] for place in places]),
        )

    def fill(self, found: Any) -> None:
        """`found` has the content and its digest. Raises `FieldError` if it is none."""
        if found is None:
            raise FieldError("its message is missing")
        self.envelope = self.envelope.with_content(checked(found.content, found.digest))
        self.loaded = True

    def unload(self) -> None:
        """The content is not needed any more."""
        if self.size > SMALL:
            self.envelope = self.envelope.with_content(b"")
            self.loaded = False


def read(
    connection: sa.Connection, found: Sequence[Any], token: int
) -> tuple[list[ClaimedMessage], list[Unreadable]]:
    """The messages of claimed deliveries, most urgent first, in the order of their ids.

    Without large contents, which `load` reads; and what is to be settled of those that cannot be
    read.
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
    """Raises `FieldError`, TypeError or ValueError for what cannot be read."""
    if found is None:
        raise FieldError("its message is missing")
    number, sender, created, octets, content, digest = found
    ids, _, recipients, priorities, attempts, expires, since, codes, replies = zip(
        *rows, strict=True
    )
    for tries in attempts:
        if not isinstance(tries, int) or not 0 <= tries < MAX_ATTEMPTS:
            raise FieldError("the number of its tries is none")
    # All have the same end.
    if not isinstance(created, int) or not isinstance(expires[0], int | None):
        raise FieldError("a time is none")
    small = content is not None
    envelope = Envelope(sender, recipients, checked(content, digest) if small else b"")
    if len(envelope.recipients) != len(rows):
        raise FieldError("a recipient is there twice")
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
    """Those of `rows` that can be read, each for itself; the others are to fail."""
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
    """Read the contents of `claimed` that are not there; what is to be settled if there is none."""
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
