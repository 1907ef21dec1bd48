"""Addresses as callers write them, wherever they do: entries, lists of them, the reverse-path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ..address import Mailbox, parse_address, parse_mailbox, plain_entry, plain_text
from ..envelope import NULL_SENDER
from ..exceptions import AddressError, FieldError, InvalidMessage
from .mime.header_check import check_value

#: One entry of an address header: addr-spec, ``"Name <addr-spec>"`` or (name, addr-spec).
Entry = str | tuple[str, str] | Mailbox

#: How many entries are remembered with their mailboxes, and of how many characters at most.
_CACHE_SIZE = 4096
_CACHED_ENTRY = 400

#: An item of a list and the comma or end behind it; a comma in a quoted string parts nothing.
_ITEM = re.compile(r'((?:[^",\\]++|(?>"(?:[^"\\]++|\\.)*+")|\\.)*+)(?:,|\Z)', re.DOTALL | re.ASCII)


class AddressHeaders(NamedTuple):
    """The mailboxes of the address headers of a message."""

    #: From
    author: Mailbox
    to: list[Mailbox]
    cc: list[Mailbox]
    #: it has no header, only recipients
    bcc: list[Mailbox]
    reply_to: list[Mailbox]

    @property
    def recipients(self) -> list[Mailbox]:
        """The mailboxes of To, Cc and Bcc."""
        return [*self.to, *self.cc, *self.bcc]


def entries_of(entries: Iterable[Entry] | None, field: str) -> list[Entry]:
    """A list of `entries`; an `InvalidMessage`, naming `field`, for a string or no list at all."""
    if entries is None:
        return []
    if type(entries) is list:
        return entries.copy()
    if isinstance(entries, (str, bytes, Mapping)) or not isinstance(entries, Iterable):
        raise InvalidMessage("a list of addresses is needed", field=field, value=entries)
    return list(entries)


def mailbox_of(entry: Entry, field: str) -> Mailbox:
    """The mailbox of `entry`, the texts of which may stand in a header.

    Raises `BadHeaders` for a text that may not and `AddressError` for what is no mailbox, both
    naming `field`.
    """
    if type(entry) is str and len(entry) <= _CACHED_ENTRY:
        try:
            return _mailbox_of_text(entry)
        except FieldError:
            pass  # said again below, with the name of the field
    entry = plain_entry(entry)
    check_entry(entry, field)
    return parse_mailbox(entry, field=field)


@lru_cache(_CACHE_SIZE)
def _mailbox_of_text(entry: str) -> Mailbox:
    check_value(entry, "")
    return parse_mailbox(entry)


def check_entry(entry: Any, field: str) -> None:
    """Raise `BadHeaders`, naming `field`, if a text of `entry` may not stand in a header."""
    texts = entry if isinstance(entry, tuple) else (entry,)
    if isinstance(entry, Mailbox):
        texts = (plain_text(entry.display_name),)
    for text in texts:
        # What is no text at all is an address error, told by whoever parses it.
        if isinstance(text, str):
            check_value(text, field)


def mailboxes_of(entries: Iterable[Entry], field: str) -> list[Mailbox]:
    """The mailboxes of `entries`; errors are those of `mailbox_of`."""
    return [mailbox_of(entry, field) for entry in entries]


def items_of(text: str) -> list[str]:
    """The items of a comma-separated list, without the blanks around them; empty ones are left out.

    All of `text` is one item if there is a quoted string in it that does not end.
    """
    items, position = [], 0
    while position < len(text):
        found = _ITEM.match(text, position)
        if found is None:
            return [text]
        items.append(found[1].strip(" \t"))
        position = found.end()
    return [item for item in items if item]


def parse_mailboxes(text: str, *, field: str) -> list[Mailbox]:
    """The mailboxes of a mailbox-list (RFC 5322 section 3.4), by our own grammar.

    Raises `AddressError`, naming `field`, for an item that is no mailbox, or if there is none.
    """
    items = items_of(text)
    if not items:
        raise AddressError("there is none", field=field, value=text)
    return [parse_mailbox(item, field=field) for item in items]


def overriding(recipients: Iterable[Entry]) -> list[Mailbox]:
    """The mailboxes of `recipients`, which replace those of a message."""
    chosen = entries_of(recipients, "recipients")
    return [parse_mailbox(entry, field="recipients") for entry in chosen]


def reverse_path(sender: Entry, field: str = "sender") -> str:
    """The envelope's sender: an addr-spec, or the empty string if `sender` is ``"<>"``."""
    sender = plain_text(sender)
    if isinstance(sender, str) and sender == NULL_SENDER:
        return ""
    if isinstance(sender, str) and not sender.endswith(">"):
        return parse_address(sender, field=field).text
    return parse_mailbox(sender, field=field).address.text
