"""`Envelope`: the addresses and the octets of one message. Frozen.

An envelope has everything that a mail server sees of a message (RFC 5321 section 2.3.1): the
reverse-path, the recipients and the exact content octets. `send()` makes it: later changes of the
message have no effect on it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .address import parse_address, plain_text
from .common.ascii_text import ascii_lower, ascii_strip
from .common.shown import name_of
from .exceptions import AddressError, InvalidMessage

_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r\n[ \t]+)?([^\r\n]*)", re.I | re.M)

#: The null reverse-path of notifications (RFC 5321 section 4.5.5).
NULL_SENDER = "<>"


#: The fields of an envelope that depend on its addresses alone.
_ADDRESSES = ("sender", "recipients", "reverse_path", "forward_paths")


@dataclass(frozen=True, slots=True)
class Envelope:
    """Reverse-path, recipients and content of one message.

    `sender`
        The reverse-path's address; ``""``, ``"<>"`` or None is the null sender.
    `recipients`
        At least one address. A mailbox that occurs twice counts once, in its first spelling. The
        domain has no case (RFC 5321 section 2.4); local parts are compared by their octets.
    `content`
        The exact octets, header section and body, with CRLF line ends.

    Raises `AddressError` for a bad address, and `InvalidMessage` if there is no recipient. The gate
    (`txmail.message.mime.gate`) checks the content at `send()`.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    #: Message-ID of the content, with its angle brackets; read from it
    message_id: str = field(init=False, compare=False)
    #: the reverse-path as it stands in a command: ``<a@example.com>`` (RFC 5321 section 4.1.2)
    reverse_path: bytes = field(init=False, repr=False, compare=False)
    #: the forward-paths, in the order of the recipients
    forward_paths: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    #: True if the server must offer SMTPUTF8 (RFC 6531): a local part or header is not ASCII
    needs_smtputf8: bool = field(init=False, repr=False, compare=False)
    #: True if the content has octets above 127 (RFC 6152)
    needs_8bitmime: bool = field(init=False, repr=False, compare=False)
    #: octets of the content, as the SIZE parameter counts them (RFC 1870)
    size: int = field(init=False, repr=False, compare=False)
    _canonical: bool | None = field(init=False, repr=False, compare=False)
    #: True if the gate has checked the content
    gated: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.content, bytes):
            raise InvalidMessage(_no_octets(self.content), field="content")
        object.__setattr__(self, "content", plain_text(self.content))
        null = self.sender is None or self.sender in ("", NULL_SENDER)
        sender = None if null else parse_address(self.sender, field="sender")
        utf8 = sender is not None and sender.needs_smtputf8
        paths: dict[tuple[str, str], bytes] = {}
        texts = []
        for recipient in _recipients(self.recipients):
            address = parse_address(recipient, field="recipients")
            mailbox = (address.local, ascii_lower(address.domain))
            if mailbox not in paths:
                paths[mailbox] = address.path
                texts.append(address.text)
            utf8 = utf8 or address.needs_smtputf8
        set_ = object.__setattr__
        set_(self, "sender", sender.text if sender else "")
        set_(self, "recipients", tuple(texts))
        set_(self, "reverse_path", sender.path if sender else b"<>")
        set_(self, "forward_paths", tuple(paths.values()))
        self._describe(utf8)

    def with_content(self, content: bytes) -> Envelope:
        """An envelope with the same addresses, which are not parsed again, and this `content`."""
        if not isinstance(content, bytes):
            raise InvalidMessage(_no_octets(content), field="content")
        made = object.__new__(Envelope)
        for name in _ADDRESSES:
            object.__setattr__(made, name, getattr(self, name))
        object.__setattr__(made, "content", plain_text(content))
        made._describe(made._has_utf8_path())
        return made

    def only(self, recipients: Iterable[str]) -> Envelope:
        """An envelope with the same sender and content, to some of the recipients.

        Nothing is parsed again. Raises `InvalidMessage` if there is no recipient, and
        `AddressError` for a recipient that this envelope does not have.
        """
        paths = dict(zip(self.recipients, self.forward_paths, strict=True))
        kept = tuple(dict.fromkeys(_recipients(recipients)))
        for recipient in kept:
            if recipient not in paths:
                problem = "not a recipient of this envelope"
                raise AddressError(problem, field="recipients", value=recipient)
        made = copy.copy(self)
        set_ = object.__setattr__
        set_(made, "recipients", kept)
        set_(made, "forward_paths", tuple([paths[recipient] for recipient in kept]))
        if self.needs_smtputf8:
            # It may have been a recipient who is left out.
            set_(made, "needs_smtputf8", made._has_utf8_path() or made._has_utf8_header())
        return made

    def _has_utf8_path(self) -> bool:
        return not b"".join((self.reverse_path, *self.forward_paths)).isascii()

    def _has_utf8_header(self) -> bool:
        return self.needs_8bitmime and not header_section(self.content).isascii()

    def _describe(self, utf8: bool) -> None:
        """Set the fields that depend on the content. `utf8` says that an address needs SMTPUTF8."""
        head = header_section(self.content)
        eightbit = not self.content.isascii()
        set_ = object.__setattr__
        set_(self, "message_id", _message_id(head))
        set_(self, "needs_8bitmime", eightbit)
        set_(self, "size", len(self.content))
        set_(self, "_canonical", None)
        set_(self, "gated", False)
        set_(self, "needs_smtputf8", utf8 or (eightbit and not head.isascii()))

    @property
    def canonical(self) -> bool:
        """True if `is_canonical` is true of the content. Computed when first read."""
        known = self._canonical
        if known is None:
            known = is_canonical(self.content)
            object.__setattr__(self, "_canonical", known)
        return known


def pass_gate(envelope: Envelope) -> Envelope:
    """Note that the gate has checked the content of `envelope`. Returns `envelope`."""
    object.__setattr__(envelope, "gated", True)
    return envelope


def is_canonical(content: bytes) -> bool:
    """True if all line ends are CRLF, the last line has one, and there is no NUL.

    The gate refuses any other content. The check is repeated for safety: some servers take a bare
    LF or CR beside a dot for the end of the message, and would read the rest as commands.
    """
    pairs = content.count(b"\r\n")
    return (
        content.endswith(b"\r\n")
        and content.count(b"\n") == pairs == content.count(b"\r")
        and b"\0" not in content
    )


def header_section(content: bytes) -> bytes:
    """The header section of `content`, with the line end of its last line."""
    if content.startswith(b"\r\n"):
        return b""
    end = content.find(b"\r\n\r\n")
    return content[: end + 2] if end >= 0 else content


def _message_id(head: bytes) -> str:
    # The usual spelling is found faster.
    found = _MESSAGE_ID.search(head, max(head.find(b"\nMessage-ID:"), 0))
    return ascii_strip(found[1].decode("utf-8", "replace")) if found else ""


def _recipients(recipients: Iterable[str]) -> tuple[str, ...]:
    if isinstance(recipients, (str, bytes)):
        raise InvalidMessage(
            "a list of addresses is needed, not a string", field="recipients", value=recipients
        )
    recipients = tuple(recipients)
    if not recipients:
        raise InvalidMessage("there are none; give at least one", field="recipients")
    for recipient in recipients:
        if not isinstance(recipient, str):
            raise AddressError("a string is needed", field="recipients", value=recipient)
    return recipients


def _no_octets(content: object) -> str:
    # An error never shows the content.
    return f"octets are needed, as bytes: a value of type {name_of(type(content))}"
