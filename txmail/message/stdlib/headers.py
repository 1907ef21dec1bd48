"""Reads and writes the headers of messages of the standard library.

The text of a header that came from a parser stays as it is, folds included, if it can be sent.
`header_write` writes all other headers: on many versions of Python the folding of the standard
library turns data into syntax.
"""

from __future__ import annotations

import re
from datetime import timedelta, timezone
from email.errors import HeaderDefect, NonASCIILocalPartDefect
from email.header import Header
from email.headerregistry import AddressHeader, HeaderRegistry
from email.utils import parsedate_to_datetime
from typing import Any

from ...address import Address, Mailbox, parse_address, shown_name
from ...common.ascii_text import ascii_lower
from ...exceptions import AddressError, BadHeaders, TxmailError
from ..addresses import parse_mailboxes, split_address_list
from ..mime.date import date_text
from ..mime.gate import MAX_LINE
from ..mime.header_check import ADDRESS_HEADERS, check_value, hides_address
from ..mime.header_write import (
    LINE,
    MAILBOX_LISTS,
    STRUCTURED,
    fold,
    header,
    mailbox_tokens,
    parameter_header,
    phrase,
)
from .costs import parse_address_list

_ADDRESS_HEADERS = MAILBOX_LISTS | ADDRESS_HEADERS
PARAMETER_HEADERS = frozenset({"content-type", "content-disposition"})
_FOLD = re.compile(r"\r?\n(?=[ \t])", re.ASCII)
_LINE_END = re.compile(r"\r\n|\r|\n", re.ASCII)
#: A blank line after the first line: some readers take it for the end of the headers.
_BLANK_LINE = re.compile(r"\n[ \t]*+(?:\r?\n|\Z)", re.ASCII)
#: A TAB that does not begin a folded line.
_INNER_TAB = re.compile(r"(?<!\n)\t", re.ASCII)
_NOT_KEPT = re.compile("[^\x00-\x7f\udc80-\udcff]", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_`{|}~.+/-]+", re.ASCII)

#: Defects that the standard library finds in the name before an address.
_HARMLESS = (
    *("period in 'phrase'", "comment found without atom", "no content"),
    "phrase does not start with word",
)

_registry: Any = HeaderRegistry()
for _name in MAILBOX_LISTS:
    _registry.map_to_type(_name, AddressHeader)

#: A zone with seconds: `email.utils.format_datetime` writes it for a local mean time.
_ODD_ZONE = re.compile(r"([+-])(\d\d)(\d\d)(\d\d)(?:\.\d{1,6})?+\s*+\Z", re.ASCII)

#: The groups of an address header, with the mailboxes of each.
Groups = list[tuple[str | None, list[Mailbox]]]


def text_of(name: str, value: object) -> str:
    """The text of a header, unfolded. It is decoded only if the standard library has done so.

    Octets beyond ASCII are read as UTF-8 (RFC 6532). Raises `BadHeaders` for other octets.
    """
    if isinstance(value, Header):
        return str(value)
    if not isinstance(value, str):
        raise BadHeaders("a string is needed", field=name, value=value)
    first, *folded = _FOLD.split(_decoded(name, str(value)))
    # A line of blanks is a fold too (RFC 5322 section 4.2).
    return "".join([first, *(f" {line}" for line in map(_stripped, folded) if line)])


def _stripped(line: str) -> str:
    return line.strip(" \t")


def _decoded(name: str, text: str) -> str:
    """`text`, in which a parser has kept octets as surrogates, with those octets as UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        problem = "octets are neither ASCII nor UTF-8; encode the text (RFC 2047)"
        raise BadHeaders(problem, field=name) from None


def groups_of(name: str, value: Any) -> Groups:
    """The groups of an address header. A mailbox outside of groups is in a group without a name.

    Raises `BadHeaders` or `AddressError` for a header that is no address list.
    """
    if hides_address(_source(name, value)) or _is_decoded(value):
        problem = "an address cannot have an encoded word (RFC 2047 section 5)"
        raise BadHeaders(problem, field=name, value=str(value))
    try:
        if hasattr(value, "groups"):
            groups = [(group.display_name, list(group.addresses)) for group in value.groups]
            defects = list(value.defects)
        else:
            groups, defects = parse_address_list(name, text_of(name, value), _registry)
    except TxmailError:
        raise
    except Exception:
        # The parser may raise anything, even for a valid address list.
        return [(None, _parse_strictly(name, value))]
    found: Groups = []
    sound = all(map(_is_harmless, defects))
    for group, addresses in groups:
        mailboxes = []
        for entry in addresses:
            check_value(entry.display_name, name, tab=True)
            address = _address(entry, sound, name, value)
            mailboxes.append(Mailbox(entry.display_name, address))
        if group is not None:
            check_value(group, name, tab=True)
        found.append((group, mailboxes))
    if not sound:
        read = [mailbox.address for _, mailboxes in found for mailbox in mailboxes]
        if read != [mailbox.address for mailbox in _parse_strictly(name, value)]:
            raise BadHeaders("not a list of addresses", field=name, value=str(value))
    return found


def _address(entry: Any, sound: bool, name: str, value: Any) -> Address:
    """The address of `entry`. `sound` says that the parser has found no defect in the header."""
    text, local = entry.addr_spec, entry.username
    if sound and (local.startswith(".") or local.endswith(".") or ".." in local):
        # The standard library drops the quotes of such a local part.
        text = text if text.startswith('"') else f'"{local}"@{entry.domain}'
    try:
        return parse_address(text, field=name)
    except AddressError:
        source = _source(name, value).strip(" ")
        if text in source:
            raise
    # The header does not have the text that the parser made: show the header.
    problem = "not a list of addresses (is a name with special characters quoted?)"
    raise AddressError(problem, field=name, value=source)


def _source(name: str, value: Any) -> str:
    """The text that the parser of an address header has read."""
    # The text of a header object is what the parser made; its tree has what the parser read.
    source = str(getattr(value, "_parse_tree", "")) if hasattr(value, "defects") else value
    return text_of(name, source)


def _is_decoded(value: Any) -> bool:
    """True if the parser has decoded an encoded word in an addr-spec; the text does not show it."""
    left = [(getattr(value, "_parse_tree", None), False)]
    while left:
        token, inside = left.pop()
        kind = getattr(token, "token_type", "")
        if inside and kind == "encoded-word":
            return True
        if isinstance(token, list):
            inside = inside or kind in ("addr-spec", "local-part")
            left += [(child, inside) for child in token]
    return False


def _is_harmless(defect: object) -> bool:
    """True for a defect that is frequent, and never in an addr-spec."""
    if isinstance(defect, HeaderDefect) and any(known in str(defect) for known in _HARMLESS):
        return True
    return isinstance(defect, NonASCIILocalPartDefect)


def _parse_strictly(name: str, value: Any) -> list[Mailbox]:
    """The mailboxes of a header by the grammar of `txmail.address`, which repairs nothing."""
    try:
        # The text of a header object is what the parser made, not what it has read.
        return parse_mailboxes(
            "" if hasattr(value, "defects") else text_of(name, value), field=name
        )
    except TxmailError:
        raise BadHeaders("not a list of addresses", field=name, value=str(value)) from None


def write_header(name: str, value: Any, *, utf8: bool = False) -> bytes:
    """One header with its line end.

    `utf8` lets it keep octets of UTF-8 that a parser has read (RFC 6532). Raises `BadHeaders` or
    `AddressError` for a header that cannot be written.
    """
    kind = ascii_lower(name)
    came_parsed = not isinstance(value, Header) and not hasattr(value, "defects")
    if came_parsed and kind == "date" and (odd := _ODD_ZONE.search(value)):
        value = _in_whole_minutes(value[: odd.start()], odd)
    kept = came_parsed and _is_octets(value, utf8) and not _BLANK_LINE.search(value)
    if kept and not _is_rewritten(kind, value):
        text = _INNER_TAB.sub(" ", _LINE_END.sub("\r\n", value))
        if kind in STRUCTURED:
            text = text.strip(" ")
        octets = text.encode("ascii", "surrogateescape")
        if max(map(len, octets.split(b"\r\n"))) + len(name) + 2 <= MAX_LINE:
            return f"{name}: ".encode() + octets + b"\r\n"
    return _write_anew(name, kind, value).encode()


def _in_whole_minutes(date_and_time: str, zone: re.Match[str]) -> str:
    hours, minutes, seconds = map(int, zone.group(2, 3, 4))
    offset = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    try:
        moment = parsedate_to_datetime(f"{date_and_time} +0000")
        tz = timezone(-offset if zone[1] == "-" else offset)
        return date_text(moment.replace(tzinfo=tz))
    except ValueError:
        raise BadHeaders("not a date", field="Date", value=date_and_time + zone[0]) from None


def _is_octets(value: str, utf8: bool) -> bool:
    """True if `value` is ASCII or, with `utf8`, octets that a parser has kept."""
    if not utf8 or value.isascii():
        return value.isascii()
    return _NOT_KEPT.search(value) is None


def _is_rewritten(kind: str, value: str) -> bool:
    """True if an address header cannot stay as it is: see `_lacks_quotes` and `shown_name`."""
    return _lacks_quotes(kind, value) or _has_hidden_names(kind, value)


def _has_hidden_names(kind: str, value: str) -> bool:
    if kind not in _ADDRESS_HEADERS or ("=?" not in value and value.isascii()):
        return False
    try:
        groups = groups_of(kind, value)
    except TxmailError:
        return False
    names = [name or "" for name, _ in groups]
    names += [mailbox.display_name for _, mailboxes in groups for mailbox in mailboxes]
    return any(shown_name(name) != name for name in names)


def _lacks_quotes(kind: str, value: str) -> bool:
    """True if a name in `value` has a period but not the quotes that it needs."""
    if kind not in _ADDRESS_HEADERS or "." not in value:
        return False
    names = [item.partition("<")[0] for item in split_address_list(value) if "<" in item]
    if not any("." in name and '"' not in name for name in names):
        return False
    try:
        groups_of(kind, value)
    except TxmailError:
        return False
    return True


def _write_anew(name: str, kind: str, value: Any) -> str:
    text = text_of(name, value)
    if kind in _ADDRESS_HEADERS:
        return _write_groups(name, groups_of(name, value))
    if kind in PARAMETER_HEADERS:
        parsed = _registry(name, text) if not hasattr(value, "params") else value
        return _write_parameters(name, parsed)
    if moment := getattr(value, "datetime", None):
        text = date_text(moment)
    return header(name, text)


def _write_groups(name: str, groups: Groups) -> str:
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


def _write_parameters(name: str, parsed: Any) -> str:
    value = getattr(parsed, ascii_lower(name).replace("-", "_"))
    parameters = dict(parsed.params)
    for part in (value, *parameters):
        if not isinstance(part, str) or _TOKEN.fullmatch(part) is None:
            raise BadHeaders(
                "not a value with parameters, such as text/csv; charset=utf-8",
                field=name,
                value=str(parsed),
            )
    for text in parameters.values():
        check_value(text, name, parameter=True)
    return parameter_header(name, value, parameters)
