"""The headers of mailing lists and automatic mail, and the arguments of `Message` that set them.

`list_id`
    List-Id (RFC 2919): ``"news.example.com"``, ``"Our news <news.example.com>"`` or a pair.
`list_help`, `list_unsubscribe`, `list_subscribe`, `list_post`, `list_owner`, `list_archive`
    The headers of RFC 2369: a URI, or a list of them, best first. `list_post` may be ``"NO"``.
`one_click`
    List-Unsubscribe-Post (RFC 8058): a POST to the one ``https`` URI of `list_unsubscribe`
    unsubscribes at once. A receiver obeys it only if a DKIM signature covers both headers.
`auto_submitted`
    Auto-Submitted (RFC 3834 section 5): ``"auto-generated"``, ``"auto-replied"``,
    ``"auto-notified"`` or ``"no"``.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from ..common.ascii_text import ascii_lower
from ..exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from .mime.header_check import MAX_HEADERS, check_value, looks_encoded
from .mime.header_write import LINE, fold, phrase

_URI_FIELDS = {
    "list_help": "List-Help",
    "list_unsubscribe": "List-Unsubscribe",
    "list_subscribe": "List-Subscribe",
    "list_post": "List-Post",
    "list_owner": "List-Owner",
    "list_archive": "List-Archive",
}
_WORDS = ("auto-generated", "auto-replied", "auto-notified", "no")

#: Each of these headers, in lower case, and the argument that sets it.
ARGUMENTS = {
    "list-id": "list_id",
    **{ascii_lower(name): field for field, name in _URI_FIELDS.items()},
    "list-unsubscribe-post": "one_click",
    "auto-submitted": "auto_submitted",
}
_FIELDS = tuple(ARGUMENTS.values())

# The characters of RFC 3986 section 2, and the schemes of RFC 2369 section 2 that are in use.
_URI = re.compile(
    r"(https?|mailto|ftp):[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.IGNORECASE | re.ASCII
)
#: Octets of the longest URI. A URI cannot be folded.
_LONGEST_URI = 900
#: At least two labels: the last ones are a domain (RFC 2919 section 2).
_LABEL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LIST_ID = re.compile(rf"(?=.{{1,255}}\Z){_LABEL}(?:\.{_LABEL})+", re.ASCII)
_NAMED = re.compile(r'(?P<name>[^"<>]*)<(?P<id>[^<>]*)>', re.ASCII)


class ListArguments(Protocol):
    """The arguments of a `Message` that this module reads."""

    list_id: Any
    list_unsubscribe: Any
    one_click: bool
    auto_submitted: str | None


def has_list_headers(message: ListArguments) -> bool:
    """True if an argument of `message` asks for one of these headers."""
    return any(map(vars(message).get, _FIELDS))


def list_headers(message: ListArguments) -> list[str]:
    """The headers that the arguments of `message` ask for. An empty argument asks for none.

    Raises `BadHeaders` or `InvalidMessage` for a wrong argument, which the error names.
    """
    found = []
    if message.list_id:
        found.append(_list_id(message.list_id))
    for field, name in _URI_FIELDS.items():
        value = getattr(message, field)
        if value == "NO" and field == "list_post":
            found.append("List-Post: NO\r\n")
        elif value:
            *others, last = [f"<{uri}>" for uri in _uris(value, field)]
            found.append(fold(name, [*(f"{uri}," for uri in others), last]))
    if message.one_click:
        found.append(_one_click(message.list_unsubscribe))
    if message.auto_submitted:
        if message.auto_submitted not in _WORDS:
            problem = f"not one of {', '.join(_WORDS)}"
            raise BadHeaders(problem, field="auto_submitted", value=message.auto_submitted)
        found.append(f"Auto-Submitted: {message.auto_submitted}\r\n")
    return found


def _list_id(value: Any) -> str:
    name, identifier = "", value
    if isinstance(value, str):
        check_value(value, "list_id")
    if isinstance(value, tuple) and len(value) == 2:
        name, identifier = value
    elif isinstance(value, str) and (named := _NAMED.fullmatch(value)):
        name, identifier = named["name"].rstrip(" "), named["id"]
    for text in (name, identifier):
        check_value(text, "list_id")
    if _LIST_ID.fullmatch(identifier) is None or looks_encoded(identifier):
        raise BadHeaders(
            "not a list identifier, such as news.example.com", field="list_id", value=identifier
        )
    tokens = phrase(name, LINE - len("List-Id: ")) if name else ()
    return fold("List-Id", [*tokens, f"<{identifier}>"])


def _uris(value: Any, field: str) -> list[str]:
    uris = [value] if isinstance(value, str) else value
    if not isinstance(uris, (list, tuple)):
        raise InvalidMessage("a URI or a list of URIs is needed", field=field, value=value)
    if len(uris) * len("<ftp:x>, ") > MAX_HEADERS:
        raise MessageTooLarge(f"more than {MAX_HEADERS} octets; leave some out", field=field)
    for uri in uris:
        # Mail programs decode percent-encoding, above all that of mailto: URIs.
        check_value(uri, field, parameter=True)
        if _URI.fullmatch(uri) is None or looks_encoded(uri):
            raise BadHeaders("not a URI of http, https, mailto or ftp", field=field, value=uri)
        if len(uri) > _LONGEST_URI:
            raise BadHeaders(f"more than {_LONGEST_URI} octets; shorten it", field=field, value=uri)
    return list(uris)


def _one_click(unsubscribe: Any) -> str:
    uris = _uris(unsubscribe or [], "list_unsubscribe")
    schemes = [ascii_lower(uri.partition(":")[0]) for uri in uris]
    if schemes.count("https") != 1 or "http" in schemes:
        problem = "list_unsubscribe must have exactly one https URI and no http URI"
        raise InvalidMessage(problem, field="one_click")
    return "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
