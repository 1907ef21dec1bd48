"""Passwords and tokens, in a type that shows nothing.

A `Secret` gives its value to `reveal` and to nobody else. Its repr, str and format are a row of
stars, json refuses it, and it has no attribute that a dump of objects would show. A pickle of it
carries only its *source*, which is asked again where the pickle is read:

``env:NAME``
    an environment variable
``file:/path``
    the first line of a file
``package.module:function``
    what a module-level function returns, called each time: for tokens that expire

A secret that was given as a value has no source: after a pickle it is gone, and says so.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .exceptions import ConfigurationError

STARS = "********"

_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")


class Secret:
    """A password or a token, given as a value or by its source."""

    __slots__ = ("_ask", "source")

    #: where the value comes from; None if it was given, or is gone
    source: str | None

    def __init__(self, value: str | None = None, *, source: str | None = None) -> None:
        """Raises `ConfigurationError` for a `source` that is none. Sources are asked on use."""
        self.source = source
        if source is not None:
            self._ask: Callable[[], str] | None = _asker(source)
        elif value is not None:
            self._ask = lambda: value  # in a closure, not in an attribute
        else:
            self._ask = None

    @classmethod
    def of(cls, value: Any, field: str) -> Secret:
        """A `Secret` of a setting: a string, a module-level callable, or a `Secret`."""
        if isinstance(value, Secret):
            return value
        if isinstance(value, str):
            return cls(value)
        if callable(value):
            return cls(source=_name_of(value, field))
        raise ConfigurationError("a string or a module-level function is needed", field=field)

    def reveal(self, owner: str) -> str:
        """The value. Raises `ConfigurationError`, which names `owner`, if there is none."""
        if self._ask is None:
            raise ConfigurationError(
                "the password was not pickled; say with password_from where to get it",
                field=owner,
            )
        problem = "its source has no value"
        try:
            found = self._ask()
            if isinstance(found, str) and found:
                return found
            found = ""
        except Exception as error:
            problem = f"its source failed with {type(error).__name__}"
        # Raised out here, because what a source raises may have the secret in its text or frames.
        raise ConfigurationError(problem, field=owner)

    def __repr__(self) -> str:
        return STARS

    def __format__(self, specification: str) -> str:
        return format(STARS, specification)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        if self is other or (self.source is not None and self.source == other.source):
            return True
        return (
            self.source is other.source is None
            and self._ask is not None
            and other._ask is not None
            and self._ask() == other._ask()
        )

    def __hash__(self) -> int:
        return hash(self.source)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.source,)

    def __iter__(self) -> NoReturn:
        raise TypeError("a Secret is no text")


def _unpickled(source: str | None) -> Secret:
    return Secret(source=source)


def _asker(source: str) -> Callable[[], str]:
    kind, _, rest = source.partition(":")
    if kind == "env" and rest:
        return lambda: os.environ.get(rest, "")
    if kind == "file" and rest:
        return lambda: Path(rest).read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    found = _CALLABLE.fullmatch(source)
    if found is None:
        raise ConfigurationError(
            "env:NAME, file:/path or package.module:function is needed", field="password_from"
        )
    return lambda: _resolved(found["module"], found["name"])()


def _resolved(module: str, name: str) -> Any:
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _name_of(function: Any, field: str) -> str:
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        raise ConfigurationError(
            "a function at the top level of a module is needed, so that it can be found again",
            field=field,
        )
    return f"{module}:{name}"
