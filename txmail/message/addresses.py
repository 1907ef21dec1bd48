"""Addresses in the forms that callers may write them in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ..address import Mailbox, parse_address, parse_mailbox, plain_entry, plain_text
from ..envelope import NULL_SENDER
from ..exceptions import AddressError, FieldError, InvalidMessage
from .mime.header_check import check_value

#: An address: addr-spec, ``"Name <addr-spec>"``, (name, addr-spec) or a `Mailbox`.
AddressLike = str | tuple[str, str] | Mailbox

#: The number of addresses whose mailboxes are kept, and the most characters of one.
_CACHE_SIZE = 4096
_CACHED_LENGTH = 400

#: An item of a list and the comma or end after it. A comma in a quoted string is part of it.
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


def address_list(addresses: Iterable[AddressLike] | None, field: str) -> list[AddressLike]:
    """A copy of `addresses` as a list.

    Raises `InvalidMessage`, which names `field`, for a string or a value that is no collection.
    """
    if addresses is None:
        return []
    if type(addresses) is list:
        return addresses.copy()
    if isinstance(addresses, (str, bytes, Mapping)) or not isinstance(addresses, Iterable):
        raise InvalidMessage("a list of addresses is needed", field=field, value=addresses)
    return list(addresses)


def mailbox_of(address: AddressLike, field: str) -> Mailbox:
    """The mailbox of `address`. A header may have its texts.

    Raises `BadHeaders` for a text that no header may have, and `AddressError` if `address` is no
    mailbox. Both name `field`.
    """
    if type(address) is str and len(address) <= _CACHED_LENGTH:
        try:
            return _mailbox_of_text(address)
        except FieldError:
            pass  # the same check below names the field
    address = plain_entry(address)
    check_address_text(address, field)
    return parse_mailbox(address, field=field)


@lru_cache(_CACHE_SIZE)
def _mailbox_of_text(address: str) -> Mailbox:
    check_value(address, "")
    return parse_mailbox(address)


def check_address_text(address: Any, field: str) -> None:
    """Raise `BadHeaders`, which names `field`, if no header may have a text of `address`."""
    texts = address if isinstance(address, tuple) else (address,)
    if isinstance(address, Mailbox):
        texts = (plain_text(address.display_name),)
    for text in texts:
        # The parser of addresses refuses any other type.
        if isinstance(text, str):
            check_value(text, field)


def mailboxes_of(addresses: Iterable[AddressLike], field: str) -> list[Mailbox]:
    """The mailboxes of `addresses`. Raises what `mailbox_of` raises."""
    return [mailbox_of(address, field) for address in addresses]


def split_address_list(text: str) -> list[str]:
    """The items of a comma-separated list, without blanks around them and without empty items.

    All of `text` is one item if a quoted string in it has no end.
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
    """The mailboxes of a mailbox-list (RFC 5322 section 3.4). `txmail.address` has the grammar.

    Raises `AddressError`, which names `field`, for an item that is no mailbox, or an empty list.
    """
    items = split_address_list(text)
    if not items:
        raise AddressError("there is no address in it", field=field, value=text)
    return [parse_mailbox(item, field=field) for item in items]


def parse_recipients(recipients: Iterable[AddressLike]) -> list[Mailbox]:
    """The mailboxes of `recipients` that replace the recipients of a message."""
    chosen = address_list(recipients, "recipients")
    return [parse_mailbox(address, field="recipients") for address in chosen]


def parse_envelope_sender(sender: AddressLike, field: str = "sender") -> str:
    """The sender of an envelope: an addr-spec; the empty string if `sender` is ``"<>"``."""
    sender = plain_text(sender)
    if isinstance(sender, str) and sender == NULL_SENDER:
        return ""
    if isinstance(sender, str) and not sender.endswith(">"):
        return parse_address(sender, field=field).text
    return parse_mailbox(sender, field=field).address.text
