"""The sandbox that templates are filled in. See `jinja2` beside it, and `sandbox_costs`.

Everything that a template can name is on a list here: attributes and methods by the type of their
value, filters and tests. Each is paid for before it is run.
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
    length,
    measured,
    pay_call,
    pay_filter,
    pay_operator,
    pay_test,
    taken,
)

#: What one rendering may cost, which is a second or so; a character that is made costs 1.
MAX_WORK = 50_000_000
#: How many characters one character becomes at most where it is written in HTML.
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
#: The tests there are.
TESTS = _words(
    "boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable "
    "le lessthan lower lt mapping ne none number odd sequence string true undefined upper "
    "!= < <= == > >="
)


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
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, html: bool) -> None:
        super().__init__(
            autoescape=html,
            undefined=StrictUndefined,
            finalize=_finalize,
            cache_size=0,
        )
        counted = {name: _counted(name, self.filters[name]) for name in FILTERS}
        own = {"_concat": _concat, "_steps": _steps, "_made": _made, "_sliced": _sliced}
        self.filters = {**counted, **own}
        tests: dict[str, Any] = self.tests
        self.tests = {name: _counted_test(name, tests[name]) for name in TESTS}
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
        pay_call(__context, __obj, args, kwargs)
        return measured(__context, super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result may be much larger than what it is made of."""
        pay_operator(context, operator, left, right)
        return measured(context, super().call_binop(context, operator, left, right))


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name`, which is paid for before it is run."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def run(context: _Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        first: dict[str, Any] = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        if hasattr(type(value), "__next__"):
            value = measured(context, value)
        pay_filter(context, name, value, [*args, *kwargs.values()])
        given = (first[passed], value) if passed else (value,)
        made = function(*given, *args, **kwargs)
        # What is made lazily is paid for where it is used.
        return made if hasattr(type(made), "__next__") else measured(context, made)

    return run


def _counted_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The test `name`, which is paid for before it is run."""

    @pass_context
    def run(context: _Context, value: Any, *args: Any) -> Any:
        pay_test(context, name, value, list(args))
        return function(value, *args)

    return run


@pass_context
def _finalize(context: _Context, value: Any) -> Any:
    """`value` as it is written; escaping comes after."""
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
    """What ``~`` makes."""
    context.spend(STEP + _ESCAPED * sum(map(length, values)))
    eval_context: EvalContext = context.eval_ctx
    join = markup_join if eval_context.autoescape else str_join
    return _measured_text(context, join([_as_written(value) for value in values]))


def _measured_text(context: _Context, text: str) -> str:
    context.spend(len(text))
    return text


@pass_context
def _steps(context: _Context, values: Any, nodes: int) -> list[Any]:
    """The values of a loop that has so many nodes in its body, each of which is a step."""
    return taken(context, values, STEP + NODE * nodes)


@pass_context
def _made(context: _Context, values: Any) -> Any:
    """A list or mapping that the template has made itself, or a value that is looked through."""
    return values if isinstance(values, Undefined) else measured(context, values)


@pass_context
def _sliced(context: _Context, value: Any) -> Any:
    """A value of which a part is copied."""
    context.spend(STEP + length(value))
    return value
