"""Convert the value of a setting: a string of an ini file, or the converted value itself.

Each function takes a value and the name of its setting. It raises `ConfigurationError`, which names
the setting and does not show the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..address import parse_mailbox
from ..common.ascii_text import ascii_lower, ascii_split, ascii_strip, number_of
from ..exceptions import AddressError, ConfigurationError
from ..secret import UNUSABLE, Secret

_TRUE = {"true", "yes", "on", "y", "t", "1"}
_FALSE = {"false", "no", "off", "n", "f", "0", ""}


def parse_text(value: Any, field: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigurationError("a string is needed", field=field)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigurationError("it has a lone surrogate: write the character itself", field=field)
    return ascii_strip(value) or None


def parse_folder(value: Any, field: str) -> str | None:
    text = parse_text(value, field)
    if text is not None and ascii_lower(text) in _TRUE | _FALSE:
        raise ConfigurationError("not a folder: give a path", field=field)
    return text


def parse_urls(value: Any, field: str) -> list[Secret]:
    urls = ascii_split(value) if isinstance(value, str) else value
    if not isinstance(urls, (list, tuple)) or not all(isinstance(u, str) for u in urls) or not urls:
        raise ConfigurationError("a URL is needed, or a list of them", field=field)
    if any(url.endswith(",") for url in urls[:-1]):
        problem = "commas between URLs: put spaces or line ends between them"
        raise ConfigurationError(problem, field=field)
    return [Secret(url) for url in urls]


def parse_user(value: Any, field: str) -> str | None:
    text = parse_text(value, field)
    if text is not None and UNUSABLE.search(text):
        raise ConfigurationError("it has control characters, or is no text", field=field)
    return text


def parse_password(value: Any, field: str) -> Secret | None:
    return None if value in (None, "") else Secret.of(value, field)


def parse_password_from(value: Any, field: str) -> Secret | None:
    if value in (None, ""):
        return None
    if isinstance(value, str):
        return Secret(source=ascii_strip(value), field=field)
    return Secret.of(value, field)


def parse_sender(value: Any, field: str) -> str | None:
    text = parse_text(value, field)
    if text is not None:
        try:
            parse_mailbox(text, field=field)
        except AddressError as error:
            raise ConfigurationError("an address is needed", field=field) from error
    return text


def parse_boolean(value: Any, field: str) -> bool:
    if isinstance(value, bool):
        return value
    word = ascii_lower(ascii_strip(str(value))) if isinstance(value, (str, int)) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigurationError("true or false is needed", field=field)


def parse_seconds(value: Any, field: str) -> float:
    seconds = _number(value, float)
    if not 0 < seconds < float("inf"):
        raise ConfigurationError("seconds above 0 are needed", field=field)
    return seconds


def parse_count(value: Any, field: str) -> int | None:
    if value is None or value == "":
        return None
    count = _number(value, int)
    if count < 1:
        raise ConfigurationError("a number above 0 is needed", field=field)
    return int(count)


def parse_secret_url(value: Any, field: str) -> Secret | None:
    if value is None or value == "":
        return None
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ConfigurationError("a URL is needed", field=field)
    return Secret(ascii_strip(value))


def parse_port(value: Any, field: str) -> int | None:
    if value is None or value == "":
        return None
    port = _number(value, int)
    if not 0 < port < 65536:
        raise ConfigurationError("a port of 1 to 65535 is needed", field=field)
    return int(port)


def _number(value: Any, kind: type[int] | type[float]) -> float:
    """`value`, or the number that it spells; 0 if it is neither a number nor spells one."""
    if isinstance(value, bool) or not isinstance(value, (str, int, kind)):
        return 0
    if isinstance(value, str):
        return number_of(kind, value) or 0
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return 0


def parse_one_of(*words: str) -> Callable[[Any, str], str]:
    def read(value: Any, field: str) -> str:
        if value in words:
            return str(value)
        raise ConfigurationError(f"one of {', '.join(words)} is needed", field=field)

    return read


def parse_words(*words: str) -> Callable[[Any, str], tuple[str, ...]]:
    """Convert several words, in a list or with spaces between; if given, of `words` only."""

    def read(value: Any, field: str) -> tuple[str, ...]:
        found = ascii_split(value) if isinstance(value, str) else value
        if not isinstance(found, (list, tuple)) or not all(isinstance(w, str) for w in found):
            raise ConfigurationError("words with spaces between are needed", field=field)
        if words and not set(found) <= set(words):
            raise ConfigurationError(f"some of {', '.join(words)} are needed", field=field)
        return tuple(found)

    return read


def parse_rate(value: Any, field: str) -> float | None:
    if value is None or value == "":
        return None
    rate = _number(value, float)
    if not 0 < rate < float("inf"):
        raise ConfigurationError("messages a second, above 0, are needed", field=field)
    return rate


def conflict(prefix: str, one: str, other: str, about: str) -> ConfigurationError:
    """What to raise for the setting `one`, if `other` already says `about`."""
    return ConfigurationError(
        f"it conflicts with {prefix}{other}, which already says {about}: remove one of the two",
        field=prefix + one,
    )
