"""Copies of messages and attachments in which no value has a type derived from `str` or `bytes`.

A type derived from `str` or `bytes` may give one value when txmail checks it, and another when
txmail writes it. txmail copies first; it then writes the very values that it has checked.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, TypeVar

from ..address import plain_text

_T = TypeVar("_T")

#: Types whose values never change.
_HARMLESS = frozenset({str, bytes, int, bool, type(None)})


def plain_copy(value: _T) -> _T:
    """A copy of `value`, a `txmail.Message` or `txmail.Attachment`, with plain values."""
    made = object.__new__(type(value))
    own, new = vars(value), vars(made)
    new.update(own)
    for name, kind in zip(own, list(map(type, own.values())), strict=True):
        if kind not in _HARMLESS:
            new[name] = _plain(own[name])
    return made


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _HARMLESS or (kind in (list, dict, tuple) and _is_plain(value)):
        return value if kind in _HARMLESS else copy.copy(value)
    if isinstance(value, (str, bytes)):
        return plain_text(value)
    if isinstance(value, list):
        return [_plain(one) for one in list.__iter__(value)]
    if isinstance(value, tuple):
        return tuple([_plain(one) for one in tuple.__iter__(value)])
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in dict.items(value)}
    return plain_copy(value) if hasattr(value, "to_part") else value


def _is_plain(values: Any) -> bool:
    """True if no value in `values` has to be copied. Makes no call for each value."""
    if type(values) is dict:
        return _HARMLESS.issuperset(map(type, values)) and _is_plain([*values.values()])
    if values and type(values[0]) is tuple and {tuple}.issuperset(map(type, values)):
        values = chain.from_iterable(values)
    return _HARMLESS.issuperset(map(type, values))
