"""Octets become replies, or the route's fault, and nothing in between."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txmail.exceptions import TransportError
from txmail.reply import Reply
from txmail.smtp.replies import (
    LINE_LIMIT,
    LINES_LIMIT,
    REPLY_LIMIT,
    MalformedReply,
    ReplyParser,
)

OCTETS = (
    b"220 mx.example.com ESMTP\r\n"
    b"250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 1000\r\n"
    b"250\r\n"
    b"354 go\r\n"
    b"550-5.1.1 no such\r\n550\r\n"
    b"250 2.0.0 gr\xc3\xbcn\r\n"
)
REPLIES = [
    Reply(220, ("mx.example.com ESMTP",)),
    Reply(250, ("mx.example.com", "PIPELINING", "SIZE 1000")),
    Reply(250, ("",)),
    Reply(354, ("go",)),
    Reply(550, ("5.1.1 no such", "")),
    Reply(250, ("2.0.0 gr\xfcn",)),
]


def replies_of(parser):
    found = []
    while (reply := parser.next()) is not None:
        found.append(reply)
    return found


def parsed(octets):
    parser = ReplyParser()
    parser.feed(octets)
    return parser.next()


@pytest.mark.parametrize("cut", range(len(OCTETS) + 1))
def test_replies_are_the_same_wherever_they_are_cut(cut):
    parser, found = ReplyParser(), []
    for piece in (OCTETS[:cut], OCTETS[cut:]):
        parser.feed(piece)
        found += replies_of(parser)
    assert found == REPLIES
    assert not parser.pending


def test_replies_that_come_octet_by_octet_are_complete_at_their_last_octet():
    parser, ends = ReplyParser(), []
    for position in range(len(OCTETS)):
        parser.feed(OCTETS[position : position + 1])
        if parser.next() is not None:
            ends.append(position + 1)
    lengths = [26, 51, 5, 8, 24, 17]
    assert ends == [sum(lengths[: n + 1]) for n in range(len(lengths))]


@pytest.mark.parametrize("octets", [b"2", b"250 Ok", b"250 Ok\r", b"250-Ok\r\n", b"250-Ok\r\n250 "])
def test_an_incomplete_reply_is_no_reply_and_is_pending(octets):
    parser = ReplyParser()
    parser.feed(octets)
    assert parser.next() is None
    assert parser.pending
    assert not parser.ready


@pytest.mark.parametrize(
    "octets",
    [
        b"250 Ok\n",
        b"250-a\n250 b\r\n",
        b"250 a\rb\r\n",
        b"250 Ok\r\r\n",
        b"\r\n",
        b"\n",
        b"99 low\r\n",
        b"199 low\r\n",
        b"600 high\r\n",
        b"2500 Ok\r\n",
        b"25 Ok\r\n",
        b"2_5 Ok\r\n",
        b"2\xb25 Ok\r\n",
        b"+50 Ok\r\n",
        b" 250 Ok\r\n",
        b"250_Ok\r\n",
        b"250\tOk\r\n",
        b"250Ok\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x03\x01\x00\xa5\x01\r\n",
        b"250-a\r\n251 b\r\n",
        b"250-a\r\n550 b\r\n",
        b"250-a\r\nb\r\n",
        b"250-a\r\n\r\n",
    ],
)
def test_what_is_not_exactly_a_reply_is_malformed(octets):
    with pytest.raises(MalformedReply):
        parsed(octets)


def test_a_malformed_reply_concerns_nobody_who_waits_for_an_earlier_one():
    parser = ReplyParser()
    parser.feed(b"250 one\r\n354 two\r\nnonsense\r\n250 three\r\n")
    assert parser.next().code == 250
    assert parser.next().code == 354
    for _ in range(2):  # and it stays
        with pytest.raises(MalformedReply):
            parser.next()


def test_malformed_is_a_temporary_fault_of_the_route():
    error = MalformedReply("")
    assert isinstance(error, TransportError)
    assert error.temporary
    assert error.lost


def test_a_line_may_have_as_many_octets_as_the_limit_and_not_one_more():
    text = b"x" * (LINE_LIMIT - len(b"250 \r\n"))
    assert parsed(b"250 " + text + b"\r\n").text == text.decode()
    with pytest.raises(MalformedReply):
        parsed(b"250 x" + text + b"\r\n")


def test_a_line_without_end_is_given_up_at_the_limit():
    parser = ReplyParser()
    parser.feed(b"250 " + b"x" * (LINE_LIMIT - 5))
    assert parser.next() is None
    parser.feed(b"x")
    with pytest.raises(MalformedReply):
        parser.next()


def test_a_reply_may_have_as_many_lines_as_the_limit_and_not_one_more():
    most = b"250-x\r\n" * (LINES_LIMIT - 1) + b"250 x\r\n"
    assert len(parsed(most).lines) == LINES_LIMIT
    with pytest.raises(MalformedReply):
        parsed(b"250-x\r\n" + most)


def test_a_reply_is_given_up_at_the_limit_of_its_octets():
    line = b"250-" + b"x" * 4000 + b"\r\n"
    count = REPLY_LIMIT // len(line)
    assert parsed(line * (count - 1) + line.replace(b"-", b" ")) is not None
    with pytest.raises(MalformedReply):
        parsed(line * (count + 1))


def test_a_flood_takes_no_more_memory_than_the_limits():
    tracemalloc.start()
    try:
        parser = ReplyParser()
        while not parser.ready:
            parser.feed(b"250-" + b"x" * 1000 + b"\r\n")
        assert tracemalloc.get_traced_memory()[1] < 10 * REPLY_LIMIT
    finally:
        tracemalloc.stop()


def test_nul_and_other_controls_are_text_that_prints_escaped():
    reply = parsed(b"250 a\0b\x1b[2J\x9b\r\n")
    assert reply.text == "a\0b\x1b[2J\\x9b"
    assert str(reply) == "250 a\\x00b\\x1b[2J\\x9b"


def test_octets_that_are_not_utf8_are_shown_escaped():
    assert parsed(b"550 \xff\xe9\r\n").text == "\\xff\\xe9"


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_octets_give_replies_or_malformed(pieces):
    parser = ReplyParser()
    try:
        for piece in pieces:
            parser.feed(piece)
            for reply in replies_of(parser):
                assert 200 <= reply.code <= 599
                assert not any("\r" in line or "\n" in line for line in reply.lines)
    except MalformedReply:
        assert parser.ready
