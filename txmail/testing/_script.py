"""The script of a scripted server: actions that replace its own replies, and their rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from ..common.shown import echo

#: Verbs of rules: the commands, ``connect`` for the greeting, and ``.`` for the final reply.
VERBS = frozenset(
    {"connect", "EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", ".", "BDAT", "RSET"}
    | {"NOOP", "VRFY", "QUIT"}
)

_REPLY = re.compile(r"[2-5][0-9][0-9](?:[ -]|\Z)", re.ASCII)


class Signal(Enum):
    """Actions that are not replies."""

    #: end the connection in an orderly way (FIN)
    CLOSE = "CLOSE"
    #: end the connection with a reset (RST): replies that are still under way may be lost
    RESET = "RESET"
    #: keep the connection open and send nothing more, until the server stops
    HANG = "HANG"
    #: carry the command out, and do not answer
    NO_REPLY = "NO_REPLY"

    def __repr__(self) -> str:
        return self.value


CLOSE = Signal.CLOSE
RESET = Signal.RESET
HANG = Signal.HANG
NO_REPLY = Signal.NO_REPLY


@dataclass(frozen=True, slots=True)
class Callback:
    """Run `function`, without arguments, in the thread of the connection; then go on.

    Other connections do not wait for it. Its result is not used. It has to return:
    `ScriptedServer.stop` waits for it.
    """

    function: Callable[[], object]


Step = str | bytes | Signal | Callback


@dataclass(frozen=True, slots=True)
class Sequence:
    """Several steps, one after the other: the result of `then`."""

    steps: tuple[Step, ...]


Action = Step | Sequence


def then(*actions: Action) -> Sequence:
    """Do one action after the other, as in ``then("421 4.3.2 shutting down", CLOSE)``.

    If neither a reply nor a `Signal` is among them, the server's own reply comes last.
    """
    return Sequence(tuple(step for action in actions for step in steps_of(action)))


def steps_of(action: Action) -> tuple[Step, ...]:
    """The steps of an action. Raises TypeError or ValueError for anything else."""
    if isinstance(action, Sequence):
        return action.steps
    if isinstance(action, str) and not _REPLY.match(action):
        raise ValueError(f"not a reply: {echo(action)} (for a malformed one, give octets)")
    if not isinstance(action, (str, bytes, Signal, Callback)):
        raise TypeError(f"not an action: {echo(action)}")
    return (action,)


def encode_reply(text: str) -> bytes:
    r"""The octets of a reply; ``"250 one\ntwo"`` is a reply of two lines."""
    code = text[:3]
    lines = [_text_of(line, code) for line in text.split("\n")]
    marks = ["-"] * (len(lines) - 1) + [" "]
    return "".join(
        f"{code}{mark}{line}\r\n" for mark, line in zip(marks, lines, strict=True)
    ).encode("utf-8", "surrogateescape")


def _text_of(line: str, code: str) -> str:
    """A reply line without the code, which only the first line has to have."""
    has_code = line == code or line.startswith((code + " ", code + "-"))
    return line[4:] if has_code else line


@dataclass(slots=True)
class Rule:
    """One call of `ScriptedServer.on`."""

    verb: str
    steps: tuple[Step, ...]
    matching: str = ""
    after: int = 0
    times: int | None = 1
    connection: int | None = None
    #: the number of matches
    seen: int = field(default=0, init=False)
    #: the number of uses
    used: int = field(default=0, init=False)

    def matches(self, verb: str, argument: str, content: bytes, connection: int) -> bool:
        """True if this rule is about the command. Upper and lower case do not matter."""
        if verb != self.verb or self.connection not in (None, connection):
            return False
        return (
            self.matching.casefold() in argument.casefold()
            or self.matching.encode("utf-8", "surrogateescape") in content
        )

    @property
    def due(self) -> bool:
        """True if the match that was counted last uses this rule."""
        return self.seen > self.after and (self.times is None or self.used < self.times)


class Script:
    """The rules, in their order. The first one that is due is used.

    It has no lock: the server calls it under its own.
    """

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> None:
        """Add `rule`; raises ValueError for a verb that the server does not know."""
        if rule.verb not in VERBS:
            raise ValueError(f"not one of {', '.join(sorted(VERBS))}: {echo(rule.verb)}")
        self._rules.append(rule)

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    def choose(
        self, verb: str, argument: str, content: bytes, connection: int
    ) -> tuple[Step, ...] | None:
        """The steps for a command, or None if no rule is due. Every matching rule counts it."""
        chosen = None
        for rule in self._matching(verb, argument, content, connection):
            rule.seen += 1
            if chosen is None and rule.due:
                rule.used += 1
                chosen = rule.steps
        return chosen

    def _matching(
        self, verb: str, argument: str, content: bytes, connection: int
    ) -> Iterator[Rule]:
        return (r for r in self._rules if r.matches(verb, argument, content, connection))
