"""Settings into parts. The one module that knows which class a setting stands for.

Settings come from a Pyramid ini or a dict: strings, or values that are what they should be
already. A key that is not known here is refused: a misspelt setting that is ignored is found out
when the mail is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from .address import parse_mailbox
from .budget import COMMIT_TIMEOUT
from .delivery import PREFLIGHT, DirectDelivery
from .events import Events
from .exceptions import AddressError, ConfigurationError
from .transports import from_url
from .transports.url import is_loopback

#: What pyramid_mailer calls its settings begin with.
PREFIX = "mail."

_TRUE = {"true", "yes", "on", "y", "t", "1"}
_FALSE = {"false", "no", "off", "n", "f", "0", ""}

#: Settings of the durable queue, and values of others that need it.
_QUEUE = "the durable queue is not in this version"
_CREDENTIALS = "credentials are not supported by this version"
_TLS = "verified TLS is not supported by this version"
_SENDMAIL = "the sendmail program is not supported by this version"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the settings say, checked and converted."""

    url: str
    default_sender: str | None = None
    preflight: str = "auto"
    transient: bool = False
    #: seconds
    commit_timeout: float = COMMIT_TIMEOUT
    #: False: a `DummyMailer` appends at `send()`, not at commit
    dummy_transactional: bool = True

    def delivery(self, events: Events | None = None) -> DirectDelivery:
        """The delivery they describe."""
        return DirectDelivery(
            from_url(self.url, field="url"),
            events=events,
            preflight=self.preflight,
            transient=self.transient,
            commit_timeout=self.commit_timeout,
        )


def read_settings(settings: Mapping[str, Any] | None, prefix: str = PREFIX) -> Settings:
    """The `Settings` under `prefix`. Raises `ConfigurationError`, which names the setting.

    A mail server is named by ``url``, or by pyramid_mailer's ``host`` and ``port``; without
    either it is ``localhost``, port 25. Keys that do not begin with `prefix` are somebody else's.
    """
    found: dict[str, Any] = {}
    legacy: dict[str, Any] = {}
    for key, value in (settings or {}).items():
        if not isinstance(key, str) or not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        reader = _READERS.get(name)
        if reader is None:
            raise ConfigurationError("there is no such setting", field=key)
        value = reader(value, key)
        if name in ("host", "port", "tls", "ssl"):
            legacy[name] = value
        elif value is not None and name in Settings.__slots__:
            found[name] = value
    if legacy:
        _legacy_url(found, legacy, prefix)
    found.setdefault("url", "smtp://localhost:25")
    return Settings(**found)


def _legacy_url(found: dict[str, Any], legacy: dict[str, Any], prefix: str) -> None:
    host, port = legacy.get("host"), legacy.get("port")
    for name in ("tls", "ssl"):
        if legacy.get(name):
            raise ConfigurationError(_TLS, field=prefix + name)
    if host is None and port is None:
        return
    if "url" in found:
        name = "host" if host is not None else "port"
        raise ConfigurationError(f"it is said by {prefix}url already", field=prefix + name)
    host = host or "localhost"
    if not is_loopback(host):
        raise ConfigurationError(
            "a host off loopback needs TLS, which this version cannot verify; use "
            f"{prefix}url = smtp://HOST:PORT?tls=opportunistic (or tls=off) to go without",
            field=prefix + "host",
        )
    shown = f"[{host}]" if ":" in host else quote(host)
    found["url"] = f"smtp://{shown}:{port or 25}"


# -- one reader for each setting


def _text(value: Any, field: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigurationError("a string is needed", field=field, value=value)
    return value.strip() or None


def _url(value: Any, field: str) -> str | None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError("a URL is needed", field=field)
    from_url(value.strip(), field=field)
    return value.strip()


def _sender(value: Any, field: str) -> str | None:
    text = _text(value, field)
    if text is not None:
        try:
            parse_mailbox(text, field=field)
        except AddressError as error:
            raise ConfigurationError("an address is needed", field=field, value=text) from error
    return text


def _boolean(value: Any, field: str) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigurationError("true or false is needed", field=field, value=value)


def _seconds(value: Any, field: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError("seconds above 0 are needed", field=field, value=value)
    return seconds


def _port(value: Any, field: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        port = int(value)
    except (TypeError, ValueError):
        port = 0
    if not 0 < port < 65536:
        raise ConfigurationError("a port of 1 to 65535 is needed", field=field, value=value)
    return port


def _one_of(*words: str, else_: str = "") -> Callable[[Any, str], str]:
    def read(value: Any, field: str) -> str:
        if value in words:
            return str(value)
        problem = else_ or f"one of {', '.join(words)} is needed"
        raise ConfigurationError(problem, field=field, value=value)

    return read


def _refused(problem: str) -> Callable[[Any, str], None]:
    """For settings that this version knows and cannot honour; empty ones say nothing."""

    def read(value: Any, field: str) -> None:
        if value not in (None, "", False, 0, "0", "false"):
            raise ConfigurationError(problem, field=field)

    return read


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
    "delivery": _one_of("direct", else_=_QUEUE),
    "on_unavailable": _one_of("abort", else_=_QUEUE),
    "on_partial": _one_of("abort", else_=_QUEUE),
    "queue_url": _refused(_QUEUE),
    "queue_path": _refused(_QUEUE),
    "on_doubt": _refused(_QUEUE),
    "username": _refused(_CREDENTIALS),
    "password": _refused(_CREDENTIALS),
    "keyfile": _refused(_TLS),
    "certfile": _refused(_TLS),
    "sendmail_app": _refused(_SENDMAIL),
    "sendmail_template": _refused(_SENDMAIL),
    "debug": _refused("the protocol log is not in this version"),
}
