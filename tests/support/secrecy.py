"""Looks for a secret in everything that a person, a log or a dump could show."""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import traceback
import types
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus


@functools.cache
def forms(secret: str) -> frozenset[str]:
    """`secret` as it is, in base64, in hexadecimal and as in a URL."""
    raw = secret.encode()
    encoded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    found = {
        secret,
        *encoded,
        *(text.rstrip("=") for text in encoded),
        raw.hex(),
        raw.hex().upper(),
        quote(secret, safe=""),
        quote_plus(secret),
        "".join(f"%{octet:02x}" for octet in raw),
        "".join(f"%{octet:02X}" for octet in raw),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        ascii(raw)[2:-1],
    }
    return frozenset(found)


def has(shown: object, *secrets: str) -> bool:
    """True if what is `shown` (text or octets) has one of the `secrets` in some form."""
    text = shown.decode("latin-1") if isinstance(shown, (bytes, bytearray)) else str(shown)
    both = text + "\n" + _as_utf8(text)
    return any(form in both for secret in secrets for form in forms(secret))


def _as_utf8(text: str) -> str:
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return ""


def leaks(error: BaseException, *secrets: str) -> list[str]:
    """Where `error`, its whole chain, their notes and our frames' variables show a secret."""
    return [f"{where}: {shown}" for where, shown in _shown_of(error) if has(shown, *secrets)]


def _shown_of(error: BaseException) -> Iterator[tuple[str, str]]:
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__]
        yield "str", str(one)
        yield "repr", repr(one)
        yield "args", repr(one.args)
        yield "vars", repr(vars(one))
        yield "notes", repr(getattr(one, "__notes__", []))
        yield "traceback", "".join(traceback.format_exception_only(one))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if _is_ours(frame.f_globals.get("__name__", "")):
                for name, value in frame.f_locals.items():
                    where = f"{name} in {frame.f_code.co_qualname}"
                    yield where, _safe_repr(value)


def _is_ours(module: object) -> bool:
    """True for modules of the package that are not doubles for tests."""
    name = str(module)
    return name.startswith("txmail") and not name.startswith("txmail.testing")


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"no repr: {error}"


def attributes(thing: object) -> dict[str, Any]:
    """All attributes of an object, also those in slots."""
    found = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        for name in kind.__dict__:
            if isinstance(kind.__dict__[name], types.MemberDescriptorType):
                found[name] = getattr(thing, name, None)
    return found


@contextlib.contextmanager
def new_objects_only() -> Iterator[None]:
    """`dumped` looks at the objects made within, not at all those of a long test run."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def dumped(*secrets: str) -> list[str]:
    """Which live objects of ours, and which containers they hold, have a secret in an attribute."""
    gc.collect()
    found = []
    for thing in gc.get_objects():
        if isinstance(thing, type) or not _is_ours(type(thing).__module__):
            continue
        for name, value in attributes(thing).items():
            if has(_flat(value), *secrets):
                found.append(f"{type(thing).__qualname__}.{name}")
    return found


def _flat(value: object, depth: int = 4) -> str:
    """The text of strings, octets and containers of them."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("latin-1")
    if depth and isinstance(value, dict):
        return " ".join(_flat(part, depth - 1) for pair in list(value.items()) for part in pair)
    if depth and hasattr(value, "__iter__") and hasattr(value, "__len__"):
        try:
            return " ".join(_flat(part, depth - 1) for part in list(value))
        except Exception:
            return ""
    return _safe_repr(value)
