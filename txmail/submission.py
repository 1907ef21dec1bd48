"""What a transaction holds of one `send` or `enqueue`: an envelope, and what was said of it.

The call makes a `Submission`, and nothing changes it. A `StagedSubmission` is what a queue is asked
to write of it before the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum

from .address import plain_text
from .common.ascii_text import ascii_lower
from .envelope import Envelope
from .exceptions import InvalidMessage
from .outcome import Outcome

#: Characters of an idempotency key.
MAX_KEY = 255


class Priority(IntEnum):
    """Which mail goes first. In a database it is the number."""

    HIGH = 0
    NORMAL = 1
    BULK = 2


#: by the names that `enqueue` knows
PRIORITIES = {ascii_lower(member.name): member for member in Priority}


@dataclass(frozen=True, slots=True)
class Options:
    """How an envelope is to be queued. Made by `options`, which checks."""

    priority: Priority = Priority.NORMAL
    #: not sent before this; aware
    not_before: datetime | None = None
    #: not tried any more from here on; aware
    expires: datetime | None = None
    #: of all messages with one key, the first that is committed is sent
    idempotency_key: str | None = None
    #: False if no worker need be told: it will find the mail when it looks the next time
    wake: bool = True


DEFAULT = Options()


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """One envelope of a transaction. Two calls with one envelope are two submissions."""

    envelope: Envelope
    options: Options = DEFAULT


@dataclass(frozen=True, slots=True, eq=False)
class StagedSubmission:
    """What a queue writes of a submission before the transaction commits."""

    submission: Submission
    #: True if the transaction sends it itself: should the process die meanwhile, it is in doubt
    begun: bool = False
    #: what is known of its recipients by now, if anything
    outcomes: Sequence[Outcome] = field(default=())


#: Gets the outcomes of one mailer's submissions.
Listener = Callable[[tuple[Outcome, ...]], object]
#: Submissions, each with what is known of its recipients: an outcome for each.
KnownOutcomes = Sequence[tuple[Submission, Sequence[Outcome]]]


def options(
    *,
    priority: str = "normal",
    not_before: datetime | None = None,
    expires: datetime | None = None,
    idempotency_key: str | None = None,
    wake: bool = True,
    now: datetime | None = None,
) -> Options:
    """The `Options` that the arguments of `enqueue` ask for.

    Raises `InvalidMessage`, naming the argument that was wrong. `now` is for tests.
    """
    priority, key = plain_text(priority), plain_text(idempotency_key)
    chosen = PRIORITIES.get(priority) if isinstance(priority, str) else None
    if chosen is None:
        raise InvalidMessage(
            f"one of {', '.join(PRIORITIES)} is needed", field="priority", value=priority
        )
    for name, moment in (("not_before", not_before), ("expires", expires)):
        _check_time(name, moment)
    if expires is not None:
        if expires <= (now or datetime.now(UTC)):
            raise InvalidMessage("it is in the past", field="expires", value=_written(expires))
        if not_before is not None and expires <= not_before:
            raise InvalidMessage(
                "it is not after not_before", field="expires", value=_written(expires)
            )
    _check_key(key)
    return Options(chosen, not_before, expires, key, bool(wake))


def _check_time(name: str, moment: datetime | None) -> None:
    if moment is None:
        return
    if not isinstance(moment, datetime):
        raise InvalidMessage("a datetime is needed", field=name, value=moment)
    if moment.utcoffset() is None:
        raise InvalidMessage(
            "a datetime with a time zone is needed, such as datetime.now(UTC)",
            field=name,
            value=_written(moment),
        )


def _written(moment: datetime) -> str:
    # Not by a method of a type that is derived from it.
    return datetime.isoformat(moment, " ")


def _check_key(key: str | None) -> None:
    if key is None:
        return
    if not isinstance(key, str) or not key:
        raise InvalidMessage("a string is needed", field="idempotency_key", value=key)
    if len(key) > MAX_KEY:
        problem = f"it is longer than {MAX_KEY} characters"
        raise InvalidMessage(problem, field="idempotency_key", value=key)
    if not key.isprintable():
        problem = "it has characters that cannot be printed"
        raise InvalidMessage(problem, field="idempotency_key", value=key)
