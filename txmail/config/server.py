"""The mail server of the settings: a URL, or what pyramid_mailer says in place of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ..exceptions import ConfigurationError
from ..interfaces import ITransport
from ..smtp.tls import TlsFiles
from ..transports import from_urls
from ..transports.hosts import is_loopback, read_host
from ..transports.local.sendmail import Command
from ..transports.url import CLEAR_AT_FIRST, TLS_AT_ONCE, Login
from .values import conflict

_FILES = ("certfile", "keyfile", "cafile")
#: Settings that say where mail goes. Without one of them the others mean nothing.
SERVER = ("url", "host", "sendmail_app", "sendmail_template")
ABOUT_SERVER = ("port", "tls", "ssl", "username", "password", "password_from", *_FILES)

#: Settings that conflict with a URL, and what the URL already says.
_SAID_BY_URL = {
    "host": "which host",
    "port": "which port",
    "tls": "whether TLS is used",
    "ssl": "whether TLS is used",
}


def read_server(combined: Mapping[str, Any], prefix: str) -> ITransport:
    """The transport to the mail server that `combined` describes.

    `combined` has converted values by names without `prefix`. Raises `ConfigurationError`.
    """
    command = Command.from_template(
        combined.get("sendmail_app"),
        combined.get("sendmail_template"),
        app_field=f"{prefix}sendmail_app",
        template_field=f"{prefix}sendmail_template",
    )
    urls = combined.get("url")
    for name, about in _SAID_BY_URL.items():
        if name in combined and urls is not None:
            raise conflict(prefix, name, "url", about)
    urls = urls or [_legacy_url(combined, prefix)]
    return from_urls(urls, field=prefix + "url", command=command, login=_login(combined, prefix))


def _login(combined: Mapping[str, Any], prefix: str) -> Login:
    user = combined.get("username", "")
    password, source = combined.get("password"), combined.get("password_from")
    if password is not None and source is not None:
        raise conflict(prefix, "password_from", "password", "what the password is")
    if user and password is None and source is None:
        raise ConfigurationError(
            f"a user without a password: add {prefix}password_from or {prefix}password",
            field=f"{prefix}username",
        )
    files = TlsFiles(*(combined.get(name) for name in ("cafile", "certfile", "keyfile")))
    return Login(user, password or source, files, prefix)


def _legacy_url(combined: Mapping[str, Any], prefix: str) -> str:
    """The URL for the settings of pyramid_mailer, where TLS is off by default."""
    host = combined.get("host", "localhost")
    if combined.get("tls") is False and not combined.get("ssl") and not is_loopback(host):
        raise ConfigurationError(
            "a host off loopback needs TLS: remove it; to go without TLS, say "
            f"{prefix}url = smtp://HOST:PORT?tls=off or tls=opportunistic",
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
