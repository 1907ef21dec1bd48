"""Writes headers: from a name and a value to folded lines that end in CRLF.

A value is text for the receiver to see. If a part of it looks like an encoded word, it is encoded
once more: the receiver sees the text of the caller. `header_check` has checked the values. Lines
are folded at 76 characters where a fold is possible (RFC 2047 section 2).

Nearly all values fit on one line and need no encoding; each function returns early for them.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from ...address import Mailbox, shown_name
from ...common.ascii_text import ascii_lower, ascii_split
from ...exceptions import BadHeaders
from .header_check import has_word_mark, looks_encoded

#: The most octets of a line with encoded words (RFC 2047 section 2), and the goal for other lines.
LINE = 76
#: Octets of text in an encoded word: 75 less ``=?utf-8?q?`` and ``?=``.
_WORD_ROOM = 63
#: The least room for an encoded word at the end of a line: the longest character, escaped.
_LEAST_ROOM = 12
#: A longer word of plain text is encoded: it cannot be folded.
_LONGEST_PLAIN = 900
#: The longest word of a header that cannot be encoded: a line, less the name and its colon.
_LONGEST_UNFOLDED = 998 - 78
#: A longer name is not quoted but encoded: it can be folded then.
_LONGEST_QUOTED = 60
#: The number of display names that are kept in their written form.
_CACHE_SIZE = 4096

#: Headers with a mailbox-list besides those of RFC 5322: of RFC 8098, and older ones in use.
_LISTS = b"disposition-notification-to return-receipt-to errors-to mail-followup-to mail-reply-to"
MAILBOX_LISTS = frozenset(ascii_split(_LISTS.decode()))
#: Headers with a syntax of their own, which has no encoded words (RFC 2047 section 5).
_OWN_SYNTAX = (
    b"message-id in-reply-to references content-id resent-message-id original-message-id "
    b"supersedes obsoletes date resent-date expires expiry-date reply-by received return-path "
    b"delivered-to mime-version content-transfer-encoding content-language accept-language "
    b"content-location content-base content-md5 content-duration content-features list-help "
    b"list-unsubscribe list-subscribe list-post list-owner list-archive list-unsubscribe-post "
    b"archived-at auto-submitted importance priority precedence sensitivity x-priority "
    b"x-msmail-priority dkim-signature domainkey-signature arc-seal arc-message-signature "
    b"arc-authentication-results authentication-results received-spf autocrypt autocrypt-gossip "
    b"mt-priority tls-required disposition-notification-options require-recipient-valid-since "
)
STRUCTURED = frozenset(ascii_split(_OWN_SYNTAX.decode()))

_LIST_ID = re.compile(r"([^<>]*+)(<[!-;=?-~]++>)[ \t]*+", re.ASCII)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PLAIN_PHRASE = re.compile(rf"{_ATOM}(?: {_ATOM})*", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_`{|}~.+-]+", re.ASCII)
_NEEDS_BACKSLASH = re.compile(r'(["\\])', re.ASCII)
# Blanks at the end are a piece of their own. Otherwise a search would try each blank in turn, and
# its time would grow with the square of their number.
_PIECE = re.compile(r" *+(?:[^ ]++|\Z)", re.ASCII)

_ALPHANUMERIC = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
#: The escapes of octets, which are characters of Latin-1 here: in the Q encoding of a phrase, where
#: the fewest characters stay (RFC 2047 section 5), and in a parameter (RFC 2231 section 7).
_IN_WORDS = {n: f"={n:02X}" for n in range(256) if n not in _ALPHANUMERIC + b"!*+-/"}
_IN_WORDS[0x20] = "_"
_IN_PARAMETERS = {n: f"%{n:02X}" for n in range(256) if n not in _ALPHANUMERIC + b"!+-._"}


def header(name: str, text: str) -> str:
    """The header `name` with the value `text`. For headers without mailboxes.

    Raises `BadHeaders` if the header has a syntax of its own that cannot express `text`.
    """
    kind = ascii_lower(name)
    if kind in STRUCTURED:
        return structured_header(name, text)
    if kind == "list-id" and (found := _LIST_ID.fullmatch(text)):
        # Only the phrase can be encoded (RFC 2919 section 3).
        words = phrase(found[1].strip(' \t"')) if found[1] else ()
        return fold(name, [*words, found[2]])
    return text_header(name, text)


def structured_header(name: str, text: str) -> str:
    """A header with a syntax of its own. It is folded at blanks and never encoded.

    Raises `BadHeaders` if `text` is not ASCII, or has a word that is too long for a line.
    """
    text = text.replace("\t", " ").strip(" ")
    if not text.isascii():
        problem = "takes ASCII only; it cannot have encoded words (RFC 2047 section 5)"
        raise BadHeaders(problem, field=name, value=text)
    pieces = _pieces(text)
    if any(len(piece) > _LONGEST_UNFOLDED for piece in pieces):
        problem = f"a word of more than {_LONGEST_UNFOLDED} octets cannot be folded; shorten it"
        raise BadHeaders(problem, field=name, value=text)
    return _folded(name, pieces)


def text_header(name: str, text: str) -> str:
    """An unstructured header (RFC 5322 section 2.2.1) with `text`. A TAB becomes a blank."""
    text = text.replace("\t", " ")
    line = f"{name}: {text}\r\n"
    tidy = text.isascii() and text == text.strip(" ") and not looks_encoded(text)
    if tidy and text and len(line) <= LINE + 2:
        return line
    pieces = _pieces(text) if tidy else []
    if not tidy or any(len(piece) > _LONGEST_PLAIN for piece in pieces):
        return fold(name, encoded_words(text, LINE - len(name) - 2))
    return _folded(name, pieces)


def _pieces(text: str) -> list[str]:
    """The words of `text`, each with the blanks before it."""
    return [piece for piece in _PIECE.findall(text) if piece]


def _folded(name: str, pieces: list[str]) -> str:
    # Each piece keeps its blanks: unfolding gives the same text again.
    lines = [f"{name}:"]
    for piece in [f" {pieces[0]}", *pieces[1:]] if pieces else [""]:
        if len(lines[-1]) + len(piece) > LINE and lines != [f"{name}:"]:
            lines.append("")
        lines[-1] += piece
    return "\r\n".join(lines) + "\r\n"


def mailbox_header(name: str, mailboxes: Sequence[Mailbox]) -> str:
    """An address header (RFC 5322 section 3.6.3). Non-ASCII local parts are written in UTF-8."""
    return fold(name, mailbox_tokens(mailboxes, LINE - len(name) - 2))


def mailbox_tokens(mailboxes: Sequence[Mailbox], room: int) -> list[str]:
    """The tokens of an address list, for `fold`. `room` is the octets left for the first token."""
    tokens: list[str] = []
    for mailbox in mailboxes:
        if tokens:
            tokens[-1] += ","
        if mailbox.display_name:
            tokens += phrase(mailbox.display_name, LINE - 1 if tokens else room)
            tokens.append(f"<{mailbox.address.addr_spec}>")
        else:
            tokens.append(mailbox.address.addr_spec)
    return tokens


def phrase(text: str, room: int = LINE - 1) -> Sequence[str]:
    """The tokens of a phrase (RFC 5322 section 3.2.5) with `text`, for `fold`."""
    text = shown_name(text)
    if not text:
        return ()
    plain = _plain_phrase(text) if len(text) <= _LONGEST_QUOTED else ()
    return plain or encoded_words(text, room)


@lru_cache(_CACHE_SIZE)
def _plain_phrase(text: str) -> tuple[str, ...]:
    """The tokens of a phrase that needs no encoding; none if it needs one."""
    if not text.isascii() or has_word_mark(text):
        return ()
    return tuple(text.split(" ")) if _PLAIN_PHRASE.fullmatch(text) else (quoted(text),)


def quoted(text: str) -> str:
    """`text`, which is ASCII, as a quoted string (RFC 5322 section 3.2.4)."""
    return '"' + _NEEDS_BACKSLASH.sub(r"\\\1", text) + '"'


def parameter_header(name: str, value: str, parameters: Mapping[str, str]) -> str:
    """A header such as Content-Type with its parameters (RFC 2045 section 5.1, RFC 2231)."""
    tokens = [value]
    for key, text in parameters.items():
        for piece in _parameter(key, text):
            tokens[-1] += ";"
            tokens.append(piece)
    return fold(name, tokens)


def _parameter(key: str, text: str) -> list[str]:
    if text.isascii() and not has_word_mark(text):
        token = f"{key}={text}" if _TOKEN.fullmatch(text) else f"{key}={quoted(text)}"
        # On a line of its own, a blank stands before it and perhaps a semicolon after it.
        if len(token) <= LINE:
            return [token]
    octets = text.encode().decode("latin-1").translate(_IN_PARAMETERS)
    charset = "utf-8''"
    # The line also has a blank, the name, ``*10*=`` and the semicolon.
    room = max(LINE - len(key) - 7, _LEAST_ROOM)
    pieces = list(_cut(octets, room - len(charset), room))
    if len(pieces) == 1:
        return [f"{key}*={charset}{pieces[0]}"]
    return [f"{key}*{n}*={'' if n else charset}{piece}" for n, piece in enumerate(pieces)]


def encoded_words(text: str, room: int = LINE - 1) -> list[str]:
    """`text` as encoded words of UTF-8 (RFC 2047). No word splits a character.

    `room` is the octets of the line that are left for the first word. All words are in Q or all in
    B, whichever is shorter.
    """
    raw = text.encode()
    as_q = raw.decode("latin-1").translate(_IN_WORDS)
    first = max(min(room - 12, _WORD_ROOM), _LEAST_ROOM)
    if len(as_q) <= (len(raw) + 2) // 3 * 4:
        return [f"=?utf-8?q?{piece}?=" for piece in _cut(as_q, first, _WORD_ROOM)]
    words = []
    position, limit = 0, first // 4 * 3
    while position < len(raw):
        end = position + limit
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        encoded = binascii.b2a_base64(raw[position:end], newline=False).decode("ascii")
        words.append(f"=?utf-8?b?{encoded}?=")
        position, limit = end, _WORD_ROOM // 4 * 3
    return words


def _cut(escaped: str, first: int, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters, the first of at most `first`. No character is split.

    An escape is a mark and two digits. The mark occurs in escapes only.
    """
    mark = "%" if "%" in escaped else "="
    position, room = 0, first
    while len(escaped) - position > room:
        end = position + room
        if escaped[end - 1] == mark:
            end -= 1
        elif escaped[end - 2] == mark:
            end -= 2
        # In UTF-8 an octet of 80 to BF continues a character.
        while escaped[end] == mark and escaped[end + 1] in "89AB":
            end -= 3
        yield escaped[position:end]
        position, room = end, limit
    yield escaped[position:]


def fold(name: str, tokens: Iterable[str]) -> str:
    """A header of `tokens`, with a blank or a fold between them."""
    tokens = list(tokens)
    line = f"{name}: {' '.join(tokens)}\r\n"
    if len(line) <= LINE + 2:
        return line
    lines = [f"{name}:"]
    # The first token stays beside the name, unless the name is very long.
    whole = len(name) <= LINE - 2 * _LEAST_ROOM
    for token in tokens:
        if len(lines[-1]) + 1 + len(token) > LINE and not (whole and lines == [f"{name}:"]):
            lines.append("")
        lines[-1] += f" {token}"
    return "\r\n".join(lines) + "\r\n"
