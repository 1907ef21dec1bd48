"""Text of users, servers and programs as it stands in errors, logs and on terminals.

What is shown is printable and short, whatever was handed in: no control character, escape sequence,
bidi control or lone surrogate stays as it is. No method of a value is called for it, because a
`repr` may lie, fail, take long, or tell a secret.
"""

from __future__ import annotations

from typing import Any

#: How much of a bad value an error repeats, in characters.
ECHO_LIMIT = 60
#: How long the text of an error is at most: a path, a reply and what to do fit into it.
TEXT_LIMIT = 4000
#: Stands where the middle of a text was left out.
_GAP = " ... "


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal or a page escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown(text: object, limit: int = TEXT_LIMIT) -> str:
    """`text` as an error has it: printable, and of a long one both ends, `limit` characters.

    The end stays, because errors say last what to do.
    """
    if not issubclass(type(text), str):
        return echo(text)
    text = str.__str__(text)
    # Escapes make it longer: so it is cut before, for the work, and once more behind.
    return _cut(printable(_cut(text, limit)), limit)


def one_line(text: str, limit: int = TEXT_LIMIT) -> str:
    """What others say in several lines, as one, `shown`. Any white space is a blank."""
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
    """The name of a type, `shown`; a metaclass has no say in it."""
    return shown(type.__dict__["__name__"].__get__(kind), ECHO_LIMIT)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = limit // 3
    return text[: limit - end - len(_GAP)] + _GAP + text[-end:]
