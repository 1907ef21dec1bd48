"""The fields of a message: the data that fills a template, and its form in text, HTML and URIs.

Fields are plain data: their text is never read as a template, an address, a header or markup. A
value has the same form in a template that its engine renders and in one that is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote

from ...common.shown import echo, name_of
from ...exceptions import TemplateError

#: The most values in the fields of one message, including those in lists and mappings.
MAX_VALUES = 100_000
#: The depth to which lists and mappings may be nested in them.
MAX_DEPTH = 20
#: Bits of the largest whole number. Python writes such a number in decimals without a limit.
MAX_BITS = 2048

#: Types that can stand in text. A type derived from one of them cannot: it may do anything.
SCALARS = frozenset({str, int, float, bool, type(None), Decimal, datetime, date, time, timedelta})


#: The most digits of a `Decimal`, and the most places between them and its point.
MAX_DIGITS = 600


def is_large(number: Decimal) -> bool:
    """True if it takes long to write `number` with all its digits."""
    if not number.is_finite():
        return False
    _, digits, exponent = number.as_tuple()
    return len(digits) > MAX_DIGITS or abs(int(exponent)) > MAX_DIGITS


class Field(NamedTuple):
    """The place of a field in a template."""

    name: str
    #: the text for a message without this field; None if the field is required
    default: str | None = None


#: A template without statements: texts and fields, in their order.
Pieces = tuple[str | Field, ...]


def plain_fields(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of `fields` that is plain data.

    Plain data are text, numbers, booleans, None, `Decimal`, dates and times, and lists, tuples and
    mappings of them. A value of a derived type (a `StrEnum`, markup) becomes one of the base type.
    Raises `TemplateError`, which names the field, for any other value.
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
        raise TemplateError("a field name must be a string", field=path, value=name)
    return str.__str__(name)


def _plain(value: Any, path: str, left: list[int], depth: int = 0) -> Any:
    """`value` as plain data. `path` names it in errors. `left` is the number of values left."""
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        problem = f"has more than {MAX_VALUES} values"
        if left[0] >= 0:
            problem = f"is nested more than {MAX_DEPTH} deep"
        raise TemplateError(problem, field=_shown_path(path))
    if type(value) in SCALARS:
        if type(value) is int and value.bit_length() > MAX_BITS:
            raise TemplateError("the number is too large", field=_shown_path(path))
        if type(value) is Decimal and is_large(value):
            raise TemplateError("the number is too large", field=_shown_path(path))
        return value
    if isinstance(value, Mapping):
        inner = {_key(key, _shown_path(path)): value[key] for key in value}
        return {k: _plain(v, f"{path}.{k}", left, depth + 1) for k, v in inner.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{path}.{n}", left, depth + 1) for n, v in enumerate(value)]
    return _underived(value, path)


def _underived(value: Any, path: str) -> Any:
    """`value` as a value of the plain type that its type is derived from."""
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
    """`path` for an error. Callers choose the names in it: they may be long or unprintable."""
    return path if path.isprintable() and len(path) <= 60 else echo(path)


def in_text(value: Any) -> str:
    """A scalar as text, in a header or in a body. None becomes the empty string."""
    return "" if value is None else str(value)


def in_html(text: str) -> str:
    """`text` in HTML, between tags or in a quoted attribute."""
    if "&" in text:
        text = text.replace("&", "&amp;")
    if "<" in text or ">" in text:
        text = text.replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&#34;").replace("'", "&#39;")


def in_uri(text: str) -> str:
    """`text` as a component of a URI (RFC 3986 section 2.1)."""
    return quote(text, safe="")
