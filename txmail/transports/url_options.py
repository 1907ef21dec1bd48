"""Reads the options of ``smtp://`` URLs. Errors name the option, and never show its value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from ..address import parse_domain
from ..common.ascii_text import ascii_lower, number_of
from ..common.nearest import did_you_mean
from ..exceptions import AddressError, ConfigurationError
from ..secret import Secret
from ..smtp.auth import check_mechanisms

_YES_NO = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
#: Names of options that an error may show.
_OPTION = re.compile(r"[a-z_]{1,32}", re.ASCII)
#: A larger number of seconds or connections is a typing error.
_MOST = 1_000_000


def read_options(query: str, field: str) -> dict[str, Any]:
    """The options behind the ? of an ``smtp://`` URL, converted, by name.

    Raises `ConfigurationError`, which names the option.
    """
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        shown = name in _CONVERTERS or _OPTION.fullmatch(name)
        where = f"{field} option {name}" if shown else f"{field} option"
        if name in found:
            raise ConfigurationError("the option is given twice: remove one", field=where)
        convert = _CONVERTERS.get(name)
        if convert is None:
            problem = "there is no such option" + did_you_mean(name, _CONVERTERS)
            raise ConfigurationError(problem, field=where)
        found[name] = convert(value, where)
    return found


def _seconds(value: str, field: str) -> Any:
    return _number(float, value, field, "a number of seconds above 0 is needed")


def _count(value: str, field: str) -> Any:
    return _number(int, value, field, "a whole number above 0 is needed")


def _number(kind: Callable[[str], Any], value: str, field: str, problem: str) -> Any:
    number = number_of(kind, value)
    if number is None or not 0 < number <= _MOST:
        raise ConfigurationError(problem, field=field)
    return number


def _yes_no(value: str, field: str) -> bool:
    if ascii_lower(value) not in _YES_NO:
        raise ConfigurationError("yes or no is needed", field=field)
    return _YES_NO[ascii_lower(value)]


def _hostname(value: str, field: str) -> str:
    try:
        return parse_domain(value)
    except AddressError:
        pass  # its text repeats the value, which may be a part of a password
    raise ConfigurationError("a domain or an address literal is needed", field=field)


def _text(value: str, field: str) -> str:
    return value


def _file(value: str, field: str) -> str:
    if not value:
        raise ConfigurationError("the name of a file is needed", field=field)
    return value


def _source(value: str, field: str) -> Secret:
    return Secret(source=value, field=field)


_CONVERTERS: dict[str, Callable[[str, str], Any]] = {
    "tls": _text,
    "timeout": _seconds,
    "pool": _count,
    "local_hostname": _hostname,
    "pipelining": _yes_no,
    "chunking": _yes_no,
    "window": _count,
    "connections": _count,
    "messages": _count,
    "auth": check_mechanisms,
    "auth_in_clear": _yes_no,
    "password_from": _source,
    "x509_strict": _yes_no,
    "cafile": _file,
    "certfile": _file,
    "keyfile": _file,
}
#: Names of the options.
URL_OPTIONS = frozenset(_CONVERTERS)
