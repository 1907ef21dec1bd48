"""Read the settings of one application from an ini file, as Paste Deploy does.

``pserve`` and ``pyramid.paster.get_appsettings``, which an application's Alembic uses too, read the
file with Paste Deploy. This module reads the same settings without importing the application, which
may not be installed where a command runs. It follows:

- ``use = config:OTHER.ini#NAME`` and ``use = NAME``: this section overrides that one;
- ``set NAME``, ``get NAME``, ``[DEFAULT]``, and names that the caller gives;
- ``[pipeline:NAME]`` and ``[filter-app:NAME]``: the application at their end.

A name in ``[DEFAULT]`` is no setting of an application: it serves ``%(NAME)s`` and ``get NAME``.
Like Paste Deploy, this module leaves out a setting of that name in a section, too.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from ..common.ascii_text import ascii_lower, ascii_split, ascii_strip
from ..exceptions import ConfigurationError

#: The kinds of sections that describe an application.
_KINDS = ("app", "application", "composite", "composit", "pipeline", "filter-app")
#: Two names for one kind: Paste Deploy looks for the second only if the first is not there.
_SECOND = {"application": "app", "composit": "composite"}
_MAIN = "main"
#: ``config:`` and other schemes of Paste Deploy and plaster in front of a path.
_SCHEME = re.compile(r"(?:config|ini|file\+ini|pastedeploy|pastedeploy\+ini):(?://)?", re.ASCII)
_ABSOLUTE = re.compile(r"([a-zA-Z]+):(.*)", re.DOTALL | re.ASCII)
#: How deep sections may use one another; a deeper chain is taken for a circle.
_DEEPEST = 30

#: A text, or the error to raise when somebody asks for it.
_Value = str | ConfigurationError


@dataclass(frozen=True, slots=True)
class Ini:
    """The settings of one application."""

    _own: Mapping[str, _Value]
    #: names that all sections of the file may use, such as ``here``; none of them is a setting
    shared: Mapping[str, _Value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def get(self, name: str) -> str | None:
        """The value of `name`, None if there is none. Raises `ConfigurationError`."""
        value = self._own.get(name)
        if isinstance(value, ConfigurationError):
            raise value
        return value


def read_ini(where: str, section: str | None = None, given: Mapping[str, str] | None = None) -> Ini:
    """The settings at `where`: ``FILE``, ``FILE#NAME``, or ``FILE?name=value#NAME``.

    NAME and `section` name an application or a section; the default is ``main``. `given` has values
    for ``%(name)s``, like the arguments of ``pserve``. Raises `ConfigurationError`, which shows no
    value of the file.
    """
    path, names, fragment = _parts(where)
    if section is not None and fragment:
        raise ConfigurationError(
            f"{where}: the section is named twice, by # and by --section: remove one"
        )
    names.update(given or {})
    here = os.path.abspath(path)
    file = _File(path, names)
    shared = {"__file__": here, "here": os.path.dirname(here), **names}
    name = section or fragment or _MAIN
    found = file.section(name, exact=section is not None or ":" in name)
    return Ini(*file.read(found, shared))


def _parts(where: str) -> tuple[str, dict[str, str], str]:
    """The path in `where`, the names that it gives, and the text behind #."""
    plain = _SCHEME.sub("", where, count=1)
    if plain == where and where.startswith(("egg:", "call:")):
        raise ConfigurationError(f"{where}: it names no file: name the ini file")
    rest, _, fragment = plain.partition("#")
    path, _, query = rest.partition("?")
    if not os.path.exists(path) and os.path.exists(plain):
        return plain, {}, ""
    return path, dict(parse_qsl(query)), fragment


class _File:
    """One ini file."""

    def __init__(self, path: str, names: Mapping[str, _Value]) -> None:
        """`names` are used where the file's own ``[DEFAULT]`` has none."""
        self.path = path
        here = os.path.abspath(path)
        parser = configparser.ConfigParser({"here": os.path.dirname(here), "__file__": here})
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        # Errors of configparser repeat lines of the file, and a password may stand in them.
        try:
            with open(path, encoding="utf-8") as file:
                parser.read_file(file)
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: {_not_read(error)}") from None
        default: Any = parser.defaults()
        for name, value in names.items():
            # A lone % cannot be read: what could not be read there cannot be read here either.
            if name not in default:
                default[name] = "%" if isinstance(value, ConfigurationError) else value
        self._parser = parser

    def section(self, name: str, *, exact: bool = False) -> str:
        """The section of the application `name`; with `exact`, first a section of that name."""
        sections = self._parser.sections()
        if exact and name in sections:
            return name
        found: dict[str, list[str]] = {}
        for section in sections:
            kind, _, named = section.partition(":")
            if kind in _KINDS and ascii_strip(named) == name:
                found.setdefault(kind, []).append(section)
        for second, first in _SECOND.items():
            if first in found:
                found.pop(second, None)
        possible = [section for some in found.values() for section in some]
        if not possible:
            wanted = name if ":" in name else f"app:{name}"
            raise ConfigurationError(f"{self.path}: there is no section [{wanted}]")
        if len(possible) > 1:
            several = ", ".join(f"[{section}]" for section in possible)
            raise ConfigurationError(f"{self.path}: {several}: choose one with --section")
        return possible[0]

    def read(
        self, section: str, shared: Mapping[str, _Value], depth: int = 0
    ) -> tuple[dict[str, _Value], dict[str, _Value]]:
        """The settings of the application of `section`, and the names that all sections may use."""
        if depth > _DEEPEST:
            raise ConfigurationError(f"{self.path}: [{section}] uses itself")
        default = {name: self._value("DEFAULT", name) for name in self._parser.defaults()}
        shared = {**default, **shared}
        own: dict[str, _Value] = {}
        fetched: dict[str, str] = {}
        for option in self._parser.options(section):
            if option.startswith("set "):
                shared[ascii_strip(option[4:])] = self._value(section, option)
            elif option.startswith("get "):
                fetched[ascii_strip(option[4:])] = option
            elif option not in default:
                own[option] = self._value(section, option)
        for name, option in fetched.items():
            source = _text(self._value(section, option))
            missing = self._problem(section, option, "it names something that is not in [DEFAULT]")
            own[name] = shared.get(source, missing)
        for word in ("filter-with", "require", "paste.app_factory"):
            own.pop(word, None)
        return self._follow(section, own, shared, depth)

    def _follow(
        self, section: str, own: dict[str, _Value], shared: dict[str, _Value], depth: int
    ) -> tuple[dict[str, _Value], dict[str, _Value]]:
        kind = section.partition(":")[0]
        following = {"pipeline": "pipeline", "filter-app": "next"}.get(kind)
        if following is not None:
            names = ascii_split(_text(own.get(following, "")))
            if not names:
                raise self._problem(section, following, "it is missing")
            return self._other(section, names[-1], shared, depth)
        use = _text(own.pop("use", ""))
        scheme = _ABSOLUTE.fullmatch(use)
        if kind in ("composite", "composit") and (
            not use or (scheme and ascii_lower(scheme[1]) != "config")
        ):
            return self._other(section, self._only_one(section, own), shared, depth)
        if not use:
            return own, shared
        base, more = self._other(section, use, shared, depth)
        return {**base, **own}, {**more, **shared}

    def _other(
        self, section: str, name: str, shared: dict[str, _Value], depth: int
    ) -> tuple[dict[str, _Value], dict[str, _Value]]:
        """The settings of `name`, in this file or in another; none if `name` is code."""
        absolute = _ABSOLUTE.match(name)
        if absolute is None:
            return self.read(self.section(name), shared, depth + 1)
        scheme, rest = ascii_lower(absolute[1]), absolute[2]
        if scheme in ("egg", "call"):  # code, which has no settings
            return {}, shared
        if scheme != "config":
            raise self._problem(section, "use", "config:FILE, egg: or call: is needed")
        path, _, inner = rest.partition("#")
        path = os.path.join(os.path.dirname(self.path), unquote(path))
        file = _File(path, shared)
        return file.read(file.section(inner or _MAIN), shared, depth + 1)

    def _only_one(self, section: str, own: Mapping[str, _Value]) -> str:
        """The only application of a composite. Raises `ConfigurationError` if it has several."""
        values = {value for value in own.values() if isinstance(value, str)}
        names = sorted(v for v in values if any(f"{kind}:{v}" in self._parser for kind in _KINDS))
        if len(names) == 1:
            return names[0]
        several = f": {', '.join(names)}" if names else ""
        raise ConfigurationError(
            f"{self.path}: [{section}] has several applications{several}; "
            "choose one with --section app:NAME"
        )

    def _value(self, section: str, option: str) -> _Value:
        try:
            return self._parser.get(section, option)
        except configparser.InterpolationError:
            return self._problem(
                section,
                option,
                "a % has to be written as %%, or as %(NAME)s with -D NAME=VALUE",
            )

    def _problem(self, section: str, option: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.path}: [{section}] {option}: {problem}")


def _not_read(error: configparser.Error | UnicodeDecodeError) -> str:
    """What is wrong with a file, without any of its text."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not an ini file in UTF-8"
    number = getattr(error, "lineno", None)
    if isinstance(error, configparser.MissingSectionHeaderError):
        return (
            f"line {number}: it is not an ini file: no [section] has begun "
            "(or the file begins with a byte order mark: save it as UTF-8 without one)"
        )
    if isinstance(error, configparser.DuplicateOptionError):
        return f"line {number}: it is not an ini file: its section has this name twice"
    if isinstance(error, configparser.DuplicateSectionError):
        return f"line {number}: it is not an ini file: it has this section twice"
    lines = [line for line, _ in getattr(error, "errors", ())]
    where = f"line {lines[0] if lines else number}"
    return f"{where}: it is not an ini file: this is neither [section] nor NAME = VALUE"


def _text(value: _Value) -> str:
    if isinstance(value, ConfigurationError):
        raise value
    return value
