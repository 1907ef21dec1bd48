"""Limits what the parser of the standard library costs, before it parses a header.

The parser takes a step for each character that is no letter, and each step copies the rest of the
header: 50 KB of quotes take half a minute and a gigabyte. The cost of a text is its length times
the number of such characters. Long address lists are parsed one mailbox at a time, so they cost as
much as many short ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.header import Header
from email.message import Message
from typing import Any

from ...common.ascii_text import ascii_lower, ascii_strip
from ...exceptions import MessageTooLarge
from ..mime.header_check import ADDRESS_HEADERS

#: The most that the headers of a message may cost to parse: some seconds.
MAX_COST = 20_000_000
#: The most that a text may cost that is parsed as one piece: some hundred characters.
_LITTLE = 50_000

#: Headers, in lower case, that txmail has the standard library parse.
_PARSED = ADDRESS_HEADERS | {
    "content-type",
    "content-disposition",
    "content-transfer-encoding",
    "message-id",
    "mime-version",
    "date",
}
_FEW_STEPS = re.compile(r"[A-Za-z0-9%_/+-]+", re.ASCII)

#: Quoted strings, comments, texts in brackets, and the marks of a list (RFC 5322 section 3.4).
_TOKEN = re.compile(
    r'"(?:[^"\\]++|\\.)*+"|\((?:[^()\\]++|\\.)*+\)|<[^<>"]*+>|\[[^\[\]]*+\]'
    r'|[^"()<>\[\],:;\\]++|\\.|.',
    re.DOTALL | re.ASCII,
)


def parse_cost(text: str) -> int:
    """The cost of parsing `text` as one piece."""
    return len(text) * (len(_FEW_STEPS.sub("", text)) + 1)


class ParseQuota:
    """The cost that is left for the headers of one message."""

    def __init__(self) -> None:
        self._left = MAX_COST

    def charge(self, part: Message[Any, Any], *, all_headers: bool = False) -> None:
        """Charge for the headers of `part` that txmail has parsed, or for all of them.

        Raises `MessageTooLarge`, which names the header, if too little is left.
        """
        for name, value in part.raw_items():
            kind = ascii_lower(str(name))
            if not isinstance(value, str) or isinstance(value, Header) or hasattr(value, "defects"):
                continue  # it is parsed already, or never is
            if all_headers or kind in _PARSED:
                self._left -= _cost(kind, value)
            if self._left < 0:
                problem = (
                    f"{len(value)} characters, many of them special, take the parser of the "
                    "standard library too long; shorten it"
                )
                raise MessageTooLarge(problem, field=str(name))


def _cost(kind: str, value: str) -> int:
    cost = parse_cost(value)
    if cost > _LITTLE and kind in ADDRESS_HEADERS:
        return sum(parse_cost(group or "") + parse_cost(item) for group, item in list_items(value))
    return cost


def is_costly(text: str) -> bool:
    """True if `text`, an address list, must be parsed one mailbox at a time."""
    return parse_cost(text) > _LITTLE


def list_items(text: str) -> Iterator[tuple[str | None, str]]:
    """The mailboxes of an address list, each with the name of its group.

    An empty group gives one empty item. Takes linear time.
    """
    group: str | None = None
    pieces: list[str] = []
    for found in _TOKEN.finditer(text):
        mark = found[0]
        if mark == ":" and group is None:
            group, pieces = ascii_strip("".join(pieces)), []
        elif mark in (",", ";"):
            if (item := ascii_strip("".join(pieces))) or (mark == ";" and group is not None):
                yield group, item
            group, pieces = (None if mark == ";" else group), []
        else:
            pieces.append(mark)
    if item := ascii_strip("".join(pieces)):
        yield group, item


def parse_address_list(
    name: str, text: str, registry: Any
) -> tuple[list[tuple[str | None, list[Any]]], list[Any]]:
    """The groups of an address list with their addresses, and the defects of all addresses."""
    if not is_costly(text):
        parsed = registry(name, text)
        return [(g.display_name, list(g.addresses)) for g in parsed.groups], list(parsed.defects)
    groups: list[tuple[str | None, list[Any]]] = []
    defects: list[Any] = []
    last: str | None = None
    for group, item in list_items(text):
        if group is not None and group != last:
            parsed = registry(name, f"{group}:;")
            groups.append((parsed.groups[0].display_name, []))
            defects += parsed.defects
        last = group
        if not item:
            continue
        parsed = registry(name, item)
        defects += parsed.defects
        for found in parsed.groups:
            if group is None:
                groups.append((found.display_name, list(found.addresses)))
            else:
                groups[-1][1].extend(found.addresses)
    return groups, defects
