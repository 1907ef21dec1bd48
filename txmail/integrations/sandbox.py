"""The sandbox in which templates are rendered. See `jinja2` and `sandbox_costs`.

The lists here have everything that a template can name: attributes and methods by the type of their
value, filters and tests. Each is charged for before it runs (`sandbox_costs`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any

from jinja2 import StrictUndefined, Undefined
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from markupsafe import Markup

from ..common.ascii_text import ascii_split
from ..common.shown import echo, name_of
from ..message.templates.template_values import SCALARS, in_text
from .sandbox_costs import (
    NODE,
    STEP,
    VALUE,
    Refused,
    charge_call,
    charge_filter,
    charge_items,
    charge_operator,
    charge_test,
    charge_value,
    length,
)

#: The quota of one rendering: about a second. A character of output costs 1.
MAX_WORK = 50_000_000
#: The most characters that one character becomes in HTML.
_ESCAPED = 6


def _words(text: str) -> frozenset[str]:
    return frozenset(ascii_split(text))


_STRING = _words(
    "capitalize casefold count endswith find isalnum isalpha isdecimal isdigit islower isnumeric "
    "isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_DATE = _words("day isoformat isoweekday month strftime weekday year")
_TIME = _words("hour isoformat microsecond minute second strftime")
#: The attributes that a template can reach, by the type of a value. Other types have none.
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

#: The filters that exist, besides ``|safe`` for constants.
FILTERS = _words(
    "abs batch capitalize center count d default dictsort e escape filesizeformat first float "
    "forceescape format groupby indent int items join last length list lower map max min reject "
    "rejectattr replace reverse round select selectattr slice sort string striptags sum title "
    "tojson trim truncate unique upper urlencode wordcount wordwrap"
)
#: The tests that exist.
TESTS = _words(
    "boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable "
    "le lessthan lower lt mapping ne none number odd sequence string true undefined upper "
    "!= < <= == > >="
)


class _Context(Context):
    """The fields of one rendering, and its quota."""

    left = MAX_WORK

    def spend(self, cost: int) -> None:
        """Charge `cost`. Raises `Refused` if too little is left."""
        self.left -= cost
        if self.left < 0:
            raise Refused("too much work")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all templates of one kind."""

    context_class = _Context
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, html: bool) -> None:
        super().__init__(
            autoescape=html,
            undefined=StrictUndefined,
            finalize=_finalize,
            cache_size=0,
        )
        counted = {name: _charged_filter(name, self.filters[name]) for name in FILTERS}
        own = {
            "_concat": _concat,
            "_charge_loop": _charge_loop,
            "_charge_value": _charge_value,
            "_charge_slice": _charge_slice,
        }
        self.filters = {**counted, **own}
        tests: dict[str, Any] = self.tests
        self.tests = {name: _charged_test(name, tests[name]) for name in TESTS}
        self.globals = {"range": self.globals["range"]}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """True if the attribute is on the list."""
        kind = tuple if isinstance(obj, tuple) else type(obj)
        return attr in _ATTRIBUTES.get(kind, ())

    def wrap_str_format(self, value: Any) -> None:
        """None: `str.format` is not on the list of attributes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """The attribute; of a mapping the key first: ``order.items`` is the field of that name."""
        if type(obj) is dict and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method or `range`, and charge for it."""
        charge_call(__context, __obj, args, kwargs)
        return charge_value(__context, super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Do an operation whose result may be much larger than its operands, and charge for it."""
        charge_operator(context, operator, left, right)
        return charge_value(context, super().call_binop(context, operator, left, right))


def _charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name`, charged for before it runs."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def run(context: _Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        first: dict[str, Any] = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        if hasattr(type(value), "__next__"):
            value = charge_value(context, value)
        charge_filter(context, name, value, [*args, *kwargs.values()])
        given = (first[passed], value) if passed else (value,)
        made = function(*given, *args, **kwargs)
        # An iterator is charged for where the template uses it.
        return made if hasattr(type(made), "__next__") else charge_value(context, made)

    return run


def _charged_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The test `name`, charged for before it runs."""

    @pass_context
    def run(context: _Context, value: Any, *args: Any) -> Any:
        charge_test(context, name, value, list(args))
        return function(value, *args)

    return run


@pass_context
def _finalize(context: _Context, value: Any) -> Any:
    """`value` as text. Jinja2 escapes it afterwards."""
    if isinstance(value, Undefined):
        return value
    context.spend(VALUE + length(value))
    return _as_written(value)


def _as_written(value: Any) -> Any:
    if isinstance(value, (Markup, Undefined)):
        return value
    if type(value) not in SCALARS:
        raise Refused(f"a value of type {echo(name_of(type(value)))} cannot stand in text")
    return in_text(value)


@pass_context
def _concat(context: _Context, values: list[Any]) -> str:
    """The result of ``~``."""
    context.spend(STEP + _ESCAPED * sum(map(length, values)))
    eval_context: EvalContext = context.eval_ctx
    join = markup_join if eval_context.autoescape else str_join
    return _measured_text(context, join([_as_written(value) for value in values]))


def _measured_text(context: _Context, text: str) -> str:
    context.spend(len(text))
    return text


@pass_context
def _charge_loop(context: _Context, values: Any, nodes: int) -> list[Any]:
    """The values of a loop whose body has `nodes` nodes; charges for each turn."""
    return charge_items(context, values, STEP + NODE * nodes)


@pass_context
def _charge_value(context: _Context, values: Any) -> Any:
    """`value`, a collection made by the template or an operand of it; charges for its contents."""
    return values if isinstance(values, Undefined) else charge_value(context, values)


@pass_context
def _charge_slice(context: _Context, value: Any) -> Any:
    """`value`, of which a slice is copied; charges for the copy."""
    context.spend(STEP + length(value))
    return value
