"""Settings into parts. The one module that knows which class a setting stands for.

Settings come from a Pyramid ini or a dict: strings, or values that are what they should be
already. A key that is not known here is refused: a misspelt setting that is ignored is found out
when the mail is missing.

Errors name the setting and do not show its value: any of them may have got what belongs in another,
such as the password.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from ..address import plain_text
from ..budget import COMMIT_TIMEOUT
from ..common.nearest import did_you_mean
from ..delivery.direct import ABORT, PREFLIGHT, QUEUE
from ..exceptions import ConfigurationError
from ..interfaces import IQueue, ITransport, IWitness
from ..secret import Secret, Unshown, bare
from ..smtp.tls import TlsFiles
from ..submission import PRIORITIES
from ..transports import from_urls
from ..transports.hosts import is_loopback, read_host
from ..transports.local.sendmail import Command
from ..transports.url import CLEAR_AT_FIRST, TLS_AT_ONCE, URL_OPTIONS, Login
from .values import (
    as_boolean,
    as_count,
    as_folder,
    as_one_of,
    as_password,
    as_password_from,
    as_port,
    as_rate,
    as_seconds,
    as_secret_url,
    as_sender,
    as_text,
    as_urls,
    as_user,
    as_words,
)

#: What pyramid_mailer calls its settings begin with.
PREFIX = "mail."

_FILES = ("certfile", "keyfile", "cafile")
#: Settings that say together where mail goes, and of which one has to be there.
_SERVER = ("url", "host", "sendmail_app", "sendmail_template")
_ABOUT_SERVER = ("port", "tls", "ssl", "username", "password", "password_from", *_FILES)
#: Settings that say together what one part needs.
_COMBINED = frozenset(
    [
        *_SERVER,
        *_ABOUT_SERVER,
        "queue_url",
        "queue_path",
        "queue_engine_url",
        "queue_limit",
        "on_doubt",
        "doubt_retries",
    ]
)

#: What a URL says, and what else would say it.
_SAID_BY_URL = {
    "host": "which host",
    "port": "which port",
    "tls": "whether TLS is used",
    "ssl": "whether TLS is used",
}

#: What settings of a worker's route begin with, such as ``route.newsletter.url``.
_ROUTE = "route."
#: The route of what no other takes.
DEFAULT_ROUTE = "default"
#: Which mail takes a route.
_RULES = ("senders", "domains", "priorities")

#: What `send` does with mail.
DIRECT = "direct"
DELIVERY = (DIRECT, QUEUE)
#: The URL of a queue that is in the application's database, behind the session of a bound mailer.
IN_SESSION = "session:"
#: What settings of the application's database begin with, as SQLAlchemy's `engine_from_config`
#: reads them.
APPLICATION_DATABASE = "sqlalchemy."
#: The file of a queue whose folder is named by pyramid_mailer's ``queue_path``.
QUEUE_FILE = "txmail.db"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the settings say, checked and converted."""

    transport: ITransport
    default_sender: str | None = None
    #: one of `DELIVERY`
    delivery: str = DIRECT
    queue: IQueue | None = None
    #: those of workers, each a `txmail.worker.Route`; none if all mail takes `transport`
    routes: tuple[Any, ...] = ()
    preflight: str = "auto"
    on_unavailable: str | None = None
    on_partial: str | None = None
    transient: bool = False
    #: seconds
    commit_timeout: float = COMMIT_TIMEOUT
    #: False: a `DummyMailer` appends at `send()`, not at commit
    dummy_transactional: bool = True
    #: where a `DebugMailer` writes
    top_level_directory: str | None = None
    #: an `IHtmlToText`
    html_to_text: Callable[[str], str] | None = None


def read_settings(settings: Mapping[str, Any] | Unshown | None, prefix: str = PREFIX) -> Settings:
    """The `Settings` under `prefix`. Raises `ConfigurationError`, which names the setting.

    A mail server is named by ``url``, or by pyramid_mailer's ``host`` and ``port``; without
    either it is ``localhost``, port 25. Keys that do not begin with `prefix` are somebody else's.
    """
    given = settings if isinstance(settings, Unshown) else Unshown(settings)
    del settings
    try:
        return _read(given.get() or {}, prefix)
    except ConfigurationError as error:
        # A traceback with variables would show the password, whichever setting is wrong.
        problem = bare(error)
    raise problem


def _read(settings: Mapping[str, Any], prefix: str) -> Settings:
    found: dict[str, Any] = {}
    combined: dict[str, Any] = {}
    ways: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        key, value = plain_text(key), _plain(value)
        if not isinstance(key, str) or not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name.startswith(_ROUTE):
            _read_route(ways, name.removeprefix(_ROUTE), value, key)
            continue
        reader = _READERS.get(name)
        if reader is None:
            raise _unknown(name, prefix, _READERS)
        read = reader(value, key)
        if read is not None and name in _COMBINED:
            combined[name] = read
        elif read is not None and name in Settings.__slots__:
            found[name] = read
    queue = _queue(combined, prefix, settings)
    for name in ("delivery", "on_unavailable", "on_partial"):
        if found.get(name) == QUEUE and queue is None:
            raise ConfigurationError(
                f"there is no queue: {prefix}queue_url is needed", field=prefix + name
            )
    transport = _transport(combined, prefix)
    if ways and queue is None:
        raise ConfigurationError(
            f"routes are for a queue: {prefix}queue_url is needed",
            field=prefix + _ROUTE + min(ways),
        )
    return Settings(transport, queue=queue, routes=_routes(ways, transport, prefix), **found)


def _plain(value: Any) -> Any:
    """`value` with plain texts, as `plain_text` has it; of a list of them too."""
    if isinstance(value, (list, tuple)):
        return [plain_text(one) for one in value]
    return plain_text(value)


def _read_route(ways: dict[str, dict[str, Any]], name: str, value: Any, key: str) -> None:
    """Add the setting `name`, such as ``newsletter.url``, to what `ways` has of its route."""
    way, _, name = name.partition(".")
    reader = _ROUTE_READERS.get(name)
    if not way or reader is None:
        raise _unknown(name, key.removesuffix(name), _ROUTE_READERS)
    if way == DEFAULT_ROUTE and name in _RULES:
        raise ConfigurationError("this route takes what no other takes", field=key)
    read = reader(value, key)
    if read is not None:
        ways.setdefault(way, {})[name] = read


def _unknown(name: str, prefix: str, names: Iterable[str]) -> ConfigurationError:
    """What to raise for a setting `name` that is not among `names`."""
    meant = name.removeprefix(prefix)  # the prefix, twice
    problem = "there is no such setting" + did_you_mean(meant, names, prefix)
    if name in URL_OPTIONS:
        problem += f"; it is an option of a URL: {prefix}url = smtp://HOST?{name}=..."
    return ConfigurationError(problem, field=prefix + name)


def named_by(error: ConfigurationError, prefix: str) -> ConfigurationError:
    """`error` about an argument, as one about the setting that it comes from."""
    if error.field not in _READERS:
        return error
    problem = str(error).removeprefix(f"{error.field}: ")
    return ConfigurationError(problem, field=prefix + error.field)


def _conflict(prefix: str, one: str, other: str, about: str) -> ConfigurationError:
    return ConfigurationError(
        f"it conflicts with {prefix}{other}, which already says {about}: remove one of the two",
        field=prefix + one,
    )


def _routes(ways: dict[str, dict[str, Any]], transport: ITransport, prefix: str) -> tuple[Any, ...]:
    """The routes of `ways` in their order, and behind them that of all the rest."""
    if not ways:
        return ()
    route = _module("worker.router", "SQLAlchemy", prefix).Route
    routes = []
    for name in [*(name for name in ways if name != DEFAULT_ROUTE), DEFAULT_ROUTE]:
        given = ways.get(name, {})
        limits = {key: value for key, value in given.items() if key not in _COMBINED}
        server = {key: value for key, value in given.items() if key in _COMBINED}
        start = f"{prefix}{_ROUTE}{name}."
        if server and not any(key in server for key in _SERVER):
            raise ConfigurationError(f"{start}url is needed", field=start + min(server))
        way = _transport(server, start) if server else transport
        try:
            routes.append(route.to(name, way, **limits))
        except ConfigurationError as error:
            if error.field not in _ROUTE_READERS:
                raise
            problem = str(error).removeprefix(f"{error.field}: ")
            raise ConfigurationError(problem, field=start + error.field) from None
    return tuple(routes)


def _queue(combined: dict[str, Any], prefix: str, settings: Mapping[str, Any]) -> IQueue | None:
    """The queue of the settings that tell of it together."""
    url, path = combined.get("queue_url"), combined.get("queue_path")
    if url is not None and path is not None:
        raise _conflict(prefix, "queue_path", "queue_url", "where the queue is")
    in_session = url == Secret(IN_SESSION)
    if not in_session and "queue_engine_url" in combined:
        raise ConfigurationError(
            f"it is for {prefix}queue_url = {IN_SESSION}, and has no meaning without that",
            field=f"{prefix}queue_engine_url",
        )
    if url is None and path is None:
        for name in ("on_doubt", "doubt_retries", "queue_limit"):
            if name in combined:
                problem = f"there is no queue: {prefix}queue_url is needed"
                raise ConfigurationError(problem, field=prefix + name)
        return None
    if path is not None:
        url = Secret("sqlite:///" + quote(os.path.join(os.path.abspath(path), QUEUE_FILE)))
    options: dict[str, Any] = {
        "on_doubt": combined.get("on_doubt", "retry"),
        "limit": combined.get("queue_limit"),
    }
    if combined.get("doubt_retries") is not None:
        options["doubt_retries"] = combined["doubt_retries"]
    name, needed = ("queue.queue", "SQLAlchemy")
    if in_session:
        name, needed = ("integrations.session_queue", "zope.sqlalchemy")
        options |= _engines(combined.get("queue_engine_url"), settings, prefix)
    module = _module(name, needed, prefix)
    try:
        queue = module.session_queue(**options) if in_session else module.Queue(url, **options)
    except ConfigurationError as error:
        raise named_by(error, prefix) from None
    return cast("IQueue", queue)


def _engines(
    url: Secret | None, settings: Mapping[str, Any], prefix: str
) -> dict[str, Callable[[], Any]]:
    """What makes engines for a queue in the application's database, where no session does."""
    named = _module("queue.database.named_engine", "SQLAlchemy", prefix)
    if url is not None:
        return {"engine": named.engine_of_url(url, f"{prefix}queue_engine_url")}
    if not settings.get(f"{APPLICATION_DATABASE}url"):
        return {}
    database = {k: v for k, v in settings.items() if str(k).startswith(APPLICATION_DATABASE)}
    make = named.engine_of_settings(Unshown(database), APPLICATION_DATABASE)
    return {"default_engine": make}


def _module(name: str, needed: str, prefix: str) -> Any:
    try:
        return importlib.import_module(f"txmail.{name}")
    except ImportError as error:
        raise ConfigurationError(
            f"it needs {needed}: pip install 'txmail[queue]' {needed}", field=f"{prefix}queue_url"
        ) from error


def _transport(combined: dict[str, Any], prefix: str) -> ITransport:
    """The transport of the settings that tell of it together."""
    command = Command.from_template(
        combined.get("sendmail_app"),
        combined.get("sendmail_template"),
        app_field=f"{prefix}sendmail_app",
        template_field=f"{prefix}sendmail_template",
    )
    urls = combined.get("url")
    for name, about in _SAID_BY_URL.items():
        if name in combined and urls is not None:
            raise _conflict(prefix, name, "url", about)
    urls = urls or [_legacy_url(combined, prefix)]
    return from_urls(urls, field=prefix + "url", command=command, login=_login(combined, prefix))


def _login(combined: dict[str, Any], prefix: str) -> Login:
    user = combined.get("username", "")
    password, source = combined.get("password"), combined.get("password_from")
    if password is not None and source is not None:
        raise _conflict(prefix, "password_from", "password", "what the password is")
    if user and password is None and source is None:
        raise ConfigurationError(
            f"a user without a password: add {prefix}password_from, or {prefix}password",
            field=f"{prefix}username",
        )
    files = TlsFiles(*(combined.get(name) for name in ("cafile", "certfile", "keyfile")))
    return Login(user, password or source, files, prefix)


def _legacy_url(combined: dict[str, Any], prefix: str) -> str:
    """The URL for the settings of pyramid_mailer, in which TLS was off unless asked for."""
    host = combined.get("host", "localhost")
    if combined.get("tls") is False and not combined.get("ssl") and not is_loopback(host):
        raise ConfigurationError(
            "a host off loopback needs TLS; to go without, say "
            f"{prefix}url = smtp://HOST:PORT?tls=off, or tls=opportunistic",
            field=prefix + "tls",
        )
    if read_host(host) is None:
        problem = "a host name or an IP address is needed"
        if "://" in host:
            problem += f"; a URL goes into {prefix}url"
        elif ":" in host:
            problem += f", without the port: that is {prefix}port"
        raise ConfigurationError(problem, field=prefix + "host")
    shown = f"[{host}]" if ":" in host else quote(host)
    if combined.get("ssl"):
        port = combined.get("port", 465)
        if port in CLEAR_AT_FIRST:
            raise ConfigurationError(
                f"on port {port} TLS begins with STARTTLS: say {prefix}tls = true "
                f"in place of {prefix}ssl",
                field=prefix + "port",
            )
        return f"smtps://{shown}:{port}"
    port = combined.get("port", 25)
    if port == TLS_AT_ONCE and not combined.get("tls"):
        raise ConfigurationError(
            f"on port {port} TLS begins at once: say {prefix}ssl = true", field=prefix + "port"
        )
    return f"smtp://{shown}:{port}" + ("?tls=required" if combined.get("tls") else "")


# -- settings that need a library, or change something


def find_witnesses(resources: Sequence[Any], known: Sequence[IWitness]) -> list[IWitness]:
    """Witnesses of databases that take part in a transaction by `resources`, but for `known` ones.

    They are those of ZODB: whoever takes part with one has imported it.
    """
    if "ZODB.Connection" not in sys.modules:
        return []
    module = importlib.import_module("txmail.integrations.zodb")
    return cast("list[IWitness]", module.find_witnesses(resources, known))


def _html_to_text(value: Any, field: str) -> Callable[[str], str] | None:
    """One that is handed in, or ours, which needs a library of its own."""
    if callable(value):
        return cast("Callable[[str], str]", value)
    if value is None or not as_boolean(value, field):
        return None
    try:
        module = importlib.import_module("txmail.integrations.html_text")
    except ImportError as error:
        problem = "it needs inscriptis: pip install 'txmail[html]'"
        raise ConfigurationError(problem, field=field) from error
    return cast("Callable[[str], str]", module.HtmlToText())


def _debug(value: Any, field: str) -> None:
    # pyramid_mailer printed the dialogue to the terminal; ours is the logger txmail.smtp.
    if value is not None and as_boolean(value, field):
        logging.getLogger("txmail.smtp").setLevel(logging.DEBUG)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "url": as_urls,
    "host": as_text,
    "port": as_port,
    "tls": as_boolean,
    "ssl": as_boolean,
    "default_sender": as_sender,
    "preflight": as_one_of(*PREFLIGHT),
    "transient": as_boolean,
    "commit_timeout": as_seconds,
    "dummy_transactional": as_boolean,
    "delivery": as_one_of(*DELIVERY),
    "on_unavailable": as_one_of(ABORT, QUEUE),
    "on_partial": as_one_of(ABORT, QUEUE),
    "queue_url": as_secret_url,
    "queue_path": as_folder,
    "queue_engine_url": as_secret_url,
    "queue_limit": as_count,
    "doubt_retries": as_count,
    "on_doubt": as_one_of("retry", "hold"),
    "username": as_user,
    "password": as_password,
    "password_from": as_password_from,
    "cafile": as_text,
    "certfile": as_text,
    "keyfile": as_text,
    "sendmail_app": as_text,
    "sendmail_template": as_text,
    "top_level_directory": as_text,
    "html_to_text": _html_to_text,
    "debug": _debug,
}

_ROUTE_READERS: dict[str, Callable[[Any, str], Any]] = {
    **{name: _READERS[name] for name in (*_SERVER, *_ABOUT_SERVER)},
    "senders": as_words(),
    "domains": as_words(),
    "priorities": as_words(*PRIORITIES),
    "rate": as_rate,
    "connections": as_count,
    "window": as_count,
}
