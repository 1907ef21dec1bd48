"""Makes transports without a server from URLs: ``sendmail:``, ``file:`` and ``console:``."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from ...common.ascii_text import ascii_lower, number_of
from ...exceptions import ConfigurationError
from ...interfaces import ITransport
from .console import ConsoleTransport
from .folder import FileTransport
from .sendmail import TIMEOUT, Command, SendmailTransport

SCHEMES = ("sendmail", "file", "console")


def local_transport(scheme: str, url: str, field: str, command: Command | None) -> ITransport:
    """The transport of `url`, whose `scheme` is one of `SCHEMES`.

    ``sendmail:`` without a path runs `command`. Raises `ConfigurationError`, which calls the URL
    `field`.
    """
    if scheme == "console":
        if ascii_lower(url) != "console:":
            raise ConfigurationError("console: takes nothing behind its colon", field=field)
        return ConsoleTransport()
    path, options = _path_and_options(scheme, url, field)
    if scheme == "file":
        if options or path in ("", "/"):
            raise ConfigurationError("file:///path/of/folder is needed, no options", field=field)
        return FileTransport(path)
    timeout = _timeout(options, field)
    command = command or Command()
    if path:
        command = Command(path, command.options)
    return SendmailTransport(command, timeout)


def _path_and_options(scheme: str, url: str, field: str) -> tuple[str, str]:
    """The path, absolute or empty, and the part behind the question mark."""
    try:
        parts = urlsplit(url)
        here = ascii_lower(parts.netloc) in ("", "localhost")
    except ValueError:
        here = False
    path = os.fsdecode(unquote_to_bytes(parts.path)) if here else ""
    if not here or parts.fragment or "\0" in path or (path and not path.startswith("/")):
        raise ConfigurationError(
            f"{scheme}:///absolute/path is needed, with three slashes", field=field
        )
    return path, parts.query


def _timeout(query: str, field: str) -> float:
    options = parse_qsl(query, keep_blank_values=True)
    if not options and not query:
        return TIMEOUT
    if [name for name, _ in options] != ["timeout"]:
        raise ConfigurationError("sendmail: has one option, timeout", field=field)
    seconds = number_of(float, options[0][1])
    if seconds is None or not 0 < seconds < float("inf"):
        raise ConfigurationError(
            "a number of seconds above 0 is needed", field=f"{field} option timeout"
        )
    return seconds
