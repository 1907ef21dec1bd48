"""Checks of the names and values of headers, before they are written.

A value cannot have a control character, a Unicode line separator or a lone surrogate, neither
before nor after a receiver decodes it. So encoded words (RFC 2047) and extended parameters
(RFC 2231) are decoded, also where they are split.
"""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from ...address import WORD_MARK
from ...common.ascii_text import ascii_lower
from ...exceptions import BadHeaders, MessageTooLarge

#: The most octets of a header section, and of any value in it.
MAX_HEADERS = 100 * 1024

_ADDRESSES = ("from", "sender", "reply-to", "to", "cc", "bcc")
#: Headers that have addresses in them, in lower case (RFC 5322 sections 3.6.2, 3.6.3 and 3.6.6).
ADDRESS_HEADERS = frozenset(
    [
        *_ADDRESSES,
        *(f"resent-{name}" for name in _ADDRESSES),
        *("errors-to", "return-receipt-to", "disposition-notification-to"),
    ]
)

#: C0 (with TAB), DEL, C1 (with NEL), the line and paragraph separators, surrogates.
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", re.ASCII)
#: The same characters without TAB, which occurs in folded headers of other programs.
FORBIDDEN_BUT_TAB = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", re.ASCII)
#: The beginning of an encoded word for the most lenient reader.
WORD_HEAD = re.compile(r"=\?(?=([^?]*)\?([qQbB])\?)", re.ASCII)

#: The most characters of a header name, and a valid name (RFC 5322 section 3.6.8).
MAX_NAME = 76
HEADER_NAME = re.compile(rf"[!-9;-~]{{1,{MAX_NAME}}}", re.ASCII)

#: Quoted strings, and the text between them.
_QUOTED_OR_NOT = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|(?:[^"\\]++|\\.)++|\\', re.DOTALL | re.ASCII)
#: Characters that separate an addr-spec from a phrase.
_AROUND = re.compile(r"[\s,;:<>()]", re.ASCII)
#: The most characters of an addr-spec that can stand on one side of an encoded word.
_NEAR = 320

_Q_OCTET = re.compile(rb"=([0-9A-Fa-f]{2})")
_PAIR = re.compile(r"\\(.)", re.ASCII)
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]", re.ASCII)
_CONTROL_OCTET = re.compile(rb"[\x00-\x1f\x7f]")
_LINE_OCTET = re.compile(rb"[\x00\r\n]")
# A match begins at the start of a run of characters only, which keeps the time linear.
_SEGMENT = re.compile(
    r'(?<![^\s;"])([^\s;=*"]+)\*([0-9]*)\*?\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL | re.ASCII
)

#: Names of charsets with characters of two or four octets, and of EBCDIC.
_NO_ASCII = re.compile(
    r"utf-?(?:16|32)|(?:cs)?(?:iso-10646-)?(?:ucs|unicode(?!-1-1-utf-7))|ebcdic|ibm0?[0-9]{2,4}\Z",
    re.IGNORECASE | re.ASCII,
)

_FIELD_TEXT = rb"[\t -~\x80-\xff]*+"
_FIELD = re.compile(
    rb"([!-9;-~]++):(%b(?:(?>\r\n[\t ]++[!-~\x80-\xff]%b))*+)\r\n" % (_FIELD_TEXT, _FIELD_TEXT)
)
_FOLD = re.compile(rb"\r\n(?=[ \t])")

#: Codecs of Python that are no charsets of MIME: they read escapes, or take unlimited time.
_NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}


def check_name(name: str, field: str) -> None:
    """Raise `BadHeaders`, which names `field`, unless a header can have this `name`."""
    if not isinstance(name, str):
        raise BadHeaders("a header name must be a string", field=field, value=name)
    if HEADER_NAME.fullmatch(name) is None:
        raise BadHeaders("not the name of a header", field=field, value=name)


def check_value(text: str, field: str, *, tab: bool = False, parameter: bool = False) -> None:
    """Raise `BadHeaders`, which names `field`, unless a header can have `text` in it.

    `tab` allows TAB. `parameter` says that `text` is the value of a parameter, such as a file name:
    some readers percent-decode all of them (RFC 2231). Raises `MessageTooLarge` for a text of more
    than `MAX_HEADERS` characters.
    """
    if not isinstance(text, str):
        raise BadHeaders("a string is needed", field=field, value=text)
    if len(text) > MAX_HEADERS:
        raise MessageTooLarge(f"more than {MAX_HEADERS} octets; shorten it", field=field)
    if text.isascii() and text.isprintable() and "=?" not in text and "%" not in text:
        return  # nearly all texts end here
    if (FORBIDDEN_BUT_TAB if tab else FORBIDDEN).search(text):
        raise BadHeaders(
            "a control character or line separator is not allowed", field=field, value=text
        )
    if hides_controls(text):
        raise BadHeaders("decodes to a control character", field=field, value=text)
    if parameter and "%" in text and _is_forbidden(unquote_to_bytes(text), "utf-8"):
        raise BadHeaders("decodes to a control character", field=field, value=text)


def check_field(
    name: str, octets: bytes, problem: str = "it would not be exactly one header"
) -> None:
    """Raise `BadHeaders` unless `octets` are exactly one header with this `name`.

    It cannot decode to a control character. This is the last check of a header of a part.
    """
    found = _FIELD.fullmatch(octets)
    if found is None or found[1] != name.encode("ascii", "replace"):
        raise BadHeaders(problem, field=name)
    if octets.isascii() and b"=?" not in octets and b"%" not in octets:
        return
    try:
        text = _FOLD.sub(b"", found[2]).decode("utf-8")
    except UnicodeDecodeError:
        raise BadHeaders("neither ASCII nor UTF-8", field=name) from None
    if FORBIDDEN_BUT_TAB.search(text) or hides_controls(text):
        raise BadHeaders("decodes to a control character or line separator", field=name)


def looks_encoded(text: str) -> bool:
    """True if a reader may take a part of `text` for an encoded word."""
    return "=?" in text and WORD_HEAD.search(text) is not None


def has_word_mark(text: str) -> bool:
    """True if `text` has the middle of an encoded word.

    The texts around it may have the beginning and the end of that word.
    """
    return "?" in text and WORD_MARK.search(text) is not None


def hides_controls(text: str) -> bool:
    """True if `text` decodes to a character that no header can have. Takes linear time."""
    if "=?" in text and any(
        _is_forbidden(octets, charset) for octets, charset in _encoded_words(text)
    ):
        return True
    if "*" in text and "%" in text:
        return any(_is_forbidden(octets, charset) for octets, charset in _extended_parameters(text))
    return False


def hides_address(text: str) -> bool:
    """True if a reader may find an encoded word in an addr-spec in `text`, an address header.

    RFC 2047 section 5 forbids it. A reader that decodes the word sees another address than the one
    that the server delivers to. Takes linear time.
    """
    if "=?" not in text:
        return False
    pieces = [found[0] for found in _QUOTED_OR_NOT.finditer(text)]
    for piece, behind in zip(pieces, [*pieces[1:], ""], strict=True):
        if piece.startswith('"') and "=?" in piece and behind.lstrip().startswith("@"):
            return True
    return any(_is_in_address(text, head) for head in WORD_HEAD.finditer(text))


def _is_in_address(text: str, head: re.Match[str]) -> bool:
    """True if the encoded word that begins at `head` is in an addr-spec, or has no end."""
    end = text.find("?=", head.end(2) + 1)
    if end < 0:
        return True
    before, behind = (
        text[max(head.start() - _NEAR, 0) : head.start()],
        text[end + 2 : end + 2 + _NEAR],
    )
    if before.rstrip().endswith(("@", "<")) or behind.lstrip().startswith("@"):
        return True
    return "@" in _AROUND.split(before)[-1] or "@" in _AROUND.split(behind)[0]


def is_charset(name: str) -> bool:
    """True if `name` is a charset of MIME text that Python can encode."""
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):
        return False
    # `str.encode` itself uses this attribute, which is not documented.
    return info.name not in _NO_CHARSETS and getattr(info, "_is_text_encoding", True)


def has_ascii_line_ends(charset: str) -> bool:
    """False if `charset` writes CR and LF not as ASCII does, or as parts of other characters.

    UTF-16, UTF-32 and EBCDIC are such charsets. If Python does not know `charset`, its name counts.
    """
    if is_charset(charset):
        return "\r\n".encode(charset).endswith(b"\r\n")
    return _NO_ASCII.match(charset) is None


def _is_forbidden(octets: bytes, charset: str) -> bool:
    """True if a reader may decode `octets` of `charset` to a forbidden character."""
    if _LINE_OCTET.search(octets):
        return True
    if is_charset(charset):
        return FORBIDDEN.search(octets.decode(charset, "replace")) is not None
    try:
        known = codecs.lookup(charset) is not None
    except (LookupError, ValueError):
        known = False
    text = octets.decode("utf-8", "replace")
    return known or bool(_CONTROL_OCTET.search(octets)) or bool(FORBIDDEN.search(text))


def _encoded_words(text: str) -> Iterator[tuple[bytes, str]]:
    """Octets and charset of the encoded words in `text`: of each, and of neighbours joined.

    Some readers join before decoding and some after it, so both are given. Readers disagree about a
    word that begins inside another: it is given as a NUL, which is forbidden. A word without an end
    is read too, because `email.headerregistry` reads it.
    """
    heads = list(WORD_HEAD.finditer(text))
    run: list[tuple[str, str]] = []
    run_charset, run_end = "", -1
    for index, head in enumerate(heads):
        start = head.end(2) + 1
        end = text.find("?=", start)
        if index + 1 < len(heads) and not heads[index + 1].start() >= end >= 0:
            yield b"\0", "us-ascii"
            return
        charset, encoding = head[1].partition("*")[0].strip().lower(), ascii_lower(head[2])
        if end < 0:
            # Readers that need no end stop at a blank, or take all of the text.
            rest = text[start:]
            yield _octets(encoding, rest), charset
            yield _octets(encoding, "".join(rest.split(maxsplit=1)[:1])), charset
            break
        yield _octets(encoding, text[start:end]), charset
        if charset != run_charset or text[run_end : head.start()].strip():
            yield from _joined(run, run_charset)
            run = []
        run.append((encoding, text[start:end]))
        run_charset, run_end = charset, end + 2
    yield from _joined(run, run_charset)


def _joined(run: Iterable[tuple[str, str]], charset: str) -> Iterator[tuple[bytes, str]]:
    run = list(run)
    if len(run) < 2:
        return
    yield b"".join([_octets(encoding, text) for encoding, text in run]), charset
    # Base64 that ends within a quantum, without padding, continues in the next word.
    pieces = [_NOT_BASE64.sub("", text) for encoding, text in run if encoding == "b"]
    if any(len(piece) % 4 for piece in pieces[:-1]) and not any("=" in p for p in pieces[:-1]):
        yield _octets("b", "".join(pieces)), charset


def _octets(encoding: str, text: str) -> bytes:
    """The octets of the encoded text of a word, as far as it can be read (RFC 2047 section 4)."""
    if encoding == "q":
        raw = text.encode("utf-8", "surrogatepass").replace(b"_", b" ")
        return _Q_OCTET.sub(lambda found: bytes([int(found[1], 16)]), raw)
    # Most readers stop at padding; others ignore it.
    whole = _NOT_BASE64.sub("", text)
    return b"".join([_base64(piece) for piece in whole.split("=") if piece])


def _base64(text: str) -> bytes:
    if len(text) % 4 == 1:
        text = text[:-1]
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))


def _extended_parameters(text: str) -> Iterator[tuple[bytes, str]]:
    """Octets and charset of the parameters with an asterisk. Their segments are joined."""
    segments: dict[str, list[tuple[int, str]]] = {}
    for name, number, value in _SEGMENT.findall(text):
        if value.startswith('"'):
            value = _PAIR.sub(r"\1", value.strip().strip('"'))
        segments.setdefault(name.lower(), []).append((int(number[:6] or 0), value.strip()))
    for parts in segments.values():
        value = "".join([part for _, part in sorted(parts, key=lambda part: part[0])])
        charset, mark, rest = value.partition("'")
        _, mark, rest = rest.partition("'")
        if mark:
            yield unquote_to_bytes(rest), charset.strip() or "us-ascii"
        yield unquote_to_bytes(value), "utf-8"
