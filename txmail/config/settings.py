"""Read settings: check each value, and make the transport, the queue and the routes.

Settings come from a Pyramid ini file, as strings, or from a dict, as strings or as converted
values. An unknown key is an error: an application would notice a misspelt setting only when its
mail is missing.

Errors name the setting and do not show its value: the user may have put the password into any
setting.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..address import plain_text
from ..budget import COMMIT_TIMEOUT
from ..common.nearest import did_you_mean
from ..delivery.direct import ABORT, PREFLIGHT, QUEUE
from ..exceptions import ConfigurationError
from ..interfaces import IQueue, ITransport, IWitness
from ..secret import Unshown, bare
from ..submission import PRIORITIES
from ..transports.url_options import URL_OPTIONS
from .optional import queue_module
from .queue import QUEUE_SETTINGS, read_queue
from .server import ABOUT_SERVER, SERVER, read_server
from .values import (
    parse_boolean,
    parse_count,
    parse_folder,
    parse_one_of,
    parse_password,
    parse_password_from,
    parse_port,
    parse_rate,
    parse_seconds,
    parse_secret_url,
    parse_sender,
    parse_text,
    parse_urls,
    parse_user,
    parse_words,
)

#: Names of settings begin with this, as those of pyramid_mailer do.
PREFIX = "mail."

#: Settings of which several describe one part, a server or the queue.
_COMBINED = frozenset([*SERVER, *ABOUT_SERVER, *QUEUE_SETTINGS])

#: Names of the settings of a route begin with this, such as ``route.newsletter.url``.
_ROUTE = "route."
#: The route for mail that no other route takes.
DEFAULT_ROUTE = "default"
#: Settings that say which mail takes a route.
_RULES = ("senders", "domains", "priorities")

#: The values of ``delivery``: what `send` does.
DIRECT = "direct"
DELIVERY = (DIRECT, QUEUE)


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked and converted settings."""

    transport: ITransport
    default_sender: str | None = None
    #: one of `DELIVERY`
    delivery: str = DIRECT
    queue: IQueue | None = None
    #: the routes of workers, each a `txmail.worker.Route`; empty if all mail takes `transport`
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
    """The `Settings` whose names begin with `prefix`; other keys are ignored.

    ``url`` names the mail server, or ``host`` and ``port`` as in pyramid_mailer; the default is
    ``localhost``, port 25. Raises `ConfigurationError`, which names the setting.
    """
    given = settings if isinstance(settings, Unshown) else Unshown(settings)
    del settings
    try:
        return _read(given.get() or {}, prefix)
    except ConfigurationError as error:
        # A traceback with variables would show the password, even if another setting is wrong.
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
    try:
        queue = read_queue(combined, prefix, settings)
    except ConfigurationError as error:
        raise named_by(error, prefix) from None
    for name in ("delivery", "on_unavailable", "on_partial"):
        if found.get(name) == QUEUE and queue is None:
            raise ConfigurationError(
                f"there is no queue: {prefix}queue_url is needed", field=prefix + name
            )
    transport = read_server(combined, prefix)
    if ways and queue is None:
        raise ConfigurationError(
            f"routes need a queue: {prefix}queue_url is needed",
            field=prefix + _ROUTE + min(ways),
        )
    return Settings(transport, queue=queue, routes=_routes(ways, transport, prefix), **found)


def _plain(value: Any) -> Any:
    """`value`, or each item of a list, as `plain_text` converts it."""
    if isinstance(value, (list, tuple)):
        return [plain_text(one) for one in value]
    return plain_text(value)


def _read_route(ways: dict[str, dict[str, Any]], name: str, value: Any, key: str) -> None:
    """Add the setting `name`, such as ``newsletter.url``, to those of its route in `ways`."""
    way, _, name = name.partition(".")
    reader = _ROUTE_READERS.get(name)
    if not way or reader is None:
        raise _unknown(name, key.removesuffix(name), _ROUTE_READERS)
    if way == DEFAULT_ROUTE and name in _RULES:
        problem = "the default route takes what no other takes: remove this setting"
        raise ConfigurationError(problem, field=key)
    read = reader(value, key)
    if read is not None:
        ways.setdefault(way, {})[name] = read


def _unknown(name: str, prefix: str, names: Iterable[str]) -> ConfigurationError:
    """What to raise for a setting `name` that is not among `names`."""
    meant = name.removeprefix(prefix)  # the user may have written the prefix twice
    problem = "there is no such setting" + did_you_mean(meant, names, prefix)
    if name in URL_OPTIONS:
        problem += f"; it is an option of a URL: {prefix}url = smtp://HOST?{name}=..."
    return ConfigurationError(problem, field=prefix + name)


def named_by(error: ConfigurationError, prefix: str) -> ConfigurationError:
    """`error`, which names an argument, as an error that names the setting of the argument."""
    if error.field not in _READERS:
        return error
    problem = str(error).removeprefix(f"{error.field}: ")
    return ConfigurationError(problem, field=prefix + error.field)


def _routes(ways: dict[str, dict[str, Any]], transport: ITransport, prefix: str) -> tuple[Any, ...]:
    """The routes of `ways` in their order, and last the default route."""
    if not ways:
        return ()
    route = queue_module("worker.router", "SQLAlchemy", prefix).Route
    routes = []
    for name in [*(name for name in ways if name != DEFAULT_ROUTE), DEFAULT_ROUTE]:
        given = ways.get(name, {})
        limits = {key: value for key, value in given.items() if key not in _COMBINED}
        server = {key: value for key, value in given.items() if key in _COMBINED}
        start = f"{prefix}{_ROUTE}{name}."
        if server and not any(key in server for key in SERVER):
            raise ConfigurationError(
                f"the route has no server: {start}url is needed", field=start + min(server)
            )
        way = read_server(server, start) if server else transport
        try:
            routes.append(route.to(name, way, **limits))
        except ConfigurationError as error:
            if error.field not in _ROUTE_READERS:
                raise
            problem = str(error).removeprefix(f"{error.field}: ")
            raise ConfigurationError(problem, field=start + error.field) from None
    return tuple(routes)


# -- settings that need a library, or change something


def find_witnesses(resources: Sequence[Any], known: Sequence[IWitness]) -> list[IWitness]:
    """Witnesses of the ZODBs among `resources` of a transaction, without the `known` ones."""
    # An application that has a ZODB in its transaction has imported ZODB.
    if "ZODB.Connection" not in sys.modules:
        return []
    module = importlib.import_module("txmail.integrations.zodb")
    return cast("list[IWitness]", module.find_witnesses(resources, known))


def _html_to_text(value: Any, field: str) -> Callable[[str], str] | None:
    """The converter that is given, or for true the one of `txmail.integrations.html_text`."""
    if callable(value):
        return cast("Callable[[str], str]", value)
    if value is None or not parse_boolean(value, field):
        return None
    try:
        module = importlib.import_module("txmail.integrations.html_text")
    except ImportError as error:
        problem = "it needs inscriptis: pip install 'txmail[html]'"
        raise ConfigurationError(problem, field=field) from error
    return cast("Callable[[str], str]", module.HtmlToText())


def _debug(value: Any, field: str) -> None:
    # pyramid_mailer prints the dialogue to the terminal; txmail logs it.
    if value is not None and parse_boolean(value, field):
        logging.getLogger("txmail.smtp").setLevel(logging.DEBUG)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "url": parse_urls,
    "host": parse_text,
    "port": parse_port,
    "tls": parse_boolean,
    "ssl": parse_boolean,
    "default_sender": parse_sender,
    "preflight": parse_one_of(*PREFLIGHT),
    "transient": parse_boolean,
    "commit_timeout": parse_seconds,
    "dummy_transactional": parse_boolean,
    "delivery": parse_one_of(*DELIVERY),
    "on_unavailable": parse_one_of(ABORT, QUEUE),
    "on_partial": parse_one_of(ABORT, QUEUE),
    "queue_url": parse_secret_url,
    "queue_path": parse_folder,
    "queue_engine_url": parse_secret_url,
    "queue_limit": parse_count,
    "doubt_retries": parse_count,
    "on_doubt": parse_one_of("retry", "hold"),
    "username": parse_user,
    "password": parse_password,
    "password_from": parse_password_from,
    "cafile": parse_text,
    "certfile": parse_text,
    "keyfile": parse_text,
    "sendmail_app": parse_text,
    "sendmail_template": parse_text,
    "top_level_directory": parse_text,
    "html_to_text": _html_to_text,
    "debug": _debug,
}

_ROUTE_READERS: dict[str, Callable[[Any, str], Any]] = {
    **{name: _READERS[name] for name in (*SERVER, *ABOUT_SERVER)},
    "senders": parse_words(),
    "domains": parse_words(),
    "priorities": parse_words(*PRIORITIES),
    "rate": parse_rate,
    "connections": parse_count,
    "window": parse_count,
}
