"""Reads the hosts of URLs: names and addresses, as the resolver takes them.

Not all domains of mail addresses (RFC 5321 section 4.1.2) are hosts: an address literal in brackets
is none. And some hosts are no mail domains: names with underscores, which Docker gives to
containers, and names with a dot at the end, for which the resolver searches no other domains
(RFC 1034 section 3.1).
"""

from __future__ import annotations

import ipaddress
import re

from ..address import parse_domain
from ..common.ascii_text import ascii_lower
from ..exceptions import AddressError

#: Octets of a name without its last dot (RFC 1035 section 2.3.4), and of a label.
_MAX_NAME, _MAX_LABEL = 253, 63
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


def read_host(text: str) -> str | None:
    """The host name or IP address `text`, U-labels as A-labels; None if it is neither.

    It does not say what is wrong: `text` may be a part of a password that was not percent-encoded.
    """
    if _address(text) is not None:
        return text
    name = text.removesuffix(".")
    labels = [_label(label) for label in name.split(".")]
    known = [label for label in labels if label is not None]
    if len(known) < len(labels) or len(read := ".".join(known)) > _MAX_NAME:
        return None
    if is_loopback(read):
        return read  # without its dot, as in a hosts file (RFC 6761 section 6.3)
    return read + text[len(name) :]


def is_loopback(host: str) -> bool:
    """True if mail to `host` cannot leave this machine."""
    address = _address(host)
    if address is None:
        return ascii_lower(host.removesuffix(".")) == "localhost"
    # Of a mapped address, `is_loopback` depends on Python's version.
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address `host`, None if it is none. An IPv6 address may have a zone after a %."""
    plain, _, zone = host.partition("%")
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        return None
    return address if plain == host or (address.version == 6 and _ZONE.fullmatch(zone)) else None


def _label(label: str) -> str | None:
    if label.isascii():
        return label if len(label) <= _MAX_LABEL and _LABEL.fullmatch(label) else None
    try:
        return parse_domain(label)
    except AddressError:
        return None
