"""What was said on a connection, abbreviated for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ...common.ascii_text import is_digits

if TYPE_CHECKING:
    from ...testing import Connection

#: Of this many lines of one kind in a row, or fewer, each is shown.
_RUN = 2
#: Of a connection's messages, this many are shown at its beginning.
_MESSAGES = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said before the other one did."""

    #: ``C`` for us, ``S`` for the server, empty for a remark about both
    who: str
    lines: tuple[str, ...]
    #: how many messages ended in it
    messages: int = 0


def dialogue_of(connection: Connection) -> tuple[Turn, ...]:
    """The turns of `connection`, with content and repetitions left out and counted."""
    turns = list(_without_content(_exchanges(connection)))
    shown = [Turn(t.who, tuple(_without_runs(t.lines)), t.messages) for t in turns]
    return tuple(_without_middle(shown))


def moment_of(connection: Connection, verb: str) -> float:
    """When the server read the first command `verb`, as `time.monotonic` seconds.

    Raises ValueError if there was none.
    """
    for moment, who, octets in connection.octets:
        lines = octets.split(b"\r\n")
        if who == "C" and any(line.split(b" ")[0] == verb.encode("ascii") for line in lines):
            return moment
    raise ValueError(f"there was no {verb}")


def _exchanges(connection: Connection) -> Iterator[tuple[str, bytes]]:
    """Who said what, one after the other; what came in several reads is one."""
    for who, events in groupby(connection.octets, key=lambda event: event[1]):
        yield who, b"".join(octets for _, _, octets in events)


def _without_content(exchanges: Iterator[tuple[str, bytes]]) -> Iterator[Turn]:
    """Turns with each message as one line: RFC 5321 section 4.1.1.4 has content follow a 354."""
    in_content = False
    for who, octets in exchanges:
        lines: list[str] = []
        messages = 0
        if who == "C" and in_content:
            content, dot, octets = octets.partition(b"\r\n.\r\n")
            lines.append(f"(content, {len(content) + len(dot[:2])} octets)")
            if dot:
                lines.append(".")
                messages = 1
        lines += [line.decode("ascii", "backslashreplace") for line in octets.splitlines()]
        yield Turn(who, tuple(lines), messages)
        in_content = who == "S" and bool(lines) and lines[-1].startswith("354")


def _without_runs(lines: tuple[str, ...]) -> Iterator[str]:
    """The lines; of many with the same command, or the same code and text, the first and a count.

    The lines of one reply, which have a hyphen behind the code, are no repetition.
    """
    for _, group in groupby(lines, key=_kind):
        same = list(group)
        if len(same) <= _RUN:
            yield from same
        else:
            yield f"{same[0]}  ... and {len(same) - 1} more"


def _kind(line: str) -> str:
    return line if is_digits(line[:3]) else line.split(":")[0]


def _without_middle(turns: list[Turn]) -> Iterator[Turn]:
    """The turns without those between the first messages and the last one."""
    ends = [index for index, turn in enumerate(turns) if turn.messages]
    left_out = len(ends) - _MESSAGES - 1
    if left_out < 2:
        yield from turns
        return
    yield from turns[: ends[_MESSAGES]]
    yield Turn("", (f"... {left_out} more messages in the same way ...",))
    yield from turns[ends[-1] :]
