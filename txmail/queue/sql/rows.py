"""The rows of staged submissions: tuples of values in the driver's own types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from ...outcome import Status
from ...submission import StagedSubmission
from ..digest import digest_of
from ..retry import said
from ..states import State

#: The columns of the tuples that `message_rows` and `delivery_rows` yield.
MESSAGE_COLUMNS = (
    "id",
    "batch",
    "kind",
    "message_id",
    "sender",
    "created",
    "idempotency_key",
    "size",
    "content",
    "digest",
    "not_before",
)
DELIVERY_COLUMNS = (
    "id",
    "message",
    "recipient",
    "state",
    "priority",
    "due",
    "expires",
    "attempts",
    "begun",
    "duplicate",
    "changed",
    "code",
    "reply",
)


def message_rows(
    rows: Sequence[StagedSubmission], ids: Sequence[int], number: int, now_ms: int
) -> Iterator[tuple[Any, ...]]:
    """The rows of messages with these `ids`, in batch `number`."""
    for id_, row in zip(ids, rows, strict=True):
        envelope, not_before = row.submission.envelope, row.submission.options.not_before
        yield (
            id_,
            number,
            "plain",
            envelope.message_id,
            envelope.sender,
            now_ms,
            row.submission.options.idempotency_key,
            envelope.size,
            envelope.content,
            digest_of(envelope.content),
            None if not_before is None else _millis(not_before),
        )


def delivery_rows(
    rows: Sequence[StagedSubmission],
    messages: Sequence[int],
    ids: Sequence[int],
    state: State,
    now_ms: int,
) -> Iterator[tuple[Any, ...]]:
    """The rows of deliveries with these `ids`, one for each recipient of each of `messages`."""
    free = iter(ids)
    word = state.value
    for id_, row in zip(messages, rows, strict=True):
        options = row.submission.options
        due = now_ms if options.not_before is None else max(now_ms, _millis(options.not_before))
        expires = None if options.expires is None else _millis(options.expires)
        known = {o.recipient: said(o) for o in row.outcomes if o.status is not Status.ACCEPTED}
        for recipient in row.submission.envelope.recipients:
            code, reply = known.get(recipient, (None, None)) if known else (None, None)
            yield (
                next(free),
                id_,
                recipient,
                word,
                int(options.priority),
                due,
                expires,
                0,
                int(row.begun),
                0,
                now_ms,
                code,
                reply,
            )


def _millis(moment: datetime) -> int:
    """Milliseconds since 1970 of an aware `moment`."""
    return int(moment.timestamp() * 1000)
