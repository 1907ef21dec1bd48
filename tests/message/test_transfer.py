"""Content-Transfer-Encodings, octet by octet, against the codecs of the standard library."""

from __future__ import annotations

import base64
import binascii
import quopri
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from txmail.exceptions import InvalidMessage
from txmail.message.mime.encodings import carries, crlf, crlf_text, encode_body, encode_text

OCTETS = st.one_of(
    st.binary(max_size=400),
    st.lists(st.sampled_from([b"=", b" ", b"\t", b"x" * 25, b"\xc3\xbc", b"\r\n", b"."])).map(
        b"".join
    ),
    st.tuples(st.integers(60, 90), st.sampled_from([b"=", b"\xff", b"=\xff", b" ", b"a "])).map(
        lambda pair: b"x" * pair[0] + pair[1] * 20
    ),
)
DECODE = {"7bit": bytes, "quoted-printable": binascii.a2b_qp, "base64": base64.b64decode}


@given(OCTETS, st.booleans())
@example(b"x" * 76, False)
@example(b"x" * 77, False)
@example(b"x" * 75 + b"=", False)
@example(b"x" * 75 + b" ", False)
@example(b"\n", False)
@example(b"", True)
def test_quoted_printable_is_read_back_and_in_form(octets, text):
    encoded = encode_body(octets, "quoted-printable", text=text, field="data")
    assert binascii.a2b_qp(encoded) == (crlf(octets) if text else octets)
    if not text:
        assert quopri.decodestring(encoded) == octets
    for line in encoded.split(b"\r\n"):
        assert len(line) <= 76
        assert re.fullmatch(rb"(?:[\t -<>-~]|=[0-9A-F]{2})*=?", line)
        assert not line.endswith((b" ", b"\t"))


@given(OCTETS)
@example(bytes(57 * 128))
@example(bytes(57 * 128 + 1))
@example(bytes(57 * 129 - 1))
def test_base64_is_read_back_and_in_lines_of_seventy_six(octets):
    encoded = encode_body(octets, "base64", text=False, field="data")
    assert base64.b64decode(encoded, validate=False) == octets
    *lines, last = encoded.split(b"\r\n")
    assert all(re.fullmatch(rb"[A-Za-z0-9+/]{76}", line) for line in lines)
    assert re.fullmatch(rb"[A-Za-z0-9+/]{0,76}={0,2}", last)
    assert len(last) <= 76


@given(st.one_of(OCTETS.map(lambda octets: octets.decode("utf-8", "replace")), st.text()))
def test_a_text_gets_the_encoding_that_is_shortest_among_the_safe(text):
    octets = crlf_text(text).encode()
    assert octets == re.sub("\r\n|\r|\n", "\r\n", text).removesuffix("\r\n").encode() + b"\r\n"
    encoding, encoded = encode_text(octets)
    assert DECODE[encoding](encoded) == octets
    readable = octets.isascii() and b"\0" not in octets
    readable = readable and max(map(len, octets.split(b"\r\n"))) <= 78
    assert (encoding == "7bit") == readable
    if not readable:
        other = {"base64": "quoted-printable", "quoted-printable": "base64"}[encoding]
        longer = len(encode_body(octets, other, text=True, field="body"))
        # Soft line breaks are not foreseen: three octets in each line of 76.
        assert len(encoded) <= longer * 80 / 76 + 20


@pytest.mark.parametrize(
    ("octets", "eightbit", "passes"),
    [
        (b"", False, True),
        (b"x" * 998, False, True),
        (b"x" * 999, False, False),
        (b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n", False, True),
        (b"x" * 998 + b"\r\n" + b"y" * 999, False, False),
        (b"a\nb", False, False),
        (b"a\rb", False, False),
        (b"a\n\rb", False, False),
        (b"a\n\rb\r\n", False, False),
        (b"a\0b", True, False),
        (b"\xff", False, False),
        (b"\xff", True, True),
    ],
)
def test_what_can_be_sent_as_it_is(octets, eightbit, passes):
    assert carries(octets, eightbit=eightbit) is passes
    encoding = "8bit" if eightbit else "7bit"
    if passes:
        assert encode_body(octets, encoding, text=False, field="data") == octets
    else:
        with pytest.raises(InvalidMessage) as caught:
            encode_body(octets, encoding, text=False, field="data")
        assert caught.value.field == "data"
