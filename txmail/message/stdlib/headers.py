"""Headers of messages of the standard library: what they say, and how they are written.

What came from a parser stays as it came, folds included, if that can be sent. `header_write` writes
all else anew, because the standard library's own folding turns data into syntax on many versions of
Python.
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
from ..addresses import items_of, parse_mailboxes
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
from .costs import parse

_ADDRESS_HEADERS = MAILBOX_LISTS | ADDRESS_HEADERS
PARAMETER_HEADERS = frozenset({"content-type", "content-disposition"})
_FOLD = re.compile(r"\r?\n(?=[ \t])", re.ASCII)
_LINE_END = re.compile(r"\r\n|\r|\n", re.ASCII)
#: A line, after the first, that has nothing on it: some readers take it for the end of the headers.
_BLANK_LINE = re.compile(r"\n[ \t]*+(?:\r?\n|\Z)", re.ASCII)
#: One that does not begin a folded line.
_INNER_TAB = re.compile(r"(?<!\n)\t", re.ASCII)
_NOT_KEPT = re.compile("[^\x00-\x7f\udc80-\udcff]", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_`{|}~.+/-]+", re.ASCII)

#: What the standard library finds wrong that is about the name in front of an address.
_HARMLESS = (
    *("period in 'phrase'", "comment found without atom", "no content"),
    "phrase does not start with word",
)

_registry: Any = HeaderRegistry()
for _name in MAILBOX_LISTS:
    _registry.map_to_type(_name, AddressHeader)

#: A zone with seconds, as `email.utils.format_datetime` writes that of a local mean time.
_ODD_ZONE = re.compile(r"([+-])(\d\d)(\d\d)(\d\d)(?:\.\d{1,6})?+\s*+\Z", re.ASCII)

#: The groups of an address header, with the mailboxes of each.
Groups = list[tuple[str | None, list[Mailbox]]]


def text_of(name: str, value: object) -> str:
    """The text of a header, unfolded; decoded as far as the standard library has done it.

    Octets beyond ASCII are read as UTF-8 (RFC 6532). Raises `BadHeaders` if they are not.
    """
    if isinstance(value, Header):
        return str(value)
    if not isinstance(value, str):
        raise BadHeaders("a string is needed", field=name, value=value)
    first, *folded = _FOLD.split(_decoded(name, str(value)))
    # A line of nothing but blanks is a fold too (RFC 5322 section 4.2).
    return "".join([first, *(f" {line}" for line in map(_stripped, folded) if line)])


def _stripped(line: str) -> str:
    return line.strip(" \t")


def _decoded(name: str, text: str) -> str:
    """`text` with the octets that a parser has kept as surrogates read as UTF-8."""
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
        problem = "octets that are neither ASCII nor UTF-8; encode the text (RFC 2047)"
        raise BadHeaders(problem, field=name) from None


def groups_of(name: str, value: Any) -> Groups:
    """The groups of an address header; mailboxes outside of groups stand in one without a name."""
    if hides_address(_source(name, value)) or _is_decoded(value):
        problem = "an encoded word in an address (RFC 2047 section 5)"
        raise BadHeaders(problem, field=name, value=str(value))
    try:
        if hasattr(value, "groups"):
            groups = [(group.display_name, list(group.addresses)) for group in value.groups]
            defects = list(value.defects)
        else:
            groups, defects = parse(name, text_of(name, value), _registry)
    except TxmailError:
        raise
    except Exception:
        # The parser fails in many ways on what is no address list, and on some that are.
        return [(None, _strictly(name, value))]
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
        if read != [mailbox.address for mailbox in _strictly(name, value)]:
            raise BadHeaders("not a list of addresses", field=name, value=str(value))
    return found


def _address(entry: Any, sound: bool, name: str, value: Any) -> Address:
    """The address of `entry`. `sound` says that nothing of the header was mended."""
    text, local = entry.addr_spec, entry.username
    if sound and (local.startswith(".") or local.endswith(".") or ".." in local):
        # The standard library leaves out the quotes that such a local part was written with.
        text = text if text.startswith('"') else f'"{local}"@{entry.domain}'
    try:
        return parse_address(text, field=name)
    except AddressError:
        source = _source(name, value).strip(" ")
        if text in source:
            raise
    # What the parser made of it is nothing that anybody has written.
    problem = "not a list of addresses (is a name with special characters quoted?)"
    raise AddressError(problem, field=name, value=source)


def _source(name: str, value: Any) -> str:
    """The text that an address header was read from."""
    # The text of a header object is what the parser made of it; its tree has what it was made of.
    source = str(getattr(value, "_parse_tree", "")) if hasattr(value, "defects") else value
    return text_of(name, source)


def _is_decoded(value: Any) -> bool:
    """True if the parser has decoded an encoded word in an addr-spec: its text shows no trace."""
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
    """True for what is often found, and never in an addr-spec."""
    if isinstance(defect, HeaderDefect) and any(known in str(defect) for known in _HARMLESS):
        return True
    return isinstance(defect, NonASCIILocalPartDefect)


def _strictly(name: str, value: Any) -> list[Mailbox]:
    """The mailboxes of a header that our own grammar can read: nothing of it was mended."""
    try:
        # The text of a header object is not what was written, but what the parser made of it.
        return parse_mailboxes(
            "" if hasattr(value, "defects") else text_of(name, value), field=name
        )
    except TxmailError:
        raise BadHeaders("not a list of addresses", field=name, value=str(value)) from None


def written(name: str, value: Any, *, utf8: bool = False) -> bytes:
    """One header with its line end.

    `utf8` says that it may keep octets of UTF-8 that it came with (RFC 6532).
    Raises `BadHeaders` or `AddressError` for what cannot be written.
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
    return _anew(name, kind, value).encode()


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
    """True if `value` is ASCII or, where `utf8` allows it, octets that a parser has kept."""
    if not utf8 or value.isascii():
        return value.isascii()
    return _NOT_KEPT.search(value) is None


def _is_rewritten(kind: str, value: str) -> bool:
    """True if an address header cannot stay as it came: see `_lacks_quotes` and `shown_name`."""
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
    """True if there are names with a period in `value` that are not quoted, as they have to be."""
    if kind not in _ADDRESS_HEADERS or "." not in value:
        return False
    names = [item.partition("<")[0] for item in items_of(value) if "<" in item]
    if not any("." in name and '"' not in name for name in names):
        return False
    try:
        groups_of(kind, value)
    except TxmailError:
        return False
    return True


def _anew(name: str, kind: str, value: Any) -> str:
    text = text_of(name, value)
    if kind in _ADDRESS_HEADERS:
        return _written_groups(name, groups_of(name, value))
    if kind in PARAMETER_HEADERS:
        parsed = _registry(name, text) if not hasattr(value, "params") else value
        return _written_parameters(name, parsed)
    if moment := getattr(value, "datetime", None):
        text = date_text(moment)
    return header(name, text)


def _written_groups(name: str, groups: Groups) -> str:
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


def _written_parameters(name: str, parsed: Any) -> str:
    value = getattr(parsed, ascii_lower(name).replace("-", "_"))
    parameters = dict(parsed.params)
    for part in (value, *parameters):
        if not isinstance(part, str) or _TOKEN.fullmatch(part) is None:
            raise BadHeaders("not a value with parameters", field=name, value=str(parsed))
    for text in parameters.values():
        check_value(text, name, parameter=True)
    return parameter_header(name, value, parameters)
