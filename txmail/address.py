"""Addresses: one closed grammar, from text to what stands in a command.

`parse_address` reads an addr-spec and nothing else::

    address     = local-part "@" ( domain / address-literal )
    local-part  = Dot-string / Quoted-string           RFC 5321 section 4.1.2
    domain      = label *("." label)                    LDH labels, or IDNA 2008 U-labels
    literal     = "[" IPv4 "]" / "[IPv6:" IPv6 "]"      RFC 5321 section 4.1.3

Characters beyond ASCII are those of RFC 6531, less what cannot be seen or changes under NFC.
Everything else is refused and nothing is mended: no comments, source routes, angle brackets,
surrounding blanks, empty labels or general address literals. What was checked is what is sent.

`parse_mailbox` reads the forms of a header: an address with or without a display name.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, cast

import idna

from .common.ascii_text import ascii_lower
from .exceptions import AddressError

#: Limits of RFC 5321 section 4.5.3.1, in octets; the path's includes its angle brackets.
MAX_LOCAL = 64
MAX_DOMAIN = 255
MAX_PATH = 256

#: How many parsed addresses are kept: the senders and correspondents of a busy process.
_CACHE_SIZE = 4096

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]"
_ADDRESS = re.compile(
    rf"(?P<local>{_ATEXT}+(?:\.{_ATEXT}+)*"
    r'|"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*")'
    r"@(?P<domain>[^@]+)",
    re.ASCII,
)
_LDH_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_LITERAL = re.compile(
    r"\[(?:(?P<four>[0-9.]+)|IPv6:(?P<six>[0-9A-Fa-f:.]+))\]", re.IGNORECASE | re.ASCII
)
_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

_QUOTED_NAME = re.compile(r'"(?P<name>(?:[^"\\]|\\.)*)" *<(?P<address>.*)>', re.DOTALL | re.ASCII)
_PLAIN_NAME = re.compile(r'(?P<name>[^"<>()\[\]:;@\\,]*)<(?P<address>.*)>', re.DOTALL | re.ASCII)
_QUOTED_PAIR = re.compile(r"\\(.)", re.ASCII)
#: What a local part has that would be one if it were quoted.
_DOTS = re.compile(
    r"(?P<local>[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,40})@(?P<domain>[A-Za-z0-9.-]{1,60})", re.ASCII
)
#: In the middle of an encoded word stands the letter of its encoding (RFC 2047 section 2). RFC 2047
#: section 5 allows no such word in an addr-spec: a reader who decodes it sees another address than
#: the server. The mark alone is refused, for some readers look for the beginning of the word in the
#: name or the address before it, and for the end behind it.
WORD_MARK = re.compile(r"\?[qQbB]\?", re.ASCII)
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", re.ASCII)


#: What Python calls printable, and nobody sees: fillers of Hangul, joiners, selectors, blanks.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]",
    re.ASCII,
)
#: Marks of direction, and characters of no width, which make a name look like another: they are
#: taken out of names where these are written (Unicode Technical Report 36, section 2).
_HIDDEN_IN_NAMES = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]",
    re.ASCII,
)


def shown_name(name: str) -> str:
    """A display name without what steers direction, or cannot be seen.

    Joiners stay where a script or an emoji is written with them: between letters as RFC 5892 has it
    (appendices A.1 and A.2), between pictures, and behind letters of Mongolian its selectors.
    """
    return name if name.isascii() else _HIDDEN_IN_NAMES.sub(_as_written, name)


def _as_written(hidden: re.Match[str]) -> str:
    name, place = hidden.string, hidden.start()
    sign, before, after = name[place], name[place - 1 : place], name[place + 1 : place + 2]
    if sign in "\u200c\u200d":
        joins = idna.valid_contextj(name, place) if before else False
        pictures = sign == "\u200d" and _is_picture(before) and _is_picture(after)
        return sign if joins or pictures else ""
    return sign if "\u180b" <= sign <= "\u180f" and "\u1820" <= before <= "\u18aa" else ""


def _is_picture(sign: str) -> bool:
    # The pictures, what changes their colour, and the selector behind one.
    return bool(sign) and (sign == "\ufe0f" or unicodedata.category(sign) in ("So", "Sk"))


@dataclass(frozen=True, slots=True)
class Address:
    """One address that can be sent to. Made by `parse_address` only."""

    #: the addr-spec, exactly as given
    text: str
    #: the local part, exactly as given, with its quotes if it has any
    local: str
    #: the domain with its U-labels as A-labels, or an address literal with its brackets
    domain: str
    #: as it stands in a command: ``<local@domain>``
    path: bytes
    #: True if the local part is not ASCII, so that the server has to offer SMTPUTF8 (RFC 6531)
    needs_smtputf8: bool

    @property
    def addr_spec(self) -> str:
        """``local@domain`` as it stands in a header: the path without its angle brackets."""
        return f"{self.local}@{self.domain}"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address and the name shown for it, which is data and may be empty."""

    display_name: str
    address: Address


def plain_text(value: Any) -> Any:
    """`value`, or if it is of a type derived from `str` or `bytes`, what it is without that type.

    A derived type may say one thing when it is checked, and another when it is written.
    """
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    if isinstance(value, bytes) and type(value) is not bytes:
        return bytes.__getitem__(value, slice(None))
    return value


def plain_entry(value: Any) -> Any:
    """`value`, an entry of an address list, with plain texts: as `plain_text`, pairs too."""
    if isinstance(value, tuple):
        return tuple([plain_text(part) for part in tuple.__iter__(value)])
    return plain_text(value)


class _Refused(Exception):
    """Why a text is not an address; becomes an `AddressError` that names its field."""


def parse_address(text: str, *, field: str = "address") -> Address:
    """The `Address` of the addr-spec `text`.

    Raises `AddressError`, naming `field`, for everything that is not exactly one.
    """
    if not isinstance(text, str):
        raise AddressError("a string is needed", field=field, value=text)
    try:
        return _parse(plain_text(text))
    except _Refused as refused:
        raise AddressError(str(refused), field=field, value=text) from None


def parse_domain(text: str, *, field: str = "domain") -> str:
    """The domain or address literal `text`, in A-labels. Raises `AddressError`, naming `field`."""
    if not isinstance(text, str):
        raise AddressError("a string is needed", field=field, value=text)
    if len(text) > MAX_DOMAIN:
        # Before the labels are converted: what idna does takes more than linear time. No label is
        # shorter as an A-label, so this refuses nothing that could be one.
        problem = f"the domain is longer than {MAX_DOMAIN} octets"
        raise AddressError(problem, field=field, value=text)
    try:
        return _domain(plain_text(text))
    except _Refused as refused:
        raise AddressError(str(refused), field=field, value=text) from None


def parse_mailbox(value: str | tuple[str, str] | Mailbox, *, field: str = "address") -> Mailbox:
    """The `Mailbox` of one entry of an address header (RFC 5322 section 3.4).

    `value` is ``"a@b.c"``, ``"<a@b.c>"``, ``"Name <a@b.c>"``, ``'"Last, First" <a@b.c>'`` or a
    pair of display name and addr-spec. A name with one of ``"<>()[]:;@\\,`` has to be quoted, or
    given in a pair. The name is data: encoded words in it are not read.

    Raises `AddressError`, naming `field`, for anything else: groups, lists, comments.
    """
    if isinstance(value, Mailbox):
        # Whoever made it, what is sent has been checked.
        address = parse_address(plain_text(value.address.text), field=field)
        made = Mailbox(_name(value.display_name, field), address)
        return value if type(value.display_name) is str and made == value else made
    value = cast("str | tuple[str, str]", plain_entry(value))
    if isinstance(value, tuple):
        if len(value) != 2 or not all(isinstance(part, str) for part in value):
            raise AddressError("a pair of name and address is needed", field=field, value=value)
        return Mailbox(_name(value[0], field), parse_address(value[1], field=field))
    if not isinstance(value, str) or not value.endswith(">"):
        return Mailbox("", parse_address(value, field=field))
    if quoted := _QUOTED_NAME.fullmatch(value):
        name = _QUOTED_PAIR.sub(r"\1", _name(quoted["name"], field))
        return Mailbox(name, parse_address(quoted["address"], field=field))
    plain = _PLAIN_NAME.fullmatch(value)
    if plain is None:
        problem = "not a name and an address (is a name with special characters quoted?)"
        raise AddressError(problem, field=field, value=value)
    if plain["name"].startswith(" "):
        raise AddressError("starts with a blank", field=field, value=value)
    name = _name(plain["name"].rstrip(" "), field)
    return Mailbox(name, parse_address(plain["address"], field=field))


def _name(name: str, field: str) -> str:
    name = plain_text(name)
    if _NOT_IN_NAMES.search(name):
        raise AddressError("a control character in the name", field=field, value=name)
    return name


@lru_cache(maxsize=_CACHE_SIZE)
def _parse(text: str) -> Address:
    # Errors are not cached, so that each of them names its own caller's field.
    if len(text) > MAX_PATH - 2:
        raise _Refused(f"longer than {MAX_PATH - 2} characters")
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise _Refused(_not_an_address(text) if text else "there is none")
    local = found["local"]
    _check_local(local)
    domain = _domain(found["domain"])
    path = f"<{local}@{domain}>".encode()
    if len(path) > MAX_PATH:
        raise _Refused(f"longer than {MAX_PATH} octets as a path")
    return Address(text, local, domain, path, not local.isascii())


def _not_an_address(text: str) -> str:
    """Why `text` is none, and what to write if it is one that has to be quoted."""
    found = _DOTS.fullmatch(text)
    quoted = f'"{found["local"]}"@{found["domain"]}' if found else ""
    if not found or ".." in found["domain"] or _ADDRESS.fullmatch(quoted) is None:
        return "not an address"
    return (
        "not an address: a local part that has two dots in a row, or begins or ends with one, "
        f"has to be quoted; if it is meant so, write {quoted}"
    )


def _check_local(local: str) -> None:
    # Also with the quoted pairs of a quoted string read.
    if "?" in local and WORD_MARK.search(_QUOTED_PAIR.sub(r"\1", local)):
        raise _Refused("an encoded word in the local part, which readers decode (RFC 2047)")
    if not local.isascii():
        if _UNSEEN.search(local):
            raise _Refused("an invisible character in the local part")
        if unicodedata.normalize("NFKC", local) != local:
            raise _Refused("a compatibility character in the local part, which looks like another")
        # Not printable are controls, format characters, separators, surrogates, unassigned.
        if not local.isprintable():
            raise _Refused("an invisible character in the local part")
        if unicodedata.normalize("NFC", local) != local:
            raise _Refused("the local part is not in normalization form C")
    if len(local.encode()) > MAX_LOCAL:
        raise _Refused(f"the local part is longer than {MAX_LOCAL} octets")


@lru_cache(maxsize=_CACHE_SIZE)
def _domain(text: str) -> str:
    if text.startswith("["):
        return _literal(text)
    labels = [_label(label) for label in text.split(".")]
    if is_number(labels[-1]):
        raise _Refused("a domain that ends in a number (an IP address stands in brackets)")
    domain = ".".join(labels)
    if len(domain) > MAX_DOMAIN:
        raise _Refused(f"the domain is longer than {MAX_DOMAIN} octets")
    return domain


def _label(label: str) -> str:
    if not label.isascii():
        try:
            # ASCII letters have no case in the DNS; all other characters must be as IDNA 2008
            # wants them, because mapping them could lead to somebody else's domain.
            return idna.alabel(label.translate(_ASCII_LOWER)).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise _Refused(f"not an IDNA 2008 domain ({_reason(error)})") from None
    if len(label) > 63:
        raise _Refused("a label of the domain is longer than 63 octets")
    if _LDH_LABEL.fullmatch(label) is None:
        raise _Refused("not a domain")
    if ascii_lower(label[:4]) == "xn--":
        try:
            idna.ulabel(ascii_lower(label))
        except (idna.IDNAError, UnicodeError) as error:
            raise _Refused(f"an xn-- label that is no A-label ({_reason(error)})") from None
    return label


def is_number(label: str) -> bool:
    """True if `label` is a number as `inet_aton` reads it: no domain ends in such a label."""
    return _NUMBER.fullmatch(label) is not None


def _reason(error: UnicodeError) -> str:
    # The text of idna's errors repeats characters of the label.
    return ascii(str(error)).strip("'\"")[:80]


def _literal(text: str) -> str:
    found = _LITERAL.fullmatch(text)
    if found is None:
        raise _Refused("not an address literal")
    try:
        if found["four"]:
            IPv4Address(found["four"])
        else:
            IPv6Address(found["six"])
    except AddressValueError:
        raise _Refused("not an IP address") from None
    return text
