"""The last gate: octets in, an error or silence out."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payloads import EXTENDED, HARMLESS, HIDDEN

from txmail.exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from txmail.message.mime import gate

HEAD = (
    b"From: a@b.c\r\nTo: d@e.f\r\nSubject: hello\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@b.c>\r\n"
)
NAMES = ["From", "To", "Subject", "Date", "Message-ID"]
PLAIN = HEAD + b"\r\nbody\r\n"


def with_header(line: bytes) -> bytes:
    return HEAD + line + b"\r\n\r\nbody\r\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        HEAD,
        HEAD + b"\r\n",
        HEAD + b"\r\n\r\n\r\n.\r\n..\r\nFrom x\r\n",
        HEAD + b"\r\n" + b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n",
        HEAD + b"\r\n8 bits: \xff\xfe\x01\x7f\r\n",
        with_header(b"X-Long: " + b"x" * 990),
        with_header(b"X-Folded: a\r\n b\r\n\tc"),
        with_header(b"X-Folded:\r\n b"),
        with_header(b"X-Empty:"),
        with_header(b"X-Twice: a\r\nX-Twice: b"),
        with_header(b"X-Tab: a\tb"),
        with_header("X-Utf8: Grüße".encode()),
        with_header(b"X-Word: =?utf-8?q?Gr=C3=BC=C3=9Fe?= =?utf-8?b?IQ==?="),
        with_header(b"X-Word: =?iso-2022-jp?b?GyRCRnxLXBsoQg==?="),
        with_header(b"X-Word: =?unknown-8bit?q?=E4?="),
        with_header(b"X-Percent: 100%0a off"),
    ],
)
def test_a_proper_message_passes(content):
    gate.check(content)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\r\n", b"\n\r"])
@pytest.mark.parametrize("place", ["headers", "between", "body", "last"])
def test_only_crlf_ends_a_line(end, place):
    content = {
        "headers": PLAIN.replace(b"a@b.c\r\n", b"a@b.c" + end),
        "between": PLAIN.replace(b"\r\n\r\n", b"\r\n" + end),
        "body": HEAD + b"\r\na" + end + b"b\r\n",
        "last": HEAD + b"\r\nbody" + end,
    }[place]
    with pytest.raises(InvalidMessage):
        gate.check(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"\r\n" + PLAIN,
        b"body only\r\n",
        HEAD + b"\r\nno end",
        HEAD + b"\r\na\0b\r\n",
        HEAD + b"\r\n" + b"x" * 999 + b"\r\n",
        HEAD + b"\r\n" + b"y\r\n" * 500 + b"x" * 999 + b"\r\nz\r\n",
        with_header(b"X-Long: " + b"x" * 991),
        b" " + PLAIN,
        b"\tx\r\n" + PLAIN,
        with_header(b"X-Fold: a\r\n \r\n b"),
        with_header(b"X-Fold: a\r\n \t"),
        with_header(b"no colon"),
        with_header(b"X-Blank : a"),
        with_header(b"X Blank: a"),
        with_header(b": a"),
        with_header("X-Ü: a".encode()),
        with_header(b"From evil@x.y Sat"),
        with_header(b"X-Control: a\x1bb"),
        with_header(b"X-Control: a\x0bb"),
        with_header(b"X-Control: a\x7fb"),
        with_header("X-Nel: a\x85b".encode()),
        with_header("X-Separator: a\u2028b".encode()),
        with_header(b"X-Latin: a\xe4b"),
        with_header(b"X-Surrogate: a\xed\xa0\x80b"),
        with_header(b"Bcc: evil@x.y"),
        with_header(b"bcc:"),
        with_header(b"RESENT-BCC: evil@x.y"),
    ],
)
def test_everything_else_is_refused(content):
    with pytest.raises(InvalidMessage):
        gate.check(content)


@pytest.mark.parametrize("name", ["From", "Date", "Message-ID"])
def test_what_is_required_is_there_once_and_the_error_names_it(name):
    lines = HEAD.split(b"\r\n")[:-1]
    own = [line for line in lines if line.startswith(name.encode() + b":")]
    others = [line for line in lines if line not in own]
    for wrong in (others, others + own + own, [*others, name.encode() + b":  "]):
        with pytest.raises(BadHeaders) as caught:
            gate.check(b"\r\n".join(wrong) + b"\r\n\r\nbody\r\n")
        assert caught.value.field == name


@pytest.mark.parametrize(
    "name", ["Subject", "To", "Cc", "Reply-To", "Sender", "Content-Type", "MIME-Version"]
)
def test_what_may_be_there_once_is_refused_twice_and_the_error_names_it(name):
    line = name.encode() + b": x@y.z\r\n"
    head = HEAD if name in NAMES else HEAD + line
    gate.check(head + b"\r\n")
    with pytest.raises(BadHeaders) as caught:
        gate.check(head + line.upper() + b"\r\n")
    assert caught.value.field.lower() == name.lower()


@pytest.mark.parametrize("value", [*HIDDEN.values(), *EXTENDED.values()])
def test_a_header_that_decodes_to_a_control_is_refused(value):
    for line in (f"X-Tag: {value}", f"X-Tag: a\r\n {value}"):
        with pytest.raises(BadHeaders) as caught:
            gate.check(with_header(line.encode()))
        assert caught.value.field == "X-Tag"


@pytest.mark.parametrize("value", [v for k, v in HARMLESS.items() if k != "long word"])
def test_a_header_that_decodes_to_text_passes(value):
    gate.check(with_header(f"X-Tag: {value}".encode()))


def test_adjacent_words_are_joined_across_a_fold():
    gate.check(with_header(b"X-Tag: =?utf-8?q?x=C2?= y =?utf-8?q?=85?="))
    with pytest.raises(BadHeaders):
        gate.check(with_header(b"X-Tag: =?utf-8?q?x=C2?=\r\n =?utf-8?q?=85?="))


def test_the_headers_are_the_intended_ones_in_their_order():
    gate.check(PLAIN, intended_headers=NAMES)
    gate.check(PLAIN, intended_headers=[name.upper() for name in NAMES])
    for wrong in (NAMES[:-1], [*NAMES, "X-Tag"], NAMES[::-1], [*NAMES[:-1], "X-Tag"]):
        with pytest.raises(BadHeaders):
            gate.check(PLAIN, intended_headers=wrong)


def test_a_boundary_is_found_in_a_body():
    body = b"\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n"
    gate.check(HEAD + body, boundaries={b"b": 3})
    for forged in (b"\r\n--b\r\n", b"\r\n--b--\r\n", b"\r\n--bx\r\n"):
        with pytest.raises(InvalidMessage):
            gate.check(HEAD + body.replace(b"one", b"one" + forged), boundaries={b"b": 3})


def test_a_message_may_be_as_large_as_the_bound_and_no_larger():
    room = gate.MAX_CONTENT - len(HEAD) - 4
    line = b"x" * 76 + b"\r\n"
    body = (line * (room // len(line) + 1))[:room].rstrip(b"\r\n")
    body += b"x" * (room - len(body))
    gate.check(HEAD + b"\r\n" + body + b"\r\n")
    with pytest.raises(MessageTooLarge):
        gate.check(HEAD + b"\r\n" + body + b"x\r\n")


def test_headers_may_be_as_large_as_the_bound_and_no_larger():
    line = b"X-Tag: " + b"x" * 89 + b"\r\n"
    count, rest = divmod(gate.MAX_HEADERS - len(HEAD), len(line))
    head = HEAD + line * (count - 1) + b"X-Tag: " + b"x" * (rest + 89) + b"\r\n"
    gate.check(head + b"\r\n")
    with pytest.raises(MessageTooLarge):
        gate.check(b"X: y\r\n" + head + b"\r\n")


@pytest.mark.parametrize(
    "piece",
    [
        "=?",
        "=?utf-8?q?",
        "=?=?utf-8?b?",
        "=?utf-8?q?a?= ",
        "=?utf-8?b?A?= ",
        "x*=%0",
        ';x*="',
        "a",
        "%*=",
        ";a*0*=%",
        "=?punycode?q?a-?= ",
    ],
)
def test_time_is_linear_in_the_size_of_the_headers(piece):
    # Lines as long as they may be, folded to the bound; anything quadratic takes minutes here.
    line = " " + (piece * 998)[:997] + "\r\n"
    count = (gate.MAX_HEADERS - len(HEAD) - 20) // len(line)
    content = HEAD + b"X-Tag: =?%*\r\n" + line.encode() * count + b"\r\n"
    start = time.process_time()
    with contextlib.suppress(BadHeaders):
        gate.check(content)
    assert time.process_time() - start < 2


def test_an_error_says_nothing_of_the_body():
    with pytest.raises(InvalidMessage) as caught:
        gate.check(HEAD + b"\r\nSECRET\n")
    assert "SECRET" not in str(caught.value)


LINES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([b"X: y", b" z", b"Bcc: e", b"", b" ", b"To: a", b"=?utf-8?q?=0a?="]),
    ),
    max_size=6,
)


@given(LINES, st.sampled_from([b"\r\n", b"\n", b"\r"]))
def test_what_passes_has_just_the_headers_a_line_splitter_sees(lines, end):
    content = HEAD + end.join(lines) + b"\r\n"
    try:
        gate.check(content, intended_headers=NAMES)
    except InvalidMessage:
        return
    head, _, body = content.partition(b"\r\n\r\n")
    names = [
        line.partition(b":")[0].decode() for line in head.splitlines() if line[:1] not in b" \t"
    ]
    assert [name for name in names if name] == NAMES
    assert body.replace(b"\r\n", b"").count(b"\r") == body.replace(b"\r\n", b"").count(b"\n") == 0
