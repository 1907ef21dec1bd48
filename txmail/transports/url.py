"""Makes transports from URLs, such as ``smtp://host:port?option=value`` and ``memory:``.

Errors name the option and show nothing else of the URL: it may have a password in it, also where
none should be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from ..address import plain_text
from ..common.ascii_text import ascii_lower
from ..exceptions import ConfigurationError
from ..interfaces import ITransport
from ..secret import UNUSABLE, Secret, Unshown, bare
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
from .url_options import read_options

#: Schemes that mean SMTP, and their ports (RFC 5321, RFC 8314).
_PORTS = {"smtp": 25, "smtps": 465}
#: The port where TLS begins at once (RFC 8314).
TLS_AT_ONCE = 465
#: Ports where TLS begins with STARTTLS, if at all (RFC 5321, RFC 6409).
CLEAR_AT_FIRST = (25, 587)


@dataclass(frozen=True, slots=True)
class Login:
    """User, password and certificate of settings, for servers whose URL has none."""

    user: str = ""
    password: Secret | None = None
    files: TlsFiles = NO_FILES
    #: the beginning of the names of these settings
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
    ``local_hostname`` (the name in EHLO), ``pipelining`` and ``chunking`` (``no`` turns it off),
    ``window`` (messages that may be on their way, and so in doubt, at once on one connection) and
    ``connections`` (used by one `ISession.send`). ``memory:``, ``console:`` and ``file:///folder``
    take no options, ``sendmail:///path/of/program`` takes ``timeout`` (seconds for a call).
    ``sendmail:`` without a path runs `command`. `login` is for a URL without a user.
    """
    given = Unshown(url)
    del url
    try:
        return _transport(given, field, command, login or Login())
    except ConfigurationError as error:
        # Without its traceback: a password may be anywhere in a URL, and so in any variable.
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
    options = read_options(parts.query, field)
    if "tls" not in options:
        _check_port(scheme, port, field)
    if user:
        if password is not None and "password_from" in options:
            raise ConfigurationError(
                "the URL has a password already: remove one of them",
                field=f"{field} option password_from",
            )
        if password is None and not login.user:
            password = login.password
        login = dataclasses.replace(login, user=user, password=password)
    return _smtp(_host(parts, field), port, scheme, options, login, field)


if TYPE_CHECKING:

    def transport_from_url(url: str | Secret, *, field: str = "url") -> Transport:
        """See `from_url`. This type is the one that applications know."""
else:
    # The same function: another frame would have another variable with the password in it.
    transport_from_url = from_url


def from_urls(
    urls: Sequence[str | Secret],
    *,
    field: str = "url",
    command: Command | None = None,
    login: Login | None = None,
) -> ITransport:
    """The transport of one URL; of several URLs, one that uses the first that works.

    Raises `ConfigurationError`, as `from_url` does, and if the user of `login` would log in at
    several hosts: the password belongs to one of them.
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
    """The URL without user and password; the user and the password, percent-decoded."""
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
    """`text`, percent-decoded; None if that is not UTF-8."""
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeError:
        return None


def _scheme(url: str, field: str) -> str:
    if not url.isprintable() or " " in url:
        # urlsplit would remove some of them silently
        raise ConfigurationError("it has blanks or control characters", field=field)
    return ascii_lower(url.partition(":")[0]) if ":" in url else ""


def _split(url: str, default: int) -> tuple[SplitResult, int] | None:
    """The parts of `url` and its port; None for errors of urlsplit, which repeat the URL."""
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
        raise ConfigurationError(
            "tls=off uses no certificates: remove this, or say tls=required",
            field=min(named.values()),
        )
    password = options.pop("password_from", None) or login.password
    if login.user and password is None:
        raise ConfigurationError(
            "the user has no password: add one, or remove the user", field=field
        )
    if password is not None and not login.user:
        raise ConfigurationError(
            "the password has no user: add one, or remove the password",
            field=_where(password, login),
        )
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
    """Raise `ConfigurationError` if an attacker in between could get a password (CWE-295)."""
    if mode is TlsMode.OFF:
        problem = "the password would be sent in clear"
    elif not mode.verified and not is_loopback(host):
        problem = "tls=opportunistic would send the password to a server that proves nothing"
    else:
        return
    raise ConfigurationError(
        f"{problem}; say tls=required, or auth_in_clear=yes if that is what you want", field=field
    )


def _where(password: Secret, login: Login) -> str:
    """The name by which an error calls a password that has no user."""
    return login.prefix + ("password" if password.source is None else "password_from")


def _files(options: dict[str, Any], login: Login, field: str) -> tuple[TlsFiles, dict[str, str]]:
    """The files, and by option the name by which an error calls each of them."""
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
    """Raise `ConfigurationError` if servers on `port` are known not to begin as `scheme` says.

    Client and server would both wait for the other one to begin, until a time-out.
    """
    if scheme == "smtp" and port == TLS_AT_ONCE:
        raise ConfigurationError(
            "on port 465 TLS begins at once: say smtps://; "
            "if this server is different, say tls=required or what else it needs",
            field=field,
        )
    if scheme == "smtps" and port in CLEAR_AT_FIRST:
        raise ConfigurationError(
            f"on port {port} the server speaks first, in clear, and TLS begins with STARTTLS: "
            "say smtp://; if this server is different, say tls=implicit",
            field=field,
        )


def _host(parts: SplitResult, field: str) -> str:
    if not parts.hostname:
        raise ConfigurationError("the host is missing", field=field)
    # urlsplit returns lower case, in which some letters become letters of ASCII.
    changed = any(not c.isascii() and c.lower()[:1].isascii() for c in parts.netloc)
    host = "" if changed else unquote(parts.hostname)
    known = read_host(host)
    if known is None or parts.netloc.startswith("[") is not (":" in host):
        raise ConfigurationError("the host is neither a host name nor an IP address", field=field)
    return known
