"""Case, digits, blanks and lines of protocol text and of settings, by the rules of ASCII.

The methods of `str` follow Unicode: they turn U+017F and U+0131 into S and I, and U+212A and U+0130
into k and i; they know digits of sixty scripts, two dozen blanks, and line ends such as U+2028. In
a protocol none of these is a letter, a digit, a blank or a line end. So only this module calls
those methods on text. The methods of `bytes` know ASCII only and are safe.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)

_BLANKS = re.compile("[ \t]", re.ASCII)
_LINE = re.compile(r"[^\r\n]*+(?:\r\n?|\n)|[^\r\n]++", re.ASCII)
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_WORDS = re.compile(r"[^ \t\n\r\v\f]++", re.ASCII)
#: The white space that `bytes.strip` removes.
_WHITE = " \t\n\r\v\f"
#: The most digits of a number in an option or a setting: nine fit into 32 bits.
_DIGITS = 9


def ascii_lower(text: str) -> str:
    """`text` with its ASCII letters in lower case, and all others unchanged."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def ascii_upper(text: str) -> str:
    """`text` with its ASCII letters in upper case, and all others unchanged."""
    return text.upper() if text.isascii() else text.translate(_UPPER)


def ascii_strip(text: str) -> str:
    """`text` without ASCII white space at its ends."""
    return text.strip(_WHITE)


def ascii_split(text: str) -> list[str]:
    """The words of `text` between ASCII white space, line ends included."""
    return _WORDS.findall(text)


def ascii_words(text: str) -> list[str]:
    """The words of `text` between blanks and TABs only."""
    return [word for word in _BLANKS.split(text) if word]


def ascii_lines(text: str) -> list[str]:
    """The lines of `text` with their ends: CR LF, or CR or LF alone."""
    return _LINE.findall(text)


def is_digits(text: str) -> bool:
    """True if `text` is ASCII digits only, at least one."""
    return text.isascii() and text.isdigit()


def whole_number(text: str) -> int | None:
    """The number in `text`, which has one to nine digits and nothing else; None otherwise."""
    return int(text) if len(text) <= _DIGITS and is_digits(text) else None


def number_of(kind: Callable[[str], _Number], text: str) -> _Number | None:
    """`text` converted by `kind`, `int` or `float`; None if that fails."""
    if not text.isascii():
        return None
    try:
        return kind(text)
    except ValueError:
        return None
