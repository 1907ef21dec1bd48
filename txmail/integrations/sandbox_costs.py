"""Charges for the work of a template before the work is done. See `sandbox`.

Each filter, test, method and operator of the sandbox has a cost: an upper limit, computed from the
operands, of the characters and values that it reads or makes. An operation whose cost cannot be
computed, or that no mail needs, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Protocol

from jinja2 import Undefined

from ..message.templates.template_values import MAX_BITS, is_large

#: The most characters of output of a template.
MAX_OUTPUT = 10 * 1024 * 1024
#: The cost of a turn of a loop or a call, of a node in the body of a loop, of a value in a list.
STEP = 100
NODE = 10
VALUE = 50
#: The largest width, indentation or precision, in characters, and length of a piece to repeat.
_MAX_WIDTH = 999
#: The largest indentation of a level of JSON.
_MAX_INDENT = 8
#: The most characters of a number or a date, besides its width and precision.
_NUMBER = 700
#: The most characters that one character becomes: escaped, percent-encoded, or in a repr.
_GROWTH = 10
#: Comparisons to sort one of a million values.
_SORTING = 20

#: A ``%`` format with a width or precision that is large or unknown, or with a name that hides it.
_WIDE_FORMAT = re.compile(
    r"%(?:\([^()]*+\))?+[#0 +-]*+(?:\*|[0-9]{4}|[0-9]*+\.(?:\*|[0-9]{4}))|%\([^()]*+\(", re.ASCII
)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
#: The format of a date with flags (``%-d``, ``%^a``, ``%:z``) but without widths: a C library makes
#: as many characters as a width asks for.
_PLAIN_TIME = re.compile(r"(?:[^%]++|(?>%(?:[-_0^#+]*+|:{1,3})[A-Za-z%]))*+", re.ASCII)

Numbers = (int, float, Decimal)


class Refused(Exception):
    """An operation that is not allowed in templates, or exceeds the quota. The text says why."""


class Quota(Protocol):
    """The cost that is left for one rendering."""

    def spend(self, cost: int) -> None:
        """Charge `cost`. Raises `Refused` if too little is left."""


def length(value: Any) -> int:
    """The number of characters or values in `value`; 0 for a scalar."""
    return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 0


def charge_value(quota: Quota, value: Any) -> Any:
    """Charge for all characters and values in `value`, nested ones too. Returns `value`.

    An iterator is read to its end: it becomes a list.
    """
    if hasattr(type(value), "__next__"):
        value = charge_items(quota, value)
    left = [value]
    while left:
        item = left.pop()
        quota.spend(VALUE + length(item))
        if isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, dict):
            left += item.keys()
            left += item.values()
        elif isinstance(item, (int, Decimal)):
            _check_number(item)
    return value


def charge_items(quota: Quota, values: Any, cost: int = STEP) -> list[Any]:
    """The values of a loop, as a list. Charges `cost` for each."""
    found: list[Any] = []
    for value in values:
        quota.spend(cost)
        found.append(value)
    return found


def text_size(value: Any) -> int:
    """The most characters of `value` as text, nested values included."""
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, dict):
            left += item.keys()
            left += item.values()
        total += len(item) if isinstance(item, str) else _NUMBER
    return total


def _check_number(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise Refused("the number is too large")
    if isinstance(value, Decimal) and is_large(value):
        raise Refused("the number is too large")


# -- operators


def charge_operator(quota: Quota, operator: str, left: Any, right: Any) -> None:
    """Charge for an operation with two operands."""
    quota.spend(STEP + length(left) + length(right))
    for operand in (left, right):
        _check_number(operand)
    if operator == "*":
        _check_product(left, right)
        quota.spend(length(left) * _times(right) + length(right) * _times(left))
    elif operator == "**":
        _check_power(left, right)
    elif operator == "%" and isinstance(left, str):
        charge_format(quota, left, right)


def _times(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise Refused("the number is too large")
        return
    if length(left) * _times(right) + length(right) * _times(left) > MAX_OUTPUT:
        raise Refused(f"more than {MAX_OUTPUT} characters or values at once")


def _check_power(left: Any, right: Any) -> None:
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() * max(right, 1) > MAX_BITS
    ):
        raise Refused("the number is too large")


def charge_format(quota: Quota, text: str, values: Any) -> None:
    """Charge for ``text % values``. Each place may have the largest value, escaped."""
    if "%" not in text:
        quota.spend(len(text))
        return
    if _WIDE_FORMAT.search(text):
        raise Refused(f"a format has a width of more than {_MAX_WIDTH}")
    places = text.count("%")
    widths = sum(min(int(digits[:4]), _MAX_WIDTH) for digits in _DIGITS.findall(text))
    charge_value(quota, values)
    if isinstance(values, tuple):
        written = sum(map(text_size, values))
    elif isinstance(values, dict):
        written = places * max([0, *map(text_size, values.values())])
    else:
        written = text_size(values)
    quota.spend(len(text) + places * VALUE + (widths + written) * _GROWTH)


# -- methods


def charge_call(quota: Quota, function: Any, arguments: tuple[Any, ...], named: Any) -> None:
    """Charge for a call of a method or of `range`."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, Undefined):
        owner = None
    quota.spend(STEP + length(owner))
    given = [*arguments, *named.values()]
    for argument in given:
        charge_value(quota, argument)
    if isinstance(owner, str):
        _charge_text(quota, owner, name, given)
    elif isinstance(owner, (list, tuple, dict)) and name in ("count", "index", "items", "values"):
        charge_value(quota, owner)
    elif name == "strftime":
        _charge_time(quota, given)


def _charge_text(quota: Quota, text: str, name: str, given: list[Any]) -> None:
    sought = max([1, *map(length, given)])
    if name in ("rfind", "rpartition", "rsplit", "strip", "lstrip", "rstrip"):
        # At each place they search the whole argument, or each of its characters.
        quota.spend(len(text) * sought)
    if name in ("split", "rsplit", "splitlines"):
        quota.spend(_parts(text, name, given) * VALUE)


def _parts(text: str, name: str, given: list[Any]) -> int:
    """The most parts that a text is split into."""
    if name != "splitlines" and given and isinstance(given[0], str) and given[0]:
        return text.count(given[0]) + 1
    return len(text) if name == "splitlines" else len(text) // 2 + 1


def _charge_time(quota: Quota, given: list[Any]) -> None:
    text = given[0] if given and isinstance(given[0], str) else ""
    if _PLAIN_TIME.fullmatch(text) is None:
        raise Refused(
            "in the format of a date only flags and a letter can follow a %, and no width"
        )
    quota.spend(len(text) + text.count("%") * STEP)


# -- filters and tests


def charge_filter(quota: Quota, name: str, value: Any, arguments: list[Any]) -> None:
    """Charge for a filter, `value` included. `value` is no iterator."""
    quota.spend(STEP + length(value))
    _check_number(value)
    for argument in arguments:
        charge_value(quota, argument)
    if name in _SIZED:
        _check_sizes(name, arguments)
    _FILTER_COSTS.get(name, _charge_nothing)(quota, value, arguments)


def _check_sizes(name: str, arguments: list[Any]) -> None:
    """Refuse large sizes among the arguments: numbers, and lengths of strings."""
    largest = _MAX_INDENT if name == "tojson" else _MAX_WIDTH
    sizes = [a if isinstance(a, Numbers) else length(a) for a in arguments]
    if not all(-largest <= size <= largest for size in sizes):
        raise Refused(f"a size is more than {largest}")


def _charge_nothing(quota: Quota, value: Any, arguments: list[Any]) -> None:
    """The work is to read the value once: that is charged already."""


def _charge_growth(quota: Quota, value: Any, arguments: list[Any]) -> None:
    charge_value(quota, value)
    quota.spend(text_size(value) * _GROWTH)


def _charge_values(quota: Quota, value: Any, arguments: list[Any]) -> None:
    quota.spend(length(value) * VALUE)


def _charge_sorting(quota: Quota, value: Any, arguments: list[Any]) -> None:
    charge_value(quota, value)
    quota.spend(text_size(value) * _SORTING + length(value) * sum(map(length, arguments)))


def _charge_format(quota: Quota, value: Any, arguments: list[Any]) -> None:
    # `arguments` has the values of keywords too. Each place may have the largest argument.
    largest = max(arguments, key=text_size, default="")
    charge_format(quota, str(value), {"": largest})


def _charge_replace(quota: Quota, value: Any, arguments: list[Any]) -> None:
    if len(arguments) >= 2:
        text, old, new = str(value), str(arguments[0]), str(arguments[1])
        quota.spend((text.count(old) * len(new) + len(text)) * _GROWTH)


def _charge_join(quota: Quota, value: Any, arguments: list[Any]) -> None:
    charge_value(quota, value)
    between = max([0, *(len(a) for a in arguments if isinstance(a, str))])
    quota.spend((text_size(value) + length(value) * between) * _GROWTH)


def _check_sum(quota: Quota, value: Any, arguments: list[Any]) -> None:
    charge_value(quota, value)
    if any(isinstance(argument, (list, tuple, dict)) for argument in arguments):
        raise Refused("only numbers can be summed up")


def _charge_trim(quota: Quota, value: Any, arguments: list[Any]) -> None:
    quota.spend(length(value) * max([1, *map(length, arguments)]))


def _charge_striptags(quota: Quota, value: Any, arguments: list[Any]) -> None:
    # Each tag that is cut out copies the rest of the text.
    text = str(value)
    quota.spend(len(text) * (text.count("<") + text.count("&") + 2))


def _charge_wordwrap(quota: Quota, value: Any, arguments: list[Any]) -> None:
    text = str(value)
    quota.spend(len(text) * VALUE)
    width = next((a for a in arguments if isinstance(a, int) and not isinstance(a, bool)), 79)
    longest = max([0, *map(len, text.split())])
    # Each piece that is cut off a long word copies the rest of the word.
    quota.spend(longest * (longest // max(width, 1) + longest // _MAX_WIDTH))
    lines = len(text) // max(width, 1) + text.count("\n") + 1
    quota.spend(lines * max([1, *map(length, arguments)]))


def _charge_indent(quota: Quota, value: Any, arguments: list[Any]) -> None:
    sizes = [int(a) if isinstance(a, Numbers) else length(a) for a in arguments]
    text = str(value)
    lines = len(text.splitlines()) + 1
    quota.spend(lines * (VALUE + max([4, *sizes])) + len(text) * _GROWTH)


def _charge_json(quota: Quota, value: Any, arguments: list[Any]) -> None:
    charge_value(quota, value)
    quota.spend(text_size(value) * _GROWTH)


#: Filters whose result depends on the size of an argument: a number, or the length of a string.
_SIZED = frozenset(["batch", "center", "indent", "round", "slice", "tojson", "wordwrap"])

_FILTER_COSTS: dict[str, Callable[[Quota, Any, list[Any]], None]] = {
    **dict.fromkeys(("e", "escape", "forceescape", "string", "urlencode"), _charge_growth),
    **dict.fromkeys(("batch", "list", "reverse", "slice", "title", "wordcount"), _charge_values),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _charge_sorting),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _charge_values),
    "format": _charge_format,
    "indent": _charge_indent,
    "join": _charge_join,
    "replace": _charge_replace,
    "striptags": _charge_striptags,
    "sum": _check_sum,
    "tojson": _charge_json,
    "trim": _charge_trim,
    "wordwrap": _charge_wordwrap,
}


def charge_test(quota: Quota, name: str, value: Any, arguments: list[Any]) -> None:
    """Charge for a test."""
    quota.spend(STEP)
    if name in ("even", "odd", "divisibleby") and not isinstance(value, (*Numbers, Undefined)):
        raise Refused(f"only a number can be {name}")
    for operand in (value, *arguments):
        if not isinstance(operand, Undefined):
            charge_value(quota, operand)


def limit_output(chunks: Iterator[str], most: int) -> Iterator[str]:
    """`chunks`. Raises `Refused` after more than `most` characters."""
    room = most
    for chunk in chunks:
        room -= len(chunk)
        if room < 0:
            raise Refused(f"more than {most} characters come out")
        yield chunk
