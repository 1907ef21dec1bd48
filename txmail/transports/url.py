"""Transport URLs, such as ``smtp://host:port?option=value`` and ``memory:``.

Errors name the option and show nothing else of the URL: there may be a password in it, also where
none should be.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_to_bytes, urlsplit

from ..address import parse_domain, plain_text
from ..common.ascii_text import ascii_lower, number_of
from ..common.nearest import did_you_mean
from ..exceptions import AddressError, ConfigurationError
from ..interfaces import ITransport
from ..secret import UNUSABLE, Secret, Unshown, bare
from ..smtp.auth import check_mechanisms
from ..smtp.options import Options
from ..smtp.pool import POOL_SIZE
from ..smtp.tls import NO_FILES, TlsFiles, TlsMode
from ..types import Transport
from .failover import FailoverTransport
from .hosts import is_loopback, read_host
from .local.sendmail import Command
from .local.url import SCHEMES, local_transport
from .memory import MemoryTransport
from .smtp import SmtpTransport

#: Schemes that mean SMTP, and their ports (RFC 5321, RFC 8314).
_PORTS = {"smtp": 25, "smtps": 465}
#: The port where TLS begins at once (RFC 8314).
TLS_AT_ONCE = 465
#: Ports where TLS begins with STARTTLS, if at all (RFC 5321, RFC 6409).
CLEAR_AT_FIRST = (25, 587)
_YES_NO = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
#: What may be the name of an option, so that an error can show it.
_OPTION = re.compile(r"[a-z_]{1,32}", re.ASCII)
#: Seconds and connections beyond which a number is a typing error.
_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Login:
    """What settings say beside the URL: who we are, for servers whose URL does not say it."""

    user: str = ""
    password: Secret | None = None
    files: TlsFiles = NO_FILES
    #: what the names of these settings begin with
    prefix: str = ""


def from_url(
    url: str | Secret,
    *,
    field: str = "url",
    command: Command | None = None,
    login: Login | None = None,
) -> ITransport:
    """The transport of `url`. Raises `ConfigurationError`, which calls the URL `field`.

    ``smtp://[user:password@]host[:port]`` and ``smtps://`` (TLS from the first octet, port 465)
    take the options ``tls`` (``required``, ``implicit``, ``opportunistic``, ``off``; required
    unless the host is loopback), ``cafile``, ``certfile``, ``keyfile``, ``auth`` (the
    mechanisms to use, with commas between), ``password_from`` (see `txmail.secret`),
    ``auth_in_clear`` (``yes`` to log in without verified TLS), ``x509_strict`` (``no`` takes
    certificates that are not quite as RFC 5280 wants them), ``timeout`` (seconds for a reply),
    ``pool`` (connections kept), ``messages`` (a connection is retired after so many),
    ``local_hostname`` (our name in EHLO), ``pipelining`` and ``chunking`` (``no`` turns it off),
    ``window`` (messages that may be on their way, and so in doubt, at once on one connection) and
    ``connections`` (used by one `ISession.send`). ``memory:``, ``console:`` and ``file:///folder``
    take none, ``sendmail:///path/of/program`` takes ``timeout`` (seconds for a call). `command` is
    what ``sendmail:`` without a path runs, `login` who we are where the URL does not say it.
    """
    given = Unshown(url)
    del url
    try:
        return _transport(given, field, command, login or Login())
    except ConfigurationError as error:
        # A password may stand anywhere in a URL, and so in any variable that it was taken apart to.
        problem = bare(error)
    raise problem


def _transport(given: Unshown, field: str, command: Command | None, login: Login) -> ITransport:
    plain, user, password = _without_credentials(given.get(), field)
    scheme = _scheme(plain, field)
    if scheme in SCHEMES:
        return local_transport(scheme, plain, field, command)
    if scheme == "memory":
        if ascii_lower(plain) != "memory:":
            raise ConfigurationError("memory: takes nothing behind its colon", field=field)
        return MemoryTransport()
    if scheme not in _PORTS:
        raise ConfigurationError(
            "it has to begin with smtp://, smtps://, sendmail: or file://, "
            "or be memory: or console:",
            field=field,
        )
    split = _split(plain, _PORTS[scheme])
    if split is None:
        raise ConfigurationError("it is not a URL with a port of 1 to 65535", field=field)
    parts, port = split
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError("smtp://host:port takes no path and no fragment", field=field)
    options = _query(parts.query, field)
    if "tls" not in options:
        _check_port(scheme, port, field)
    if user:
        if password is not None and "password_from" in options:
            raise ConfigurationError(
                "there is a password already", field=f"{field} option password_from"
            )
        if password is None and not login.user:
            password = login.password
        login = dataclasses.replace(login, user=user, password=password)
    return _smtp(_host(parts, field), port, scheme, options, login, field)


if TYPE_CHECKING:

    def transport_from_url(url: str | Secret, *, field: str = "url") -> Transport:
        """What `from_url` returns, by the type that applications know."""
else:
    # The same function: one more frame would have one more variable with the password in it.
    transport_from_url = from_url


def from_urls(
    urls: Sequence[str | Secret],
    *,
    field: str = "url",
    command: Command | None = None,
    login: Login | None = None,
) -> ITransport:
    """The transport of one URL, or of several: the first that works is used.

    Raises `ConfigurationError`, as `from_url` does, and for the user of a `login` who would log
    in at several hosts: only one of them is whose password it is.
    """
    given = Unshown(urls)
    del urls
    routes = [from_url(u, field=field, command=command, login=login) for u in given.get()]
    hosts = {ascii_lower(r.options.tls_name) for r in routes if isinstance(r, SmtpTransport)}
    if login is not None and login.user and len(hosts) > 1:
        raise ConfigurationError(
            f"{field} has several servers, and all of them would get the password; "
            "name the user in each URL, as in smtp://USER@HOST",
            field=login.prefix + "username",
        )
    return routes[0] if len(routes) == 1 else FailoverTransport(routes)


def _without_credentials(url: object, field: str) -> tuple[str, str, Secret | None]:
    """The URL without user and password, and these two; unquoted."""
    if isinstance(url, Secret):
        url = url.reveal(field)
    url = plain_text(url)
    if not isinstance(url, str):
        raise ConfigurationError("a string is needed", field=field)
    scheme, mark, rest = url.partition("://")
    authority, at, behind = rest.rpartition("@")
    if not mark or not at or ascii_lower(scheme) not in _PORTS:
        return scheme + mark + rest, "", None
    user, _, password = authority.partition(":")
    name, word = _unquoted(user), _unquoted(password)
    if any(c in authority for c in "/?#@[]") or not name or word is None or UNUSABLE.search(name):
        raise ConfigurationError(
            "the credentials are not user:password with special characters percent-encoded",
            field=field,
        )
    return scheme + mark + behind, name, Secret(word) if word else None


def _unquoted(text: str) -> str | None:
    """`text` with its percent-encoding undone; None if that is not UTF-8."""
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeError:
        return None


def _scheme(url: str, field: str) -> str:
    if not url.isprintable() or " " in url:
        # urlsplit would remove some of them without a word
        raise ConfigurationError("it has blanks or control characters", field=field)
    return ascii_lower(url.partition(":")[0]) if ":" in url else ""


def _split(url: str, default: int) -> tuple[SplitResult, int] | None:
    """The parts of `url` and its port. Errors of urlsplit repeat the URL: none gets out of here."""
    try:
        parts = urlsplit(url)
        port = default if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts, port) if port and "@" not in parts.netloc else None


def _smtp(
    host: str, port: int, scheme: str, options: dict[str, Any], login: Login, field: str
) -> SmtpTransport:
    mode = _tls_mode(scheme, options.pop("tls", None), host, field)
    files, named = _files(options, login, field)
    if "x509_strict" in options:
        named["x509_strict"] = f"{field} option x509_strict"
    if named and mode is TlsMode.OFF:
        raise ConfigurationError("there is no TLS to use it for", field=min(named.values()))
    password = options.pop("password_from", None) or login.password
    if login.user and password is None:
        raise ConfigurationError("a user without a password", field=field)
    if password is not None and not login.user:
        raise ConfigurationError("a password without a user", field=_where(password, login))
    if login.user and not options.get("auth_in_clear"):
        _check_safe_for_credentials(mode, host, field)
    connections = options.pop("connections", 1)
    pool = options.pop("pool", max(POOL_SIZE, connections))
    known = Options(
        host, port, tls=mode, files=files, user=login.user, password=password, **options
    )
    try:
        return SmtpTransport(known, pool, connections=connections)
    except ConfigurationError as error:
        problem = error
    reason = str(problem).removeprefix(f"{problem.field}: ")
    raise ConfigurationError(reason, field=named.get(problem.field, field))


def _check_safe_for_credentials(mode: TlsMode, host: str, field: str) -> None:
    """Raise `ConfigurationError` if somebody in between could get a password (CWE-295)."""
    if mode is TlsMode.OFF:
        problem = "credentials would go out in clear"
    elif not mode.verified and not is_loopback(host):
        problem = "with tls=opportunistic credentials would go to whoever answers, unverified"
    else:
        return
    raise ConfigurationError(
        f"{problem}; say tls=required, or auth_in_clear=yes if that is what you want", field=field
    )


def _where(password: Secret, login: Login) -> str:
    """What an error calls a password that has no user."""
    return login.prefix + ("password" if password.source is None else "password_from")


def _files(options: dict[str, Any], login: Login, field: str) -> tuple[TlsFiles, dict[str, str]]:
    """The files that are named, and what an error calls each of them."""
    names = [f.name for f in dataclasses.fields(TlsFiles)]
    own = {name: options.pop(name) for name in names if name in options}
    if own:
        return TlsFiles(**own), {name: f"{field} option {name}" for name in own}
    named = [name for name in names if getattr(login.files, name) is not None]
    return login.files, {name: login.prefix + name for name in named}


def _tls_mode(scheme: str, said: str | None, host: str, field: str) -> TlsMode:
    if said is not None and said not in list(TlsMode):
        raise ConfigurationError(
            "required, implicit, opportunistic or off is needed", field=f"{field} option tls"
        )
    if scheme == "smtps":
        if said not in (None, TlsMode.IMPLICIT):
            raise ConfigurationError("smtps:// is tls=implicit", field=f"{field} option tls")
        return TlsMode.IMPLICIT
    if said is None:
        return TlsMode.OFF if is_loopback(host) else TlsMode.REQUIRED
    return TlsMode(said)


def _check_port(scheme: str, port: int, field: str) -> None:
    """Raise `ConfigurationError` if `port` is known to begin in the other way than `scheme`.

    A client and a server that both wait for the other to begin would wait until a time-out.
    """
    if scheme == "smtp" and port == TLS_AT_ONCE:
        raise ConfigurationError(
            "on port 465 TLS begins at once, so that this port is smtps://; "
            "if this server is different, say tls=required or what else it needs",
            field=field,
        )
    if scheme == "smtps" and port in CLEAR_AT_FIRST:
        raise ConfigurationError(
            f"on port {port} the server speaks first, in clear, and TLS begins with STARTTLS, "
            "so that this port is smtp://; if this server is different, say tls=implicit",
            field=field,
        )


def _host(parts: SplitResult, field: str) -> str:
    if not parts.hostname:
        raise ConfigurationError("there is no host", field=field)
    # urlsplit has made it lower case, in which some letters become those of ASCII.
    changed = any(not c.isascii() and c.lower()[:1].isascii() for c in parts.netloc)
    host = "" if changed else unquote(parts.hostname)
    known = read_host(host)
    if known is None or parts.netloc.startswith("[") is not (":" in host):
        raise ConfigurationError("that is no host name and no address", field=field)
    return known


def _query(query: str, field: str) -> dict[str, Any]:
    """Options by name, converted; every name once."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        shown = name in _CONVERTERS or _OPTION.fullmatch(name)
        where = f"{field} option {name}" if shown else f"{field} option"
        if name in found:
            raise ConfigurationError("it is given twice", field=where)
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
        pass  # its text repeats what may be a part of a password
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
#: What may stand behind the ? of an ``smtp://`` URL.
URL_OPTIONS = frozenset(_CONVERTERS)
