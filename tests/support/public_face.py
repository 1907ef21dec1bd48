"""What applications see of txmail, as lines of text: names, parameters, settings, commands."""

from __future__ import annotations

import argparse
import importlib
import inspect
import types
from collections.abc import Iterator

from zope.interface.interface import InterfaceClass, Method

from txmail.cli.command import _parser
from txmail.config import settings
from txmail.transports.url_options import URL_OPTIONS

#: Modules from which applications import.
MODULES = (
    "txmail",
    "txmail.debug",
    "txmail.events",
    "txmail.exceptions",
    "txmail.integrations.alembic",
    "txmail.integrations.html_text",
    "txmail.integrations.jinja2",
    "txmail.integrations.prometheus",
    "txmail.integrations.pyramid",
    "txmail.integrations.session_queue",
    "txmail.integrations.sqlalchemy",
    "txmail.integrations.zodb",
    "txmail.interfaces",
    "txmail.mailer",
    "txmail.message",
    "txmail.queue.schema",
    "txmail.testing",
    "txmail.transports",
    "txmail.types",
    "txmail.worker",
)


def lines() -> list[str]:
    """All of it, in the order of the alphabet."""
    return sorted({*_names(), *_settings(), *_commands()})


def _names() -> Iterator[str]:
    for name in MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [
            key
            for key, value in vars(module).items()
            if not key.startswith("_")
            and getattr(value, "__module__", name) == name
            and not isinstance(value, types.ModuleType)
        ]
        for key in public:
            value = getattr(module, key)
            if callable(value) or isinstance(value, InterfaceClass):
                said = "" if isinstance(value, InterfaceClass) else _parameters(value)
                yield f"{name}.{key}{said}"
                yield from _members(f"{name}.{key}", value)


def _members(name: str, value: object) -> Iterator[str]:
    if isinstance(value, InterfaceClass):
        for key in value:
            member = value[key]
            said = member.getSignatureString() if isinstance(member, Method) else ""
            yield f"{name}.{key}{said}"
    elif inspect.isclass(value):
        for key in dir(value):
            member = inspect.getattr_static(value, key)
            # What Python and its libraries have on any class of theirs is not ours.
            owner = next((c for c in value.__mro__ if key in vars(c)), object)
            if not key.startswith("_") and owner.__module__.startswith("txmail"):
                yield f"{name}.{key}{_parameters(getattr(member, '__func__', member))}"


def _parameters(value: object) -> str:
    if not callable(value):
        return ""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    plain = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    shown = [p if p.default is p.empty else p.replace(default=_default(p.default)) for p in plain]
    return str(inspect.Signature(shown))


class _default:
    """Shows a default that is a value, and no address in memory."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        plain = isinstance(self._value, (str, int, float, bool, tuple, type(None)))
        return repr(self._value) if plain else "..."


def _settings() -> Iterator[str]:
    for name in settings._READERS:
        yield f"setting mail.{name}"
    for name in settings._ROUTE_READERS:
        yield f"setting mail.route.NAME.{name}"
    for name in URL_OPTIONS:
        yield f"option {name} of smtp:"


def _commands() -> Iterator[str]:
    yield from _command("command txmail", _parser())


def _command(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    yield name
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for key, below in action.choices.items():
                yield from _command(f"{name} {key}", below)
        else:
            yield f"{name} {' '.join(action.option_strings) or action.dest}"


if __name__ == "__main__":
    print("\n".join(lines()))  # noqa: T201
