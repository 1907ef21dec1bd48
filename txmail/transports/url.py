"""Transport URLs: ``smtp://host:port?option=value`` and ``memory:``.

Errors name the option and never show the URL: there may be a password in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..address import parse_domain
from ..exceptions import AddressError, ConfigurationError
from ..interfaces import ITransport
from ..smtp.pool import POOL_SIZE
from ..smtp.session import Options
from .memory import MemoryTransport
from .smtp import SmtpTransport

#: Options that this version knows by name and cannot honour.
_NOT_YET = frozenset({"auth", "cafile", "certfile", "keyfile"})
#: Options whose other values this version cannot honour.
_FIXED = {"window": "1", "connections": "1", "chunking": "no"}
_YES_NO = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
#: Seconds and connections beyond which a number is a typing error.
_MOST = 1_000_000


def from_url(url: str, *, field: str = "url") -> ITransport:
    """The transport of `url`. Raises `ConfigurationError`, which calls the URL `field`.

    ``smtp://host[:port]`` takes the options ``tls`` (``off`` or ``opportunistic``, required
    unless the host is loopback), ``timeout`` (seconds for a reply), ``pool`` (connections kept),
    ``local_hostname`` (our name in EHLO), ``pipelining`` (``no`` turns it off), ``window=1``,
    ``connections=1`` and ``chunking=no``. ``memory:`` takes none.
    """
    if not isinstance(url, str):
        raise ConfigurationError("a string is needed", field=field, value=url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError("it is not a URL with a port of 0 to 65535", field=field) from None
    if parts.scheme == "memory":
        if url != "memory:":
            raise ConfigurationError("memory: takes nothing behind its colon", field=field)
        return MemoryTransport()
    if parts.scheme in ("smtps", "sendmail", "file"):
        raise ConfigurationError(f"{parts.scheme}: is not supported by this version", field=field)
    if parts.scheme != "smtp":
        raise ConfigurationError("it has to begin with smtp:// or be memory:", field=field)
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("credentials are not supported by this version", field=field)
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError("smtp://host:port takes no path and no fragment", field=field)
    return _smtp(_host(parts.hostname, field), 25 if port is None else port, parts.query, field)


def _smtp(host: str, port: int, query: str, field: str) -> SmtpTransport:
    options = _query(query, field)
    tls = options.pop("tls", None)
    if port == 0:
        raise ConfigurationError("port 0 is nobody's", field=field)
    if tls not in (None, "off", "opportunistic", "required", "implicit"):
        raise ConfigurationError(
            "off, opportunistic, required or implicit is needed", field=f"{field} option tls"
        )
    if tls in ("required", "implicit"):
        raise ConfigurationError(
            "verified TLS is not supported by this version", field=f"{field} option tls"
        )
    if tls is None and not is_loopback(host):
        raise ConfigurationError(
            "a host off loopback needs TLS, which this version cannot verify; "
            "say tls=opportunistic or tls=off to go without",
            field=f"{field} option tls",
        )
    pool = options.pop("pool", POOL_SIZE)
    return SmtpTransport(
        Options(host=host, port=port, opportunistic_tls=tls == "opportunistic", **options), pool
    )


def is_loopback(host: str) -> bool:
    """True if mail to `host` cannot leave this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _host(host: str | None, field: str) -> str:
    if not host:
        raise ConfigurationError("there is no host", field=field)
    host = unquote(host)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            return parse_domain(host, field=field)
        except AddressError as error:
            raise ConfigurationError("that is no host name", field=field, value=host) from error
    return host


def _query(query: str, field: str) -> dict[str, Any]:
    """Options by name, converted; every name once."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        where = (
            f"{field} option {name[:40]!a}" if not name.isidentifier() else f"{field} option {name}"
        )
        if name in found:
            raise ConfigurationError("it is given twice", field=where)
        if name in _NOT_YET:
            raise ConfigurationError("it is not supported by this version", field=where)
        if name in _FIXED:
            if value != _FIXED[name]:
                raise ConfigurationError(
                    f"this version supports {_FIXED[name]} only", field=where, value=value
                )
            continue
        convert = _CONVERTERS.get(name)
        if convert is None:
            raise ConfigurationError("there is no such option", field=where)
        found[name] = convert(value, where)
    return found


def _seconds(value: str, field: str) -> Any:
    return _number(float, value, field, "a number of seconds above 0 is needed")


def _count(value: str, field: str) -> Any:
    return _number(int, value, field, "a whole number above 0 is needed")


def _number(kind: Callable[[str], Any], value: str, field: str, problem: str) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if not 0 < number <= _MOST:
        raise ConfigurationError(problem, field=field, value=value)
    return number


def _yes_no(value: str, field: str) -> bool:
    if value.lower() not in _YES_NO:
        raise ConfigurationError("yes or no is needed", field=field, value=value)
    return _YES_NO[value.lower()]


def _hostname(value: str, field: str) -> str:
    try:
        return parse_domain(value, field=field)
    except AddressError as error:
        raise ConfigurationError(
            "a domain or an address literal is needed", field=field, value=value
        ) from error


def _text(value: str, field: str) -> str:
    return value


_CONVERTERS: dict[str, Callable[[str, str], Any]] = {
    "tls": _text,
    "timeout": _seconds,
    "pool": _count,
    "local_hostname": _hostname,
    "pipelining": _yes_no,
}
