"""Fields: the data a template is filled with, and how they are written where they stand.

Fields are plain data, and nothing but data: text is never read as a template, an address or a
header, and has no markup. A template is told the places of its fields (`Field`); what a value
becomes there is said here, once for the templates that are rendered by their engine and for those
that are compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote

from ...common.shown import echo, name_of
from ...exceptions import TemplateError

#: How many values the fields of one message may have, all lists and mappings counted through.
MAX_VALUES = 100_000
#: How deep lists and mappings may be nested in them.
MAX_DEPTH = 20
#: Bits of the largest whole number, which Python is sure to write in decimals.
MAX_BITS = 2048

#: What can stand in text, of just these types: a type derived from one may do anything.
SCALARS = frozenset({str, int, float, bool, type(None), Decimal, datetime, date, time, timedelta})


#: Digits of the largest `Decimal`, and places that its point may be away from them.
MAX_DIGITS = 600


def is_large(number: Decimal) -> bool:
    """True if it takes long to write `number` as a whole one, or in full."""
    if not number.is_finite():
        return False
    _, digits, exponent = number.as_tuple()
    return len(digits) > MAX_DIGITS or abs(int(exponent)) > MAX_DIGITS


class Field(NamedTuple):
    """A place in a template that is filled with the value of a field."""

    name: str
    #: what stands there if there is no such field; None if there has to be one
    default: str | None = None


#: A template that has fields and nothing else in it: text and `Field` s by turns.
Pieces = tuple[str | Field, ...]


def plain_fields(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of `fields` that is plain data throughout.

    Allowed are text, numbers, booleans, None, `Decimal`, dates and times, and lists, tuples and
    mappings of them. Types derived from text or numbers (a `StrEnum`, markup) become what they are
    derived from. Raises `TemplateError`, which names the field, for anything else.
    """
    if fields is None:
        return {}
    if not isinstance(fields, Mapping):
        raise TemplateError("a mapping of names to values is needed", field="fields", value=fields)
    left = [MAX_VALUES]
    named = {_key(name, "fields"): fields[name] for name in fields}
    return {name: _plain(value, name, left) for name, value in named.items()}


def _key(name: Any, path: str) -> str:
    if not isinstance(name, str):
        raise TemplateError("the name of a field is a string", field=path, value=name)
    return str.__str__(name)


def _plain(value: Any, path: str, left: list[int], depth: int = 0) -> Any:
    """`value` as plain data; `path` names it in errors, `left` is how many values may follow."""
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        limit = f"{MAX_VALUES} values" if left[0] < 0 else f"{MAX_DEPTH} deep"
        raise TemplateError(f"more than {limit}", field=_shown_path(path))
    if type(value) in SCALARS:
        if type(value) is int and value.bit_length() > MAX_BITS:
            raise TemplateError("a number that is too large", field=_shown_path(path))
        if type(value) is Decimal and is_large(value):
            raise TemplateError("a number that is too large", field=_shown_path(path))
        return value
    if isinstance(value, Mapping):
        inner = {_key(key, _shown_path(path)): value[key] for key in value}
        return {k: _plain(v, f"{path}.{k}", left, depth + 1) for k, v in inner.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{path}.{n}", left, depth + 1) for n, v in enumerate(value)]
    return _underived(value, path)


def _underived(value: Any, path: str) -> Any:
    """The value of just the type that the type of `value` is derived from."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _plain(int.__int__(value), path, [1])
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, datetime):
        return datetime.combine(_underived_date(value), value.timetz())
    if isinstance(value, date):
        return _underived_date(value)
    kind = name_of(type(value))
    raise TemplateError(f"{echo(kind)} is no plain data", field=_shown_path(path))


def _underived_date(value: date) -> date:
    return date(value.year, value.month, value.day)


def _shown_path(path: str) -> str:
    """`path` for an error: the names in it are the caller's, whatever they are."""
    return path if path.isprintable() and len(path) <= 60 else echo(path)


def in_text(value: Any) -> str:
    """What a scalar is in text, in a header or in a body; None is nothing."""
    return "" if value is None else str(value)


def in_html(text: str) -> str:
    """`text` in HTML, be it between tags or in an attribute with quotes around it."""
    if "&" in text:
        text = text.replace("&", "&amp;")
    if "<" in text or ">" in text:
        text = text.replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&#34;").replace("'", "&#39;")


def in_uri(text: str) -> str:
    """`text` as a component of a URI (RFC 3986 section 2.1)."""
    return quote(text, safe="")
