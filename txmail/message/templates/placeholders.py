"""The fields of a template that is compiled: their places, and the texts that they are filled into.

`NotCompilable` is raised for everything unusual: txmail renders the message in full then.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple

from ..mime.header_check import FORBIDDEN, FORBIDDEN_BUT_TAB
from .template_values import MAX_BITS, SCALARS, Field, Pieces, in_text, is_large

#: The most characters of a template that is compiled, and of all its fields in one message.
MAX_COMPILED = 1024 * 1024


class NotCompilable(Exception):
    """This message, or all messages of this template, must be rendered in full."""


class TextFormat(NamedTuple):
    """A text with numbered fields in it."""

    format: str
    numbers: itemgetter[Any]

    def fill(self, values: list[str]) -> str:
        """The text with `values` in it."""
        return str(self.format % self.numbers(values))


class Placeholders:
    """All places of fields in a template. Each different field has a number."""

    def __init__(self) -> None:
        self._numbers: dict[Field, int] = {}
        self._count = 0

    def text_format(self, pieces: Sequence[str | Field]) -> TextFormat:
        """The format of `pieces`, which have at least one field."""
        fields = [piece for piece in pieces if isinstance(piece, Field)]
        self._count += len(fields)
        numbers = [self._numbers.setdefault(field, len(self._numbers)) for field in fields]
        return TextFormat(format_of(pieces), itemgetter(*numbers))

    def values(self, fields: Any) -> tuple[list[str], str]:
        """The texts of the fields, by number, and all texts joined.

        Raises `NotCompilable` for a field that is missing, that is no scalar of a plain type, or
        that has a control character.
        """
        if fields is None:
            fields = {}
        if type(fields) is not dict:
            raise NotCompilable
        for name, value in fields.items():
            kind = type(value)
            if type(name) is not str or kind not in SCALARS:
                raise NotCompilable
            if kind is int and value.bit_length() > MAX_BITS:
                raise NotCompilable
            if kind is Decimal and is_large(value):
                raise NotCompilable
        found = []
        for name, default in self._numbers:
            value = fields.get(name, default)
            if value is None and name not in fields:
                raise NotCompilable
            found.append(value if type(value) is str else in_text(value))
        joined = "".join(found)
        if len(joined) * self._count > MAX_COMPILED:
            raise NotCompilable
        if not (joined.isascii() and joined.isprintable()) and FORBIDDEN.search(joined):
            raise NotCompilable
        return found, joined


def compilable(pieces: Pieces | None) -> Pieces:
    """`pieces`. Raises `NotCompilable` for None, and for a text with control characters."""
    if pieces is None or len(constant_text(pieces)) > MAX_COMPILED:
        raise NotCompilable
    for piece in pieces:
        text = piece.default or "" if isinstance(piece, Field) else piece.replace("\n", "")
        if FORBIDDEN_BUT_TAB.search(text):
            raise NotCompilable
    return pieces


def has_fields(pieces: Sequence[str | Field]) -> bool:
    """True if a piece is a field."""
    return any(isinstance(piece, Field) for piece in pieces)


def constant_text(pieces: Sequence[str | Field]) -> str:
    """The text of `pieces` without its fields."""
    return "".join([piece for piece in pieces if isinstance(piece, str)])


def format_of(pieces: Sequence[str | Field]) -> str:
    """The format string of `pieces`."""
    return "".join(["%s" if isinstance(p, Field) else p.replace("%", "%%") for p in pieces])
