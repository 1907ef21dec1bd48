"""Case, digits, blanks and lines of protocol text and of settings, which are those of ASCII.

The methods of `str` know more. U+017F and U+0131 become S and I, U+212A and U+0130 become k and i;
there are digits of sixty scripts, two dozen blanks, and line ends such as U+2028. In a protocol
they are no letters, digits, blanks or line ends at all. So this is the only module that calls those
methods on text; `bytes` has methods of the same names that know ASCII only.
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
#: What `bytes.strip` takes away too.
_WHITE = " \t\n\r\v\f"
#: Digits of a number that an option or a setting can be: it fits into 32 bits.
_DIGITS = 9


def ascii_lower(text: str) -> str:
    """`text` with its ASCII letters in lower case, and all others as they are."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def ascii_upper(text: str) -> str:
    """`text` with its ASCII letters in upper case, and all others as they are."""
    return text.upper() if text.isascii() else text.translate(_UPPER)


def ascii_strip(text: str) -> str:
    """`text` without white space of ASCII at its ends."""
    return text.strip(_WHITE)


def ascii_split(text: str) -> list[str]:
    """The words of `text`, which white space of ASCII parts, line ends included."""
    return _WORDS.findall(text)


def ascii_words(text: str) -> list[str]:
    """The words of `text` between blanks and TABs; no other character parts them."""
    return [word for word in _BLANKS.split(text) if word]


def ascii_lines(text: str) -> list[str]:
    """The lines of `text` with their ends: CR LF, or CR or LF alone."""
    return _LINE.findall(text)


def is_digits(text: str) -> bool:
    """True if `text` is ASCII digits only, at least one."""
    return text.isascii() and text.isdigit()


def whole_number(text: str) -> int | None:
    """The number that `text` is, with at most nine digits and nothing else; None if it is not."""
    return int(text) if len(text) <= _DIGITS and is_digits(text) else None


def number_of(kind: Callable[[str], _Number], text: str) -> _Number | None:
    """The number that `text` spells for `kind`, `int` or `float`; None if it spells none."""
    if not text.isascii():
        return None
    try:
        return kind(text)
    except ValueError:
        return None
