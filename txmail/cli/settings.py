"""Read a command's mail settings: from options, an ini file or the environment."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..config.inifile import Ini, read_ini
from ..config.queue import APPLICATION_DATABASE, IN_SESSION
from ..config.settings import PREFIX
from ..exceptions import ConfigurationError

#: The environment variable that names the mail server.
URL_VARIABLE = "TXMAIL_URL"
#: The environment variable that names the queue.
QUEUE_VARIABLE = "TXMAIL_QUEUE_URL"
#: The settings that name a queue.
QUEUE_SETTINGS = ("queue_url", "queue_path")
#: Other settings of a queue.
_QUEUE_OPTIONS = ("queue_engine_url", "on_doubt", "queue_limit")
#: The settings that name a mail server.
_SERVER_SETTINGS = ("url", "host", "sendmail_app", "sendmail_template")
#: The setting in which an application names the prefix of its mail settings.
_PREFIX_SETTING = "pyramid_mailer.prefix"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read` reads."""
    group = parser.add_argument_group(
        "mail server: the command uses the first of --url, -c and TXMAIL_URL"
    )
    group.add_argument(
        "--url", metavar="URL", help="the mail server, such as smtp://mx.example.com:25"
    )
    _add_file(group, "mail.url")


def add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read_queue` reads."""
    group = parser.add_argument_group(
        "queue: the command uses the first of --queue-url, -c and TXMAIL_QUEUE_URL"
    )
    group.add_argument(
        "--queue-url", metavar="URL", help="the queue, such as sqlite:////var/lib/app/mail.db"
    )
    _add_file(group, "mail.queue_url")


def _add_file(group: argparse._ArgumentGroup, setting: str) -> None:
    group.add_argument(
        "-c",
        "--config",
        metavar="FILE[#NAME]",
        help=f"an ini file with {setting} and other settings; txmail reads it like pserve",
    )
    group.add_argument(
        "--section",
        metavar="NAME",
        help="an application or a section of that file (default: app:main)",
    )
    group.add_argument(
        "-D",
        "--define",
        metavar="NAME=VALUE",
        action="append",
        type=_pair,
        default=[],
        help="a value for %%(NAME)s in that file, as an argument of pserve",
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError("NAME=VALUE is needed")
    return name, value


def read(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The settings and the prefix of their keys. Raises `ConfigurationError`."""
    if arguments.url is not None:
        return {f"{PREFIX}url": arguments.url}, PREFIX
    if arguments.config is not None:
        return _from_ini(arguments, _SERVER_SETTINGS)
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
        settings, prefix = _from_ini(arguments, QUEUE_SETTINGS)
        found = _of_queue(settings, prefix)
        if not _names_queue(found, prefix):
            raise ConfigurationError(
                f"{arguments.config}: there is no {prefix}queue_url: add it, or use --queue-url"
            )
        return found, prefix
    url = os.environ.get(QUEUE_VARIABLE)
    if url:
        return {f"{PREFIX}queue_url": url}, PREFIX
    raise ConfigurationError(
        f"there is no queue: use --queue-url, -c app.ini or the variable {QUEUE_VARIABLE}"
    )


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `read_worker` reads."""
    group = parser.add_argument_group("queue and mail server")
    group.add_argument(
        "--queue-url", metavar="URL", help="the queue, such as sqlite:////var/lib/app/mail.db"
    )
    group.add_argument(
        "--url", metavar="URL", help="the mail server, such as smtp://mx.example.com:25"
    )
    _add_file(group, "mail.queue_url, mail.url")


def read_worker(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The settings of a queue and of a mail server, and their prefix.

    Options come before the file. The variables count only without a file. Raises
    `ConfigurationError`.
    """
    if arguments.config is None:
        queue, prefix = read_queue(arguments)
        return {**queue, **read(arguments)[0]}, prefix
    found, prefix = _from_ini(
        arguments,
        *([] if arguments.queue_url is not None else [QUEUE_SETTINGS]),
        *([] if arguments.url is not None else [_SERVER_SETTINGS]),
    )
    if arguments.url is not None:
        found = {**_of_queue(found, prefix), f"{prefix}url": arguments.url}
    if arguments.queue_url is not None:
        for name in (*QUEUE_SETTINGS, "queue_engine_url"):
            found.pop(prefix + name, None)
        found[f"{prefix}queue_url"] = arguments.queue_url
    if not _names_queue(found, prefix):
        raise ConfigurationError(
            f"{arguments.config}: there is no {prefix}queue_url: add it, or use --queue-url"
        )
    return found, prefix


#: What to do if no setting names the database of the queue.
UNNAMED_DATABASE = (
    "the queue is in the application's database, and no setting names that: "
    f"add {APPLICATION_DATABASE}url or {PREFIX}queue_engine_url to the ini file, or --queue-url"
)


def said(error: ConfigurationError, arguments: argparse.Namespace) -> str:
    """The text of `error`, with the option or the variable that has the setting."""
    text = str(error)
    name = error.field.partition(" ")[0]
    setting = name.rpartition(".")[2] if name.count(".") < 2 else ""
    variable = {"url": URL_VARIABLE, "queue_url": QUEUE_VARIABLE}.get(setting)
    if variable is None:
        return text
    if getattr(arguments, setting, None) is not None:
        given = f"--{setting.replace('_', '-')}"
    elif arguments.config is None and os.environ.get(variable):
        given = variable
    else:
        return text
    return f"{given} ({name}){text[len(name) :]}"


def names_database(queue: Any) -> bool:
    """Whether a setting names the database of `queue`. Raises `ConfigurationError`."""
    return not queue.in_session or bool(queue.database.determine())


def require_database(queue: Any) -> None:
    """Raise `ConfigurationError` if no setting names the database of `queue`."""
    if not names_database(queue):
        raise ConfigurationError(UNNAMED_DATABASE)


def read_any(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The same as `read_worker`, but without a queue too. Raises `ConfigurationError`."""
    if arguments.queue_url is not None or (
        arguments.config is None and os.environ.get(QUEUE_VARIABLE)
    ):
        return read_worker(arguments)
    if arguments.config is None:
        return read(arguments)
    found, prefix = _from_ini(
        arguments, QUEUE_SETTINGS, *([] if arguments.url is not None else [_SERVER_SETTINGS])
    )
    if arguments.url is None:
        return found, prefix
    return {**_of_queue(found, prefix), f"{prefix}url": arguments.url}, prefix


def _names_queue(found: dict[str, Any], prefix: str) -> bool:
    return any(found.get(prefix + name) for name in QUEUE_SETTINGS)


def _of_queue(found: dict[str, Any], prefix: str) -> dict[str, Any]:
    kept = [prefix + name for name in (*QUEUE_SETTINGS, *_QUEUE_OPTIONS)]
    return {
        name: value
        for name, value in found.items()
        if name in kept or name.startswith(APPLICATION_DATABASE)
    }


def _from_ini(
    arguments: argparse.Namespace, *wanted: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
    """The settings of the file, and their prefix.

    Raises `ConfigurationError` if all settings of one of `wanted` stand in [DEFAULT] only.
    """
    ini = read_ini(arguments.config, arguments.section, dict(arguments.define))
    prefix = ini.get(_PREFIX_SETTING) or PREFIX
    found: dict[str, Any] = {name: ini.get(name) for name in ini if name.startswith(prefix)}
    groups = [[prefix + name for name in names] for names in wanted]
    if found.get(f"{prefix}queue_url") == IN_SESSION:
        found |= {name: ini.get(name) for name in ini if name.startswith(APPLICATION_DATABASE)}
        groups.append([f"{prefix}queue_engine_url", f"{APPLICATION_DATABASE}url"])
    for names in groups:
        _refuse_defaults(arguments.config, ini, found, names)
    return found, prefix


def _refuse_defaults(file: str, ini: Ini, found: dict[str, Any], names: list[str]) -> None:
    """Raise `ConfigurationError` for a name in [DEFAULT] that an application does not get.

    The application uses its defaults instead, such as another mail server.
    """
    if any(found.get(name) for name in names):
        return
    for name in names:
        if name in ini.shared:
            raise ConfigurationError(
                f"{file}: {name} stands in [DEFAULT], where no application gets it: move it to "
                f'the section of the application, or add "get {name} = {name}" there'
            )
