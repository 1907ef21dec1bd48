"""Where a command's mail settings come from: ``--url``, an ini file, the environment.

For commands that are about a queue it is ``--queue-url``.
"""

from __future__ import annotations

import argparse
import configparser
import os
from typing import Any

from ..config import IN_SESSION, PREFIX
from ..exceptions import ConfigurationError

#: The environment variable that names the mail server.
URL_VARIABLE = "TXMAIL_URL"
#: The environment variable that names the queue.
QUEUE_VARIABLE = "TXMAIL_QUEUE_URL"
#: The settings that name a queue.
QUEUE_SETTINGS = ("queue_url", "queue_path")
#: What else there is to be said of one.
_QUEUE_OPTIONS = ("on_doubt", "queue_limit")
#: Where a Pyramid ini has the settings of the application.
SECTION = "app:main"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read` reads."""
    group = parser.add_argument_group("where it goes, the first of these that is given")
    group.add_argument("--url", metavar="URL", help="such as smtp://mx.example.com:25")
    _add_file(group, "mail.url")


def add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read_queue` reads."""
    group = parser.add_argument_group("which queue, the first of these that is given")
    group.add_argument("--queue-url", metavar="URL", help="such as sqlite:////var/lib/app/mail.db")
    _add_file(group, "mail.queue_url")


def _add_file(group: argparse._ArgumentGroup, setting: str) -> None:
    group.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"an ini file with {setting} and other settings, as Pyramid has them",
    )
    group.add_argument(
        "--section",
        metavar="NAME",
        default=SECTION,
        help=f"the section of that file (default: {SECTION})",
    )


def read(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The settings and the prefix of their keys. Raises `ConfigurationError`."""
    if arguments.url is not None:
        return {f"{PREFIX}url": arguments.url}, PREFIX
    if arguments.config is not None:
        return _from_ini(arguments.config, arguments.section)
    url = os.environ.get(URL_VARIABLE)
    if url:
        return {f"{PREFIX}url": url}, PREFIX
    raise ConfigurationError(
        f"there is no mail server: use --url, -c app.ini or the variable {URL_VARIABLE}"
    )


def read_queue(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The settings that name the queue, and their prefix. Raises `ConfigurationError`."""
    if arguments.queue_url is not None:
        return {f"{PREFIX}queue_url": arguments.queue_url}, PREFIX
    if arguments.config is not None:
        settings, prefix = _from_ini(arguments.config, arguments.section)
        found = {
            prefix + name: settings[prefix + name]
            for name in QUEUE_SETTINGS
            if settings.get(prefix + name)
        }
        if not found:
            raise ConfigurationError(f"{arguments.config}: there is no {prefix}queue_url")
        return found, prefix
    url = os.environ.get(QUEUE_VARIABLE)
    if url:
        return {f"{PREFIX}queue_url": url}, PREFIX
    raise ConfigurationError(
        f"there is no queue: use --queue-url, -c app.ini or the variable {QUEUE_VARIABLE}"
    )


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read_worker` reads."""
    group = parser.add_argument_group("where the mail is, and where it goes")
    group.add_argument("--queue-url", metavar="URL", help="such as sqlite:////var/lib/app/mail.db")
    group.add_argument("--url", metavar="URL", help="such as smtp://mx.example.com:25")
    _add_file(group, "mail.queue_url, mail.url")


def read_worker(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The settings of a queue and of a mail server, and their prefix.

    What the command line names comes before what is in the file, and without a file the variables
    count. Raises `ConfigurationError`.
    """
    if arguments.config is None:
        queue, prefix = read_queue(arguments)
        return {**queue, **read(arguments)[0]}, prefix
    found, prefix = _from_ini(arguments.config, arguments.section)
    if arguments.url is not None:
        found = {**_of_queue(found, prefix), f"{prefix}url": arguments.url}
    if arguments.queue_url is not None:
        for name in QUEUE_SETTINGS:
            found.pop(prefix + name, None)
        found[f"{prefix}queue_url"] = arguments.queue_url
    if not any(found.get(prefix + name) for name in QUEUE_SETTINGS):
        raise ConfigurationError(f"{arguments.config}: there is no {prefix}queue_url")
    if found.get(f"{prefix}queue_url") == IN_SESSION:
        raise ConfigurationError(
            f"{prefix}queue_url: the queue is in the application's database, which is not named "
            "here: add --queue-url"
        )
    return found, prefix


def read_any(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What `read_worker` reads, where a queue may be missing. Raises `ConfigurationError`."""
    if arguments.queue_url is not None or (
        arguments.config is None and os.environ.get(QUEUE_VARIABLE)
    ):
        return read_worker(arguments)
    if arguments.config is None:
        return read(arguments)
    found, prefix = _from_ini(arguments.config, arguments.section)
    if arguments.url is None:
        return found, prefix
    return {**_of_queue(found, prefix), f"{prefix}url": arguments.url}, prefix


def _of_queue(found: dict[str, Any], prefix: str) -> dict[str, Any]:
    kept = [prefix + name for name in (*QUEUE_SETTINGS, *_QUEUE_OPTIONS)]
    return {name: value for name, value in found.items() if name in kept}


def _from_ini(path: str, section: str) -> tuple[dict[str, Any], str]:
    # Errors of configparser repeat lines of the file, and a password may stand in them.
    parser = configparser.ConfigParser(
        {"here": os.path.dirname(os.path.abspath(path)), "__file__": os.path.abspath(path)}
    )
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        number = getattr(error, "lineno", None)
        where = f"line {number}: " if number else ""
        raise ConfigurationError(f"{path}: {where}it is not an ini file") from None
    if not parser.has_section(section):
        raise ConfigurationError(f"{path}: there is no section [{section}]")
    prefix = _value(parser, path, section, "pyramid_mailer.prefix") or PREFIX
    names = [name for name in parser.options(section) if name.startswith(prefix)]
    return {name: _value(parser, path, section, name) for name in names}, prefix


def _value(parser: configparser.ConfigParser, path: str, section: str, name: str) -> str:
    try:
        return parser.get(section, name, fallback="")
    except configparser.InterpolationError:
        raise ConfigurationError(
            f"{path}: [{section}] {name}: a % has to be written as %%, or names what is not there"
        ) from None
