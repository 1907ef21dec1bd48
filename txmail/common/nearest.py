"""Guess which known name a user meant by an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .ascii_text import ascii_lower

#: How alike two names have to be, of 1: a short name may differ by one letter.
_ALIKE = 0.66


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is most like `name`, in any case; None if none is alike."""
    by_word = {ascii_lower(known).replace("-", "_"): known for known in names}
    word = ascii_lower(name[:60]).replace("-", "_").replace(" ", "")
    found = difflib.get_close_matches(word, by_word, n=1, cutoff=_ALIKE)
    return by_word[found[0]] if found else None


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """A question with the nearest name, to add to an error about `name`; empty if none is."""
    found = nearest(name, names)
    return f"; did you mean {prefix}{found}?" if found else ""
