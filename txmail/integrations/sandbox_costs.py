"""What the work of a template costs, before it is done. See `sandbox` beside it.

Each filter, test, method and operator of the sandbox has its cost here, in the characters and
values that it looks at or makes, as an upper bound that is told from its operands. What cannot be
told, or is more than any mail needs, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Protocol

from jinja2 import Undefined

from ..message.templates.template_values import MAX_BITS, is_large

#: Characters that may come out of a template.
MAX_OUTPUT = 10 * 1024 * 1024
#: What a turn of a loop or a call costs, a node in the body of a loop, and a value in a list.
STEP = 100
NODE = 10
VALUE = 50
#: The largest width, indentation or precision, in characters, and length of a piece to repeat.
_MAX_WIDTH = 999
#: The same for each of the levels of JSON.
_MAX_INDENT = 8
#: Characters that a number or a date has in text at most, beside its width and precision.
_NUMBER = 700
#: How many characters one character becomes at most: escaped, percent-encoded, in a repr.
_GROWTH = 10
#: Comparisons that it takes to put one of a million values in its place.
_SORTING = 20

#: A ``%`` format with a width or precision that is large or not told, or with a name that hides it.
_WIDE_FORMAT = re.compile(
    r"%(?:\([^()]*+\))?+[#0 +-]*+(?:\*|[0-9]{4}|[0-9]*+\.(?:\*|[0-9]{4}))|%\([^()]*+\(", re.ASCII
)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
#: The format of a date with flags (``%-d``, ``%^a``, ``%:z``) but without widths: with a width, a C
#: library makes as many characters as somebody asks for.
_PLAIN_TIME = re.compile(r"(?:[^%]++|(?>%(?:[-_0^#+]*+|:{1,3})[A-Za-z%]))*+", re.ASCII)

Numbers = (int, float, Decimal)


class Refused(Exception):
    """Something that no template may do; the text says what."""


class Purse(Protocol):
    """What work is paid from."""

    def spend(self, cost: int) -> None:
        """Count work. Raises `Refused` when it was too much."""


def length(value: Any) -> int:
    """The characters or values in `value`; 0 for what has none."""
    return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 0


def measured(purse: Purse, value: Any) -> Any:
    """`value`; the characters and values in it, through and through, are paid for.

    An iterator is read to its end: what comes back is a list.
    """
    if hasattr(type(value), "__next__"):
        value = taken(purse, value)
    left = [value]
    while left:
        item = left.pop()
        purse.spend(VALUE + length(item))
        if isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, dict):
            left += item.keys()
            left += item.values()
        elif isinstance(item, (int, Decimal)):
            _check_number(item)
    return value


def taken(purse: Purse, values: Any, cost: int = STEP) -> list[Any]:
    """The values of a loop, each of which costs a step, or what is told."""
    found: list[Any] = []
    for value in values:
        purse.spend(cost)
        found.append(value)
    return found


def weight(value: Any) -> int:
    """The characters in `value`, through and through, were it written as text."""
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
        raise Refused("a number that is too large")
    if isinstance(value, Decimal) and is_large(value):
        raise Refused("a number that is too large")


# -- operators


def pay_operator(purse: Purse, operator: str, left: Any, right: Any) -> None:
    """Pay for an operation of two operands."""
    purse.spend(STEP + length(left) + length(right))
    for operand in (left, right):
        _check_number(operand)
    if operator == "*":
        _check_product(left, right)
        purse.spend(length(left) * _times(right) + length(right) * _times(left))
    elif operator == "**":
        _check_power(left, right)
    elif operator == "%" and isinstance(left, str):
        pay_format(purse, left, right)


def _times(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise Refused("a number that is too large")
        return
    if length(left) * _times(right) + length(right) * _times(left) > MAX_OUTPUT:
        raise Refused(f"more than {MAX_OUTPUT} characters or values at once")


def _check_power(left: Any, right: Any) -> None:
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() * max(right, 1) > MAX_BITS
    ):
        raise Refused("a number that is too large")


def pay_format(purse: Purse, text: str, values: Any) -> None:
    """Pay for ``text % values``: each place may have all of the largest value, escaped."""
    if "%" not in text:
        purse.spend(len(text))
        return
    if _WIDE_FORMAT.search(text):
        raise Refused(f"a format with a width beyond {_MAX_WIDTH}")
    places = text.count("%")
    widths = sum(min(int(digits[:4]), _MAX_WIDTH) for digits in _DIGITS.findall(text))
    measured(purse, values)
    if isinstance(values, tuple):
        written = sum(map(weight, values))
    elif isinstance(values, dict):
        written = places * max([0, *map(weight, values.values())])
    else:
        written = weight(values)
    purse.spend(len(text) + places * VALUE + (widths + written) * _GROWTH)


# -- methods


def pay_call(purse: Purse, function: Any, arguments: tuple[Any, ...], named: Any) -> None:
    """Pay for a call of the method of a value, or of `range`."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, Undefined):
        owner = None
    purse.spend(STEP + length(owner))
    given = [*arguments, *named.values()]
    for argument in given:
        measured(purse, argument)
    if isinstance(owner, str):
        _pay_text(purse, owner, name, given)
    elif isinstance(owner, (list, tuple, dict)) and name in ("count", "index", "items", "values"):
        measured(purse, owner)
    elif name == "strftime":
        _pay_time(purse, given)


def _pay_text(purse: Purse, text: str, name: str, given: list[Any]) -> None:
    sought = max([1, *map(length, given)])
    if name in ("rfind", "rpartition", "rsplit", "strip", "lstrip", "rstrip"):
        # They look for all of it, or for each of its characters, at each place.
        purse.spend(len(text) * sought)
    if name in ("split", "rsplit", "splitlines"):
        purse.spend(_parts(text, name, given) * VALUE)


def _parts(text: str, name: str, given: list[Any]) -> int:
    """How many parts a text is split in at most."""
    if name != "splitlines" and given and isinstance(given[0], str) and given[0]:
        return text.count(given[0]) + 1
    return len(text) if name == "splitlines" else len(text) // 2 + 1


def _pay_time(purse: Purse, given: list[Any]) -> None:
    text = given[0] if given and isinstance(given[0], str) else ""
    if _PLAIN_TIME.fullmatch(text) is None:
        raise Refused(
            "the format of a date: after each % only flags and a letter can stand, and no width"
        )
    purse.spend(len(text) + text.count("%") * STEP)


# -- filters and tests


def pay_filter(purse: Purse, name: str, value: Any, arguments: list[Any]) -> None:
    """Pay for a filter. `value` is no iterator; it has not been paid for."""
    purse.spend(STEP + length(value))
    _check_number(value)
    for argument in arguments:
        measured(purse, argument)
    if name in _SIZED:
        _check_sizes(name, arguments)
    _FILTER_COSTS.get(name, _pay_nothing)(purse, value, arguments)


def _check_sizes(name: str, arguments: list[Any]) -> None:
    """Refuse numbers, and lengths of strings, that say how much is made out of little."""
    largest = _MAX_INDENT if name == "tojson" else _MAX_WIDTH
    sizes = [a if isinstance(a, Numbers) else length(a) for a in arguments]
    if not all(-largest <= size <= largest for size in sizes):
        raise Refused(f"a size beyond {largest}")


def _pay_nothing(purse: Purse, value: Any, arguments: list[Any]) -> None:
    """Its work is that of looking at the value once."""


def _pay_growth(purse: Purse, value: Any, arguments: list[Any]) -> None:
    measured(purse, value)
    purse.spend(weight(value) * _GROWTH)


def _pay_values(purse: Purse, value: Any, arguments: list[Any]) -> None:
    purse.spend(length(value) * VALUE)


def _pay_sorting(purse: Purse, value: Any, arguments: list[Any]) -> None:
    measured(purse, value)
    purse.spend(weight(value) * _SORTING + length(value) * sum(map(length, arguments)))


def _pay_format(purse: Purse, value: Any, arguments: list[Any]) -> None:
    # Names and values of keywords are both among them; each place may have the largest.
    largest = max(arguments, key=weight, default="")
    pay_format(purse, str(value), {"": largest})


def _pay_replace(purse: Purse, value: Any, arguments: list[Any]) -> None:
    if len(arguments) >= 2:
        text, old, new = str(value), str(arguments[0]), str(arguments[1])
        purse.spend((text.count(old) * len(new) + len(text)) * _GROWTH)


def _pay_join(purse: Purse, value: Any, arguments: list[Any]) -> None:
    measured(purse, value)
    between = max([0, *(len(a) for a in arguments if isinstance(a, str))])
    purse.spend((weight(value) + length(value) * between) * _GROWTH)


def _check_sum(purse: Purse, value: Any, arguments: list[Any]) -> None:
    measured(purse, value)
    if any(isinstance(argument, (list, tuple, dict)) for argument in arguments):
        raise Refused("only numbers can be summed up")


def _pay_trim(purse: Purse, value: Any, arguments: list[Any]) -> None:
    purse.spend(length(value) * max([1, *map(length, arguments)]))


def _pay_striptags(purse: Purse, value: Any, arguments: list[Any]) -> None:
    # Tags are cut out one after the other, and all that is left is copied each time.
    text = str(value)
    purse.spend(len(text) * (text.count("<") + text.count("&") + 2))


def _pay_wordwrap(purse: Purse, value: Any, arguments: list[Any]) -> None:
    text = str(value)
    purse.spend(len(text) * VALUE)
    width = next((a for a in arguments if isinstance(a, int) and not isinstance(a, bool)), 79)
    longest = max([0, *map(len, text.split())])
    # Pieces are cut off a long word one after the other, and the rest is copied each time.
    purse.spend(longest * (longest // max(width, 1) + longest // _MAX_WIDTH))
    lines = len(text) // max(width, 1) + text.count("\n") + 1
    purse.spend(lines * max([1, *map(length, arguments)]))


def _pay_indent(purse: Purse, value: Any, arguments: list[Any]) -> None:
    sizes = [int(a) if isinstance(a, Numbers) else length(a) for a in arguments]
    text = str(value)
    lines = len(text.splitlines()) + 1
    purse.spend(lines * (VALUE + max([4, *sizes])) + len(text) * _GROWTH)


def _pay_json(purse: Purse, value: Any, arguments: list[Any]) -> None:
    measured(purse, value)
    purse.spend(weight(value) * _GROWTH)


#: Numbers and strings among the arguments of these say how much is made out of little.
_SIZED = frozenset(["batch", "center", "indent", "round", "slice", "tojson", "wordwrap"])

_FILTER_COSTS: dict[str, Callable[[Purse, Any, list[Any]], None]] = {
    **dict.fromkeys(("e", "escape", "forceescape", "string", "urlencode"), _pay_growth),
    **dict.fromkeys(("batch", "list", "reverse", "slice", "title", "wordcount"), _pay_values),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _pay_sorting),
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _pay_values),
    "format": _pay_format,
    "indent": _pay_indent,
    "join": _pay_join,
    "replace": _pay_replace,
    "striptags": _pay_striptags,
    "sum": _check_sum,
    "tojson": _pay_json,
    "trim": _pay_trim,
    "wordwrap": _pay_wordwrap,
}


def pay_test(purse: Purse, name: str, value: Any, arguments: list[Any]) -> None:
    """Pay for a test."""
    purse.spend(STEP)
    if name in ("even", "odd", "divisibleby") and not isinstance(value, (*Numbers, Undefined)):
        raise Refused(f"only a number can be {name}")
    for operand in (value, *arguments):
        if not isinstance(operand, Undefined):
            measured(purse, operand)


def limited(chunks: Iterator[str], most: int) -> Iterator[str]:
    """`chunks`, as long as they are no more than `most` characters."""
    room = most
    for chunk in chunks:
        room -= len(chunk)
        if room < 0:
            raise Refused(f"more than {most} characters come out")
        yield chunk
