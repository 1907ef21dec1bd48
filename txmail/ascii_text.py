"""Case and digits of protocol text, which are those of ASCII.

`str.upper` and `str.lower` know letters that become others: U+017F and U+0131 become S and I,
U+212A and U+0130 become k and i. In a protocol they are no letters at all.
"""

from __future__ import annotations

import re
import string

_BLANKS = re.compile("[ \t]", re.ASCII)
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)


def ascii_lower(text: str) -> str:
    """`text` with its ASCII letters in lower case, and all others as they are."""
    return text.translate(_LOWER)


def ascii_upper(text: str) -> str:
    """`text` with its ASCII letters in upper case, and all others as they are."""
    return text.translate(_UPPER)


def is_digits(text: str) -> bool:
    """True if `text` is ASCII digits only, at least one."""
    return text.isascii() and text.isdigit()


def ascii_words(text: str) -> list[str]:
    """The words of `text` between blanks and TABs; no other character parts them."""
    return [word for word in _BLANKS.split(text) if word]
