"""Addresses as callers write them, wherever they do: entries, lists of them, the reverse-path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..address import Mailbox, parse_address, parse_mailbox
from ..envelope import NULL_SENDER
from ..exceptions import InvalidMessage

#: One entry of an address header: addr-spec, ``"Name <addr-spec>"`` or (name, addr-spec).
Entry = str | tuple[str, str] | Mailbox


def entries_of(entries: Iterable[Entry] | None, field: str) -> list[Entry]:
    """A list of `entries`; an `InvalidMessage`, naming `field`, for a string or no list at all."""
    if entries is None:
        return []
    if isinstance(entries, (str, bytes, Mapping)) or not isinstance(entries, Iterable):
        raise InvalidMessage("a list of addresses is needed", field=field, value=entries)
    return list(entries)


def overriding(recipients: Iterable[Entry]) -> list[Mailbox]:
    """The mailboxes of `recipients`, which replace those of a message."""
    chosen = entries_of(recipients, "recipients")
    return [parse_mailbox(entry, field="recipients") for entry in chosen]


def reverse_path(sender: Entry, field: str = "sender") -> str:
    """The envelope's sender: an addr-spec, or the empty string if `sender` is ``"<>"``."""
    if isinstance(sender, str) and sender == NULL_SENDER:
        return ""
    if isinstance(sender, str) and not sender.endswith(">"):
        return parse_address(sender, field=field).text
    return parse_mailbox(sender, field=field).address.text
