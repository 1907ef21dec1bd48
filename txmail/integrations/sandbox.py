"""The sandbox that templates are filled in, and what is counted there. See `jinja2` beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from jinja2 import StrictUndefined, Undefined
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from markupsafe import Markup

from ..message.merge import MAX_BITS, SCALARS, in_text

#: Characters that may come out of a template.
MAX_OUTPUT = 10 * 1024 * 1024
#: What one rendering may cost, which is a second or so; a character that is made costs 1.
MAX_WORK = 50_000_000
#: What a turn of a loop or a call costs, and a value in a list that is made.
_STEP = 100
_VALUE = 50
#: The largest width, indentation or precision, in characters, and length of a piece to repeat.
_MAX_WIDTH = 999
#: The same for each of the levels of JSON.
_MAX_INDENT = 8


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STRING = _words(
    "capitalize casefold count endswith find isalnum isalpha isdecimal isdigit islower isnumeric "
    "isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_DATE = _words("day isoformat isoweekday month strftime weekday year")
_TIME = _words("hour isoformat microsecond minute second strftime")
#: What can be reached of a value, by its type; of all others nothing.
_ATTRIBUTES: dict[type, frozenset[str]] = {
    str: _STRING,
    Markup: _STRING,
    dict: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count grouper index list"),
    date: _DATE,
    time: _TIME,
    datetime: _DATE | _TIME | {"date", "time"},
    timedelta: _words("days seconds total_seconds"),
    LoopContext: _words(
        "changed cycle depth depth0 first index index0 last length nextitem previtem revindex "
        "revindex0"
    ),
}

#: The filters there are, beside ``|safe`` for constants.
FILTERS = _words(
    "abs batch capitalize center count d default dictsort e escape filesizeformat first float "
    "forceescape format groupby indent int items join last length list lower map max min reject "
    "rejectattr replace reverse round select selectattr slice sort string striptags sum title "
    "tojson trim truncate unique upper urlencode wordcount wordwrap"
)
#: Numbers and strings among the arguments of these say how much is made out of little.
_SIZED = _words("batch center indent round slice tojson wordwrap")

#: A ``%`` format with a width or precision that is large or not told, or with a name that hides it.
_WIDE_FORMAT = re.compile(r"%(?:\([^()]*\))?[#0 +-]*(?:\*|\d{4}|\d*\.(?:\*|\d{4}))|%\([^()]*\(")


class Refused(Exception):
    """Something that no template may do; the text says what."""


class _Context(Context):
    """The values of one rendering, and what is left of its allowance."""

    left = MAX_WORK

    def spend(self, cost: int) -> None:
        """Count work. Raises `Refused` when it was too much."""
        self.left -= cost
        if self.left < 0:
            raise Refused("too much work")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all templates of one kind."""

    context_class = _Context
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, html: bool) -> None:
        super().__init__(
            autoescape=html,
            undefined=StrictUndefined,
            finalize=_finalize,
            cache_size=0,
        )
        counted = {name: _counted(name, self.filters[name]) for name in FILTERS}
        self.filters = {**counted, "_concat": _concat, "_steps": _steps, "_made": _made}
        self.globals = {"range": self.globals["range"]}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """True if a template may have it: a list of what it may, not of what it may not."""
        kind = tuple if isinstance(obj, tuple) else type(obj)
        return attr in _ATTRIBUTES.get(kind, ())

    def wrap_str_format(self, value: Any) -> None:
        """Never: `str.format` is not among the attributes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The attribute, but of a mapping its key: ``order.items`` is what the fields say it is."""
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, or `range`."""
        __context.spend(_STEP + _length(getattr(__obj, "__self__", None)))
        return _measured(__context, super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result may be much larger than what it is made of."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return _measured(context, super().call_binop(context, operator, left, right))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 0


def _measured(context: _Context, value: Any) -> Any:
    """`value`, which a template has made; the characters and values in it are counted."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise Refused("a number that is too large")
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, dict):
            left += item.values()
        context.spend(_VALUE + _length(item))
    return value


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name`, whose work is counted."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def run(context: _Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        first: dict[str, Any] = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        context.spend(_STEP + _length(value))
        if name in ("join", "list", "sum") and not isinstance(value, (str, Undefined)):
            value = _measured(context, list(value))
        _check_sizes(context, name, value, [*args, *kwargs.values()])
        given = (first[passed], value) if passed else (value,)
        return _measured(context, function(*given, *args, **kwargs))

    return run


def _check_sizes(context: _Context, name: str, value: Any, arguments: list[Any]) -> None:
    """Refuse a filter that would make much out of little, before it does."""
    if name == "format":
        _check_format(str(value))
    elif name == "replace" and len(arguments) >= 2:
        text, old, new = str(value), str(arguments[0]), str(arguments[1])
        # Escaping makes up to six characters of one.
        context.spend((text.count(old) * len(new) + len(text)) * 6)
    elif name == "join" and arguments:
        context.spend(len(value) * len(str(arguments[0])) * 6)
    elif name == "sum" and any(_length(argument) for argument in arguments[1:]):
        raise Refused("only numbers can be summed up")
    elif name in _SIZED:
        largest = _MAX_INDENT if name == "tojson" else _MAX_WIDTH
        sizes = [a if isinstance(a, (int, float, Decimal)) else _length(a) for a in arguments]
        if not all(-largest <= size <= largest for size in sizes):
            raise Refused(f"a size beyond {largest}")
        if name == "indent":
            context.spend((str(value).count("\n") + 1) * int(max([0, *sizes])))
        elif name == "wordwrap":
            context.spend(_length(value) * max([1, *map(_length, arguments)]))


def _check_format(text: str) -> None:
    if "%" in text and _WIDE_FORMAT.search(text):
        raise Refused(f"a format with a width beyond {_MAX_WIDTH}")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise Refused("a number that is too large")
        return
    times = left if isinstance(left, int) else right if isinstance(right, int) else 0
    if max(_length(left), _length(right)) * max(times, 0) > MAX_OUTPUT:
        raise Refused(f"more than {MAX_OUTPUT} characters or values at once")


def _check_power(left: Any, right: Any) -> None:
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() * max(right, 1) > MAX_BITS
    ):
        raise Refused("a number that is too large")


def _finalize(value: Any) -> Any:
    """`value` as it is written; escaping comes after."""
    if isinstance(value, (Markup, Undefined)):
        return value
    if type(value) not in SCALARS:
        raise Refused(f"a value of type {type(value).__name__!r} cannot stand in text")
    return in_text(value)


@pass_context
def _concat(context: _Context, values: list[Any]) -> str:
    """What ``~`` makes."""
    context.spend(_STEP + 6 * sum(map(_length, values)))
    eval_context: EvalContext = context.eval_ctx
    join = markup_join if eval_context.autoescape else str_join
    return _measured_text(context, join([_finalize(value) for value in values]))


def _measured_text(context: _Context, text: str) -> str:
    context.spend(len(text))
    return text


@pass_context
def _steps(context: _Context, values: Any) -> list[Any]:
    """The values of a loop, each of which is a step."""
    found: list[Any] = []
    for value in values:
        context.spend(_STEP)
        found.append(value)
    return found


@pass_context
def _made(context: _Context, values: Any) -> Any:
    """A list or mapping that the template has made itself."""
    return _measured(context, values)
