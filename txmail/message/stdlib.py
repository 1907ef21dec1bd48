"""Messages of the standard library: `email.message.EmailMessage` and the older `Message`.

Whatever policy they have, they are walked and checked, copied, and written with CRLF line ends. The
standard library writes the bodies. The headers it does not: what was set as text is written anew by
`txmail.message.fields`, because its own folding turns data into syntax on many versions of Python;
what came from a parser in ASCII stays as it came.

The envelope's sender is the Sender, or the one author in From; its recipients are those of To, Cc
and Bcc. Resent fields are never read for it: a message that has any goes to nobody unless the
recipients are told, for its To names those it went to long ago (RFC 5322 section 3.6.6).
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterable, Iterator
from email.errors import NonASCIILocalPartDefect, ObsoleteHeaderDefect
from email.generator import BytesGenerator
from email.header import Header
from email.headerregistry import HeaderRegistry
from email.message import Message
from email.policy import Compat32, EmailPolicy
from typing import Any, TypeAlias

from ..address import Mailbox, parse_address, parse_mailbox
from ..envelope import Envelope
from ..exceptions import BadHeaders, InvalidMessage, MessageTooLarge, TxmailError
from . import gate
from .entries import Entry, overriding, reverse_path
from .fields import (
    LINE,
    fold,
    mailbox_header,
    mailbox_tokens,
    parameter_header,
    phrase,
    text_header,
)
from .headers import check_name, check_value
from .render import new_date, new_message_id
from .transfer import crlf, encode_body

#: A message as the standard library types it: any policy, any kind of headers.
AnyMessage: TypeAlias = "Message[Any, Any]"

_ADDRESSES = ("from", "sender", "reply-to", "to", "cc", "bcc")
_ADDRESS_HEADERS = frozenset([*_ADDRESSES, *(f"resent-{name}" for name in _ADDRESSES)])
_PARAMETER_HEADERS = frozenset({"content-type", "content-disposition"})
_FOLD = re.compile(r"\r?\n[ \t]+(?=[^ \t\r\n])")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_`{|}~.+/-]+")

_registry = HeaderRegistry()


def envelope_of_stdlib(
    message: AnyMessage,
    *,
    sender: Entry | None = None,
    recipients: Iterable[Entry] | None = None,
    default_sender: Entry | None = None,
) -> Envelope:
    """The `Envelope` of `message`, which is not written to. Past the gate.

    Arguments and errors are those of `txmail.message.to_envelope`.
    """
    try:
        return _envelope(message, sender, recipients, default_sender)
    except (TxmailError, MemoryError):
        raise
    except Exception as error:
        # A tree of other people's objects can fail in any way, and the standard library's parsers
        # do on odd headers. Nothing of the text goes into the error.
        problem = f"the standard library cannot handle it ({type(error).__name__})"
        raise InvalidMessage(problem, field="content") from None


def _envelope(
    message: AnyMessage,
    sender: Entry | None,
    recipients: Iterable[Entry] | None,
    default_sender: Entry | None,
) -> Envelope:
    for part in _walk(message):
        _check_part(part)
    own = copy.deepcopy(message)
    if own.get("From") is None and default_sender is not None:
        author = parse_mailbox(default_sender, field="default_sender")
        own.set_raw("From", mailbox_header("From", [author])[6:-2])
    author = _author(own)
    path = _sole_author(own).address.text if sender is None else reverse_path(sender)
    chosen = _addressees(own) if recipients is None else overriding(recipients)
    _complete(own, author)
    return Envelope(path, tuple(m.address.text for m in chosen), _content(own))


def _walk(message: AnyMessage) -> Iterator[AnyMessage]:
    """All parts, the message first; within the bounds, whatever refers to whatever."""
    stack: list[tuple[Any, int]] = [(message, 1)]
    count = 0
    while stack:
        part, depth = stack.pop()
        count += 1
        if not isinstance(part, Message):
            raise InvalidMessage("a part that is no message", field="content")
        if depth > gate.MAX_NESTING:
            raise MessageTooLarge(f"nested more than {gate.MAX_NESTING} deep", field="content")
        if count > gate.MAX_PARTS:
            raise MessageTooLarge(f"more than {gate.MAX_PARTS} parts", field="content")
        yield part
        payload = part.get_payload()
        if isinstance(payload, list):
            stack += [(child, depth + 1) for child in payload[: gate.MAX_PARTS + 1]]


def _check_part(part: AnyMessage) -> None:
    """Refuse headers and structures that cannot come out as what they are meant to be."""
    for name, value in part.raw_items():
        check_name(name, "headers")
        check_value(
            _text(name, value), name, tab=True, parameter=name.lower() in _PARAMETER_HEADERS
        )
    if part.get_content_maintype() == "multipart":
        if not part.is_multipart() or not part.get_payload():
            raise InvalidMessage("a multipart without parts", field="content")
        boundary = part.get_boundary()
        if boundary is not None and _BOUNDARY.fullmatch(boundary) is None:
            raise BadHeaders("not a boundary", field="Content-Type", value=boundary)


def _text(name: str, value: object) -> str:
    """The text of a header, unfolded; decoded as far as the standard library has done it."""
    if isinstance(value, Header):
        return str(value)
    if not isinstance(value, str):
        raise BadHeaders("a string is needed", field=name, value=value)
    return _FOLD.sub(" ", str(value))


def _mailboxes(message: AnyMessage, name: str) -> list[Mailbox]:
    """The mailboxes of all headers called `name`, those inside groups too."""
    return [
        mailbox
        for key, value in message.raw_items()
        if key.lower() == name.lower()
        for _, mailboxes in _groups(key, value)
        for mailbox in mailboxes
    ]


def _groups(name: str, value: Any) -> list[tuple[str | None, list[Mailbox]]]:
    """The groups of an address header; mailboxes outside of groups stand in one without a name."""
    parsed: Any
    try:
        parsed = value if hasattr(value, "groups") else _registry(name, _text(name, value))
        groups, defects = parsed.groups, parsed.defects
    except TxmailError:
        raise
    except Exception:
        # The parser fails in many ways on what is no address list.
        raise BadHeaders("not a list of addresses", field=name) from None
    for defect in defects:
        if not _is_harmless(defect):
            raise BadHeaders("not a list of addresses", field=name, value=str(value))
    found = []
    for group in groups:
        mailboxes = []
        for entry in group.addresses:
            check_value(entry.display_name, name, tab=True)
            address = parse_address(entry.addr_spec, field=name)
            mailboxes.append(Mailbox(entry.display_name, address))
        if group.display_name is not None:
            check_value(group.display_name, name, tab=True)
        found.append((group.display_name, mailboxes))
    return found


def _is_harmless(defect: object) -> bool:
    """False where the parser has mended, or left out, what an address is made of."""
    if isinstance(defect, ObsoleteHeaderDefect):
        return "period in 'phrase'" in str(defect) or "no content" in str(defect)
    return isinstance(defect, NonASCIILocalPartDefect)


def _author(message: AnyMessage) -> Mailbox:
    authors = _mailboxes(message, "From")
    if not authors:
        raise InvalidMessage("there is none, and no default", field="From")
    return authors[0]


def _sole_author(message: AnyMessage) -> Mailbox:
    for name in ("Sender", "From"):
        mailboxes = _mailboxes(message, name)
        if len(mailboxes) == 1:
            return mailboxes[0]
        if len(mailboxes) > 1:
            problem = "more than one, and no Sender" if name == "From" else "more than one"
            raise InvalidMessage(problem, field=name)
    raise InvalidMessage("there is none, and no default", field="From")


def _addressees(message: AnyMessage) -> list[Mailbox]:
    if any(name.lower().startswith("resent-") for name in message.keys()):  # noqa: SIM118
        raise InvalidMessage("must be given for a resent message", field="recipients")
    found = [mailbox for name in ("To", "Cc", "Bcc") for mailbox in _mailboxes(message, name)]
    if not found:
        raise InvalidMessage("there is none", field="recipients")
    return found


def _complete(message: AnyMessage, author: Mailbox) -> None:
    """Take away what must not be sent and add what has to be there."""
    del message["Bcc"], message["Resent-Bcc"]
    if message.get("Date") is None:
        message.set_raw("Date", new_date())
    if message.get("Message-ID") is None:
        message.set_raw("Message-ID", new_message_id(author))
    for part in _walk(message):
        _make_sendable(part)


def _make_sendable(part: AnyMessage) -> None:
    """Encode a body with octets above 127 or lines that are too long to be sent as they are."""
    # The raw text: get_payload() decodes octets of 8-bit bodies, and guesses where it cannot.
    raw = vars(part).get("_payload")
    if part.get_content_maintype() in ("multipart", "message") or not isinstance(raw, str):
        return
    if raw.isascii() and max(map(len, _LINE_END.split(raw))) <= gate.MAX_LINE:
        return
    text = part.get_content_maintype() == "text"
    encoding = str(part.get("Content-Transfer-Encoding", "7bit")).strip().lower()
    if encoding == "base64":
        octets = bytes(part.get_payload(decode=True))
    elif encoding in ("7bit", "8bit", "binary"):
        try:
            octets = raw.encode("ascii", "surrogateescape")
        except UnicodeEncodeError:
            raise InvalidMessage("text beyond ASCII without a charset", field="content") from None
        encoding = "quoted-printable" if text else "base64"
    else:
        raise InvalidMessage(f"lines or octets that {encoding} cannot have", field="content")
    del part["Content-Transfer-Encoding"]
    part.set_raw("Content-Transfer-Encoding", encoding)
    part.set_payload(encode_body(octets, encoding, text=text, field="content").decode("ascii"))


def _content(message: AnyMessage) -> bytes:
    policy = _WRITING_OLD if isinstance(message.policy, Compat32) else _WRITING
    names = message.keys()
    stream = io.BytesIO()
    BytesGenerator(stream, mangle_from_=False, policy=policy).flatten(message)
    head, blank, body = stream.getvalue().partition(b"\r\n\r\n")
    # Only bodies: a stray line end in the headers is for the gate to see.
    content = head + blank + crlf(body)
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    gate.check(content, intended_headers=names, boundaries=_boundaries(message))
    return content


def _boundaries(message: AnyMessage) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for part in _walk(message):
        boundary = part.get_boundary()
        if part.get_content_maintype() == "multipart" and boundary is not None:
            key = boundary.encode("ascii")
            counts[key] = counts.get(key, 0) + len(part.get_payload()) + 1
    return counts


def _written(name: str, value: Any) -> str:
    """One header with its line end. Called for every header of every part."""
    kind = name.lower()
    text = _text(name, value)
    came_parsed = not isinstance(value, Header) and not hasattr(value, "defects")
    if came_parsed and value.isascii():
        lines = _LINE_END.split(value)
        if max(map(len, lines)) + len(name) + 2 <= gate.MAX_LINE:
            return f"{name}: " + "\r\n".join(lines) + "\r\n"
    if kind in _ADDRESS_HEADERS:
        return _written_groups(name, _groups(name, value))
    if kind in _PARAMETER_HEADERS:
        header = _registry(name, text) if not hasattr(value, "params") else value
        return _written_parameters(name, header)
    return text_header(name, text)


def _written_groups(name: str, groups: list[tuple[str | None, list[Mailbox]]]) -> str:
    tokens: list[str] = []
    for group, mailboxes in groups:
        if tokens:
            tokens[-1] += ","
        room = LINE - 1 if tokens else LINE - len(name) - 2
        if group is None:
            tokens += mailbox_tokens(mailboxes, room)
        else:
            tokens += phrase(group, room)
            tokens[-1] += ":"
            tokens += mailbox_tokens(mailboxes, LINE - 1)
            tokens[-1] += ";"
    return fold(name, tokens or [""])


def _written_parameters(name: str, header: Any) -> str:
    value = getattr(header, name.lower().replace("-", "_"))
    parameters = dict(header.params)
    for part in (value, *parameters):
        if not isinstance(part, str) or _TOKEN.fullmatch(part) is None:
            raise BadHeaders("not a value with parameters", field=name, value=str(header))
    for text in parameters.values():
        check_value(text, name, parameter=True)
    return parameter_header(name, value, parameters)


class _OwnHeaders:
    """Policy methods that write headers our way (`email.policy.Policy.fold`)."""

    def fold(self, name: str, value: Any) -> str:
        return _written(name, value)

    def fold_binary(self, name: str, value: Any) -> bytes:
        return _written(name, value).encode("utf-8")


class _Writing(_OwnHeaders, EmailPolicy):
    """For messages with a policy of the new interface."""


class _WritingOld(_OwnHeaders, Compat32):
    """For messages with the policy `compat32`."""


_WRITING = _Writing(linesep="\r\n", cte_type="7bit", mangle_from_=False)
_WRITING_OLD = _WritingOld(linesep="\r\n", cte_type="7bit", mangle_from_=False)
