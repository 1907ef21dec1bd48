"""Prepare text of users, servers and programs for errors, logs and terminals.

The result is always printable and short: control characters, escape sequences, bidi controls and
lone surrogates are escaped. These functions call no method of a value, because its `repr` may lie,
fail, take long, or tell a secret.
"""

from __future__ import annotations

from typing import Any

#: The most characters of a bad value that an error repeats.
ECHO_LIMIT = 60
#: The most characters of an error: enough for a path, a reply and advice.
TEXT_LIMIT = 4000
#: Replaces the middle of a long text.
_GAP = " ... "


def printable(text: str) -> str:
    """`text` with every character escaped that could steer a terminal or a page."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown(text: object, limit: int = TEXT_LIMIT) -> str:
    """`text` for an error: printable, at most `limit` characters, without its middle if needed.

    The end stays, because errors say at their end what to do.
    """
    if not issubclass(type(text), str):
        return echo(text)
    text = str.__str__(text)
    # Cut before escaping, to limit the work, and after it, because escapes lengthen the text.
    return _cut(printable(_cut(text, limit)), limit)


def one_line(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text` on one line, `shown`. Any white space becomes a blank."""
    return shown(" ".join(text[: 2 * limit].split()), limit)


def echo(value: object) -> str:
    """Show a bad value in an error: escaped, at most `ECHO_LIMIT` characters of it."""
    kind = type(value)
    few = slice(ECHO_LIMIT)
    if issubclass(kind, (bytes, bytearray)):
        octets: Any = bytes if issubclass(kind, bytes) else bytearray
        return ascii(bytes(octets.__getitem__(value, few)))
    if not issubclass(kind, str):
        return f"a value of type {name_of(kind)}"
    text = str.__str__(value)
    return ascii(text[few]) + ("..." if len(text) > ECHO_LIMIT else "")


def name_of(kind: type) -> str:
    """The name of a type, `shown`, without asking its metaclass."""
    return shown(type.__dict__["__name__"].__get__(kind), ECHO_LIMIT)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = limit // 3
    return text[: limit - end - len(_GAP)] + _GAP + text[-end:]
