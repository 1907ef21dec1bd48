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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast
from urllib.parse import quote

from .address import parse_mailbox
from .budget import COMMIT_TIMEOUT
from .delivery import ABORT, PREFLIGHT, QUEUE
from .exceptions import AddressError, ConfigurationError
from .interfaces import IQueue, ITemplateEngine, ITransport
from .message import Template
from .secret import UNUSABLE, Secret, Unshown, bare
from .smtp.tls import TlsFiles
from .transports import from_urls
from .transports.sendmail import Command
from .transports.url import Account, is_loopback

#: What pyramid_mailer calls its settings begin with.
PREFIX = "mail."

_TRUE = {"true", "yes", "on", "y", "t", "1"}
_FALSE = {"false", "no", "off", "n", "f", "0", ""}

#: Settings that say together what one part needs.
_COMBINED = frozenset(
    [
        "host",
        "port",
        "tls",
        "ssl",
        "url",
        "username",
        "password",
        "password_from",
        "certfile",
        "keyfile",
        "cafile",
        "sendmail_app",
        "sendmail_template",
        "queue_url",
        "queue_path",
        "queue_limit",
        "on_doubt",
    ]
)

#: What `send` does with mail.
DIRECT = "direct"
DELIVERY = (DIRECT, QUEUE)
#: The URL of a queue that is in the application's database, behind the session of a bound mailer.
IN_SESSION = "session:"
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
    for key, value in settings.items():
        if not isinstance(key, str) or not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        reader = _READERS.get(name)
        if reader is None:
            raise ConfigurationError("there is no such setting", field=key)
        read = reader(value, key)
        if read is not None and name in _COMBINED:
            combined[name] = read
        elif read is not None and name in Settings.__slots__:
            found[name] = read
    queue = _queue(combined, prefix)
    for name in ("delivery", "on_unavailable", "on_partial"):
        if found.get(name) == QUEUE and queue is None:
            raise ConfigurationError(
                f"there is no queue: {prefix}queue_url is needed", field=prefix + name
            )
    return Settings(_transport(combined, prefix), queue=queue, **found)


def _queue(combined: dict[str, Any], prefix: str) -> IQueue | None:
    """The queue of the settings that tell of it together."""
    url, path = combined.get("queue_url"), combined.get("queue_path")
    if url is not None and path is not None:
        raise ConfigurationError(
            f"it is said by {prefix}queue_url already", field=f"{prefix}queue_path"
        )
    if url is None and path is None:
        for name in ("on_doubt", "queue_limit"):
            if name in combined:
                problem = f"there is no queue: {prefix}queue_url is needed"
                raise ConfigurationError(problem, field=prefix + name)
        return None
    if path is not None:
        url = Secret("sqlite:///" + quote(os.path.join(os.path.abspath(path), QUEUE_FILE)))
    options = {
        "on_doubt": combined.get("on_doubt", "retry"),
        "limit": combined.get("queue_limit"),
    }
    try:
        if url == Secret(IN_SESSION):
            module = _module("integrations.session_queue", "zope.sqlalchemy", prefix)
            return cast("IQueue", module.session_queue(**options))
        queue = _module("queue.queue", "SQLAlchemy", prefix).Queue(url, **options)
    except ConfigurationError as error:
        problem = str(error).removeprefix(f"{error.field}: ")
        raise ConfigurationError(problem, field=prefix + error.field) from None
    return cast("IQueue", queue)


def _module(name: str, needed: str, prefix: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__)
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
    for name in ("host", "port", "tls", "ssl"):
        if name in combined and urls is not None:
            raise ConfigurationError(f"it is said by {prefix}url already", field=prefix + name)
    urls = urls or [_legacy_url(combined, prefix)]
    return from_urls(
        urls, field=prefix + "url", command=command, account=_account(combined, prefix)
    )


def _account(combined: dict[str, Any], prefix: str) -> Account:
    user = combined.get("username", "")
    password, source = combined.get("password"), combined.get("password_from")
    if password is not None and source is not None:
        raise ConfigurationError(
            f"it is said by {prefix}password already", field=f"{prefix}password_from"
        )
    if user and password is None and source is None:
        raise ConfigurationError("a user without a password", field=f"{prefix}username")
    files = TlsFiles(*(combined.get(name) for name in ("cafile", "certfile", "keyfile")))
    return Account(user, password or source, files, prefix)


def _legacy_url(combined: dict[str, Any], prefix: str) -> str:
    """The URL for the settings of pyramid_mailer, in which TLS was off unless asked for."""
    host = combined.get("host", "localhost")
    if combined.get("tls") is False and not combined.get("ssl") and not is_loopback(host):
        raise ConfigurationError(
            "a host off loopback needs TLS; to go without, say "
            f"{prefix}url = smtp://HOST:PORT?tls=off, or tls=opportunistic",
            field=prefix + "tls",
        )
    shown = f"[{host}]" if ":" in host else quote(host)
    if combined.get("ssl"):
        return f"smtps://{shown}:{combined.get('port', 465)}"
    port = combined.get("port", 25)
    return f"smtp://{shown}:{port}" + ("?tls=required" if combined.get("tls") else "")


# -- one reader for each setting


def _text(value: Any, field: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigurationError("a string is needed", field=field)
    return value.strip() or None


def _folder(value: Any, field: str) -> str | None:
    text = _text(value, field)
    if text is not None and text.lower() in _TRUE | _FALSE:
        raise ConfigurationError("a folder is needed", field=field)
    return text


def _url(value: Any, field: str) -> list[Secret]:
    urls = value.split() if isinstance(value, str) else value
    if not isinstance(urls, (list, tuple)) or not all(isinstance(u, str) for u in urls) or not urls:
        raise ConfigurationError("a URL is needed, or a list of them", field=field)
    return [Secret(url) for url in urls]


def _user(value: Any, field: str) -> str | None:
    text = _text(value, field)
    if text is not None and UNUSABLE.search(text):
        raise ConfigurationError("it has control characters, or is no text", field=field)
    return text


def _password(value: Any, field: str) -> Secret | None:
    return None if value in (None, "") else Secret.of(value, field)


def _password_from(value: Any, field: str) -> Secret | None:
    if value in (None, ""):
        return None
    if isinstance(value, str):
        return Secret(source=value.strip(), field=field)
    return Secret.of(value, field)


def _sender(value: Any, field: str) -> str | None:
    text = _text(value, field)
    if text is not None:
        try:
            parse_mailbox(text, field=field)
        except AddressError as error:
            raise ConfigurationError("an address is needed", field=field) from error
    return text


def _boolean(value: Any, field: str) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigurationError("true or false is needed", field=field)


def _seconds(value: Any, field: str) -> float:
    seconds = _number(value, float)
    if not 0 < seconds < float("inf"):
        raise ConfigurationError("seconds above 0 are needed", field=field)
    return seconds


def _count(value: Any, field: str) -> int | None:
    if value is None or value == "":
        return None
    count = _number(value, int)
    if count < 1:
        raise ConfigurationError("a number above 0 is needed", field=field)
    return int(count)


def _secret_url(value: Any, field: str) -> Secret | None:
    if value is None or value == "":
        return None
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ConfigurationError("a URL is needed", field=field)
    return Secret(value.strip())


def _port(value: Any, field: str) -> int | None:
    if value is None or value == "":
        return None
    port = _number(value, int)
    if not 0 < port < 65536:
        raise ConfigurationError("a port of 1 to 65535 is needed", field=field)
    return int(port)


def _number(value: Any, kind: type[int] | type[float]) -> float:
    """The number that `value` is or spells, 0 if it does neither."""
    if isinstance(value, bool) or not isinstance(value, (str, int, kind)):
        return 0
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return 0


def _one_of(*words: str) -> Callable[[Any, str], str]:
    def read(value: Any, field: str) -> str:
        if value in words:
            return str(value)
        raise ConfigurationError(f"one of {', '.join(words)} is needed", field=field)

    return read


def _html_to_text(value: Any, field: str) -> Callable[[str], str] | None:
    """One that is handed in, or ours, which needs a library of its own."""
    if callable(value):
        return cast("Callable[[str], str]", value)
    if value is None or not _boolean(value, field):
        return None
    try:
        module = importlib.import_module(".integrations.html_text", __package__)
    except ImportError as error:
        problem = "it needs inscriptis: pip install 'txmail[html]'"
        raise ConfigurationError(problem, field=field) from error
    return cast("Callable[[str], str]", module.HtmlToText())


@cache
def template_engine() -> ITemplateEngine:
    """The engine of templates that name none. Raises `ConfigurationError` without its library."""
    try:
        module = importlib.import_module(".integrations.jinja2", __package__)
    except ImportError as error:
        problem = "templates need Jinja2: pip install 'txmail[templates]'"
        raise ConfigurationError(problem, field="engine") from error
    return cast("ITemplateEngine", module.Jinja2Engine())


Template.default_engine = template_engine


def _debug(value: Any, field: str) -> None:
    # pyramid_mailer printed the dialogue to the terminal; ours is the logger txmail.smtp.
    if value is not None and _boolean(value, field):
        logging.getLogger("txmail.smtp").setLevel(logging.DEBUG)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "url": _url,
    "host": _text,
    "port": _port,
    "tls": _boolean,
    "ssl": _boolean,
    "default_sender": _sender,
    "preflight": _one_of(*PREFLIGHT),
    "transient": _boolean,
    "commit_timeout": _seconds,
    "dummy_transactional": _boolean,
    "delivery": _one_of(*DELIVERY),
    "on_unavailable": _one_of(ABORT, QUEUE),
    "on_partial": _one_of(ABORT, QUEUE),
    "queue_url": _secret_url,
    "queue_path": _folder,
    "queue_limit": _count,
    "on_doubt": _one_of("retry", "hold"),
    "username": _user,
    "password": _password,
    "password_from": _password_from,
    "cafile": _text,
    "certfile": _text,
    "keyfile": _text,
    "sendmail_app": _text,
    "sendmail_template": _text,
    "top_level_directory": _text,
    "html_to_text": _html_to_text,
    "debug": _debug,
}
