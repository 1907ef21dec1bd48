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

Where secrets come from, in settings and URLs, and where they may come back, in what a server says,
they are plain text for a moment. `Unshown`, `bare` and `Censor` keep that moment out of tracebacks,
logs and errors.
"""

from __future__ import annotations

import base64
import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, quote_plus

from .address import plain_text
from .common.ascii_text import ascii_lower, ascii_upper
from .common.shown import name_of
from .exceptions import ConfigurationError, TxmailError

STARS = "********"
#: Octets below which a form of a secret is not searched for: it would be found everywhere, in the
#: status codes of a reply too.
SHORTEST_HIDDEN = 4

#: What no user name, password or token has: control characters (RFC 4013 section 2.3), some of
#: which end a field of a mechanism's message, and what is no text at all.
UNUSABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]", re.ASCII)
_E = TypeVar("_E", bound=TxmailError)
_PERCENT = re.compile("%..", re.ASCII)
_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)", re.ASCII)


class Secret:
    """A password or a token, given as a value or by its source."""

    __slots__ = ("_ask", "source")

    #: where the value comes from; None if it was given, or is gone
    source: str | None

    def __init__(
        self,
        value: str | None = None,
        *,
        source: str | None = None,
        field: str = "password_from",
    ) -> None:
        """Raises `ConfigurationError`, about `field`, for a `source` that is none.

        Sources are asked on use.
        """
        source, value = plain_text(source), plain_text(value)
        self.source = source
        if source is not None:
            self._ask: Callable[[], str] | None = _asker(source, field)
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

    @property
    def of_a_program(self) -> bool:
        """True if a function gives the value, which may be another one each time."""
        return self.source is not None and not self.source.startswith(("env:", "file:"))

    def reveal(self, owner: str) -> str:
        """The value. Raises `ConfigurationError`, which names `owner`, if there is none."""
        if self._ask is None:
            raise ConfigurationError(
                "the password was not pickled; say with password_from where to get it",
                field=owner,
            )
        problem = "there is no password" if self.source is None else "its source has no value"
        try:
            found = plain_text(self._ask())
            if isinstance(found, str) and found:
                if UNUSABLE.search(found) is None:
                    return found
                problem = "the password has control characters, or is no text"
            found = ""
        except Exception as error:
            problem = f"its source failed with {name_of(type(error))}"
        # Raised out here, because what a source raises may have the secret in its text or frames.
        raise ConfigurationError(problem, field=owner)

    @property
    def is_lost_in_pickles(self) -> bool:
        """True if it has a value, and no source by which to find it again."""
        return self.source is None and self._ask is not None

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


def _asker(source: str, field: str) -> Callable[[], str]:
    kind, _, rest = source.partition(":")
    if kind == "env" and rest:
        return lambda: os.environ.get(rest, "")
    if kind == "file" and rest:
        return lambda: Path(rest).read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    found = _CALLABLE.fullmatch(source)
    if found is None:
        raise ConfigurationError(
            "env:NAME, file:/path or package.module:function is needed", field=field
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


class Unshown:
    """Something that has secrets in it, as a variable whose repr is a row of stars."""

    __slots__ = ("get",)

    def __init__(self, value: Any) -> None:
        #: gives it back
        self.get: Callable[[], Any] = lambda: value

    def __repr__(self) -> str:
        return STARS

    def __reduce__(self) -> NoReturn:
        raise TypeError("it has secrets in it")


def bare(error: _E) -> _E:
    """`error` without the frames it passed, whose variables may be secrets, and without a cause."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def raise_alone(error: BaseException) -> NoReturn:
    """Raise `error` without what is being handled, whose frames may have secrets as variables.

    ``from None`` only keeps that from being printed.
    """
    try:
        raise error from None
    finally:
        error.__context__ = None


class Censor:
    """Takes secrets out of octets, in the forms in which a server may echo them."""

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        # One string in a closure: neither an attribute nor a container shows a part of it.
        self._forms: Callable[[], bytes] = bytes

    def hide(self, secret: str) -> None:
        """From now on take out `secret`: plain, in base64, in hexadecimal, as in a URL."""
        self.hide_octets(*forms_of(secret))

    def hide_octets(self, *forms: bytes) -> None:
        """From now on take out these as they are; they have no line ends."""
        known = self._forms().split(b"\n")
        found = {form for form in (*known, *forms) if len(form) >= SHORTEST_HIDDEN}
        longest_first = sorted(found, key=len, reverse=True)
        joined = b"\n".join(longest_first)
        self._forms = lambda: joined

    @property
    def active(self) -> bool:
        """True if there is something to take out."""
        return bool(self._forms())

    def clean(self, octets: bytes) -> bytes:
        """`octets` with stars in place of what is hidden."""
        for form in self._forms().split(b"\n"):
            if form and form in octets:
                octets = octets.replace(form, STARS.encode("ascii"))
        return octets


def forms_of(secret: str) -> Iterator[bytes]:
    """The forms of `secret` that `Censor.hide` speaks of."""
    raw = secret.encode()
    every = "".join(f"%{octet:02X}" for octet in raw)
    for text in (quote(secret, safe=""), quote_plus(secret), quote(secret), every):
        yield text.encode("ascii")
        yield _PERCENT.sub(lambda found: ascii_lower(found[0]), text).encode("ascii")
    yield raw
    for escaped in (ascii(secret)[1:-1], ascii(raw)[2:-1]):
        yield escaped.encode("ascii")
    yield secret.encode("latin-1", "replace")
    yield raw.hex().encode("ascii")
    yield ascii_upper(raw.hex()).encode("ascii")
    for offset in range(3):
        # Within a longer text, such as an answer of PLAIN, it begins at one of three places of a
        # group; the characters at its ends have bits of what is beside it.
        encoded = base64.b64encode(b"\0" * offset + raw)
        whole = encoded[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))
