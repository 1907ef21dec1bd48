"""The extra headers of a `Message`, and the names that they may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from ..common.ascii_text import ascii_lower
from ..exceptions import BadHeaders
from .list_headers import ARGUMENTS
from .mime.header_check import HEADER_NAME, MAX_NAME

#: Headers that have an argument of their own, and its name.
_ARGUMENTS = {
    "from": "sender",
    "to": "recipients",
    **{name: name for name in ("cc", "bcc", "subject", "date")},
    "reply-to": "reply_to",
    "message-id": "message_id",
    **ARGUMENTS,
}
#: Headers that txmail makes of body, html and attachments.
_MIME = frozenset(
    {"mime-version", "content-type", "content-transfer-encoding", "content-disposition"}
    | {"content-id"}
)
#: Headers that mail servers add.
_TRACE = frozenset({"received", "return-path", "delivered-to"})


def check_extra_name(name: Any) -> None:
    """Raise `BadHeaders` unless an extra header may have this `name`."""
    if not isinstance(name, str):
        raise BadHeaders("a header name must be a string", field="extra_headers", value=name)
    if problem := _refusal(name[: MAX_NAME + 1]):
        raise BadHeaders(problem, field="extra_headers", value=name)


@lru_cache(256)
def _refusal(name: str) -> str:
    """Why an extra header cannot have this `name`; empty if it can."""
    lower = ascii_lower(name)
    if lower in _ARGUMENTS:
        return f"cannot be an extra header; use the argument {_ARGUMENTS[lower]}"
    if lower in _MIME:
        return "cannot be an extra header; it is made of body, html and attachments"
    if lower in _TRACE:
        return "cannot be an extra header; it is made by mail servers"
    if lower.startswith("resent-"):
        return "cannot be an extra header; resend a message of the standard library"
    return "" if HEADER_NAME.fullmatch(name) else "not the name of a header"


def copy_headers(headers: Any) -> Any:
    """A copy of `headers`: a dict of a mapping, a list of other pairs."""
    if headers is None:
        return {}
    if isinstance(headers, Mapping):
        return dict(headers)
    if not isinstance(headers, (str, bytes)) and isinstance(headers, Iterable):
        headers = list(headers)
        if all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in headers):
            return [tuple(pair) for pair in headers]
    problem = "a mapping or a list of pairs is needed"
    raise BadHeaders(problem, field="extra_headers", value=headers)
