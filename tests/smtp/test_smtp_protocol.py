"""The laws of one connection hold whatever either side tries."""

from __future__ import annotations

import pytest

from txmail.smtp.commands import DATA, NOOP, RSET, rcpt
from txmail.smtp.failure_policy import Step
from txmail.smtp.protocol import LocalProtocolError, Protocol
from txmail.smtp.replies import MalformedReply

CONTENT = b"Subject: x\r\n\r\n.dot\r\n"
ON_WIRE = b"Subject: x\r\n\r\n..dot\r\n.\r\n"


@pytest.fixture
def protocol():
    """A connection that has been greeted."""
    protocol = Protocol()
    protocol.receive(b"220 mx\r\n")
    assert protocol.next_reply().code == 220
    return protocol


def written(protocol):
    octets = b"".join(protocol.outgoing())
    protocol.note_written(len(octets))
    return octets


def in_content(protocol):
    """Bring it to where content is due."""
    protocol.issue(Step.DATA, DATA)
    written(protocol)
    protocol.receive(b"354 go\r\n")
    assert protocol.next_reply().code == 354


def test_the_greeting_is_awaited_before_anything_is_said():
    protocol = Protocol()
    assert not protocol.idle
    assert protocol.next_reply() is None
    protocol.receive(b"220 mx\r\n")
    assert protocol.next_reply().code == 220
    assert protocol.idle


def test_replies_answer_commands_in_their_order(protocol):
    protocol.issue(Step.RSET, RSET)
    protocol.issue(Step.RCPT, rcpt(b"<b@example.com>"))
    assert written(protocol) == b"RSET\r\nRCPT TO:<b@example.com>\r\n"
    protocol.receive(b"250 one\r\n550 two\r\n")
    assert [protocol.next_reply().code, protocol.next_reply().code] == [250, 550]
    assert protocol.next_reply() is None
    assert protocol.idle


@pytest.mark.parametrize("octets", [b"250 Ok\r\n", b"421 bye\r\n", b"25", b"\r\n"])
def test_what_nothing_asked_for_ends_the_connection(protocol, octets):
    protocol.receive(octets)
    assert not protocol.idle
    with pytest.raises(MalformedReply):
        protocol.issue(Step.NOOP, NOOP)


def test_a_reply_that_nothing_asked_for_is_malformed_when_it_is_read(protocol):
    protocol.receive(b"250 Ok\r\n")
    with pytest.raises(MalformedReply):
        protocol.next_reply()


@pytest.mark.parametrize("octets", range(len(NOOP)))
def test_a_reply_that_comes_before_its_command_has_left_is_malformed(protocol, octets):
    protocol.issue(Step.NOOP, NOOP)
    protocol.outgoing()
    protocol.note_written(octets)
    protocol.receive(b"250 Ok\r\n")
    with pytest.raises(MalformedReply):
        protocol.next_reply()


@pytest.mark.parametrize("stage", [s for s in Step if s not in (Step.DATA, Step.FINAL)])
def test_an_intermediate_reply_to_anything_but_data_is_malformed(protocol, stage):
    protocol.issue(stage, NOOP)
    written(protocol)
    protocol.receive(b"354 go\r\n")
    with pytest.raises(MalformedReply):
        protocol.next_reply()


def test_an_intermediate_greeting_is_malformed():
    protocol = Protocol()
    protocol.receive(b"354 go\r\n")
    with pytest.raises(MalformedReply):
        protocol.next_reply()


def test_an_intermediate_reply_to_the_final_dot_is_malformed(protocol):
    in_content(protocol)
    protocol.content(CONTENT)
    written(protocol)
    protocol.receive(b"354 more\r\n")
    with pytest.raises(MalformedReply):
        protocol.next_reply()


@pytest.mark.parametrize("reply", [b"250 Ok\r\n", b"251 Ok\r\n", b"334 \r\n", b"350 ok\r\n"])
def test_data_is_answered_by_354_or_by_a_refusal(protocol, reply):
    protocol.issue(Step.DATA, DATA)
    written(protocol)
    protocol.receive(reply)
    with pytest.raises(MalformedReply):
        protocol.next_reply()


def test_nothing_is_issued_behind_data_until_it_is_answered(protocol):
    protocol.issue(Step.DATA, DATA)
    with pytest.raises(LocalProtocolError):
        protocol.issue(Step.RSET, RSET)


def test_nothing_but_content_follows_a_354(protocol):
    in_content(protocol)
    with pytest.raises(LocalProtocolError):
        protocol.issue(Step.RSET, RSET)
    assert not protocol.idle


def test_content_without_a_354_is_refused(protocol):
    with pytest.raises(LocalProtocolError):
        protocol.content(CONTENT)
    in_content(protocol)
    protocol.content(CONTENT)
    with pytest.raises(LocalProtocolError):
        protocol.content(CONTENT)


def test_a_refused_data_is_no_354(protocol):
    protocol.issue(Step.DATA, DATA)
    written(protocol)
    protocol.receive(b"554 no\r\n")
    assert protocol.next_reply().code == 554
    with pytest.raises(LocalProtocolError):
        protocol.content(CONTENT)


def test_commands_may_follow_the_content_in_the_same_write(protocol):
    in_content(protocol)
    protocol.content(CONTENT)
    protocol.issue(Step.RSET, RSET)
    assert written(protocol) == ON_WIRE + RSET


@pytest.mark.parametrize("octets", range(len(ON_WIRE) + len(RSET) + 1))
def test_the_final_dot_has_left_with_the_last_octet_of_its_line(protocol, octets):
    in_content(protocol)
    protocol.content(CONTENT)
    protocol.issue(Step.RSET, RSET)
    offered = b"".join(protocol.outgoing())
    protocol.note_written(octets)
    assert protocol.final_dot_left is (octets >= len(ON_WIRE))
    assert b"".join(protocol.outgoing()) == offered[octets:]


def test_while_a_write_is_under_way_the_final_dot_may_have_left(protocol):
    in_content(protocol)
    protocol.content(CONTENT)
    assert not protocol.final_dot_left
    protocol.outgoing()
    assert protocol.final_dot_left
    protocol.note_written(0)
    assert not protocol.final_dot_left


@pytest.mark.parametrize("code", [421, 452, 552, 554])
def test_an_early_refusal_of_the_content_is_heard(protocol, code):
    in_content(protocol)
    protocol.content(CONTENT)
    protocol.outgoing()
    protocol.note_written(5)
    protocol.receive(b"%d no\r\n" % code)
    assert protocol.next_reply().code == code
    assert not protocol.final_dot_left


def test_an_early_acceptance_of_the_content_is_malformed(protocol):
    in_content(protocol)
    protocol.content(CONTENT)
    protocol.outgoing()
    protocol.note_written(len(ON_WIRE) - 1)
    protocol.receive(b"250 Ok\r\n")
    with pytest.raises(MalformedReply):
        protocol.next_reply()


def test_buffers_are_written_in_any_pieces(protocol):
    in_content(protocol)
    protocol.content(CONTENT)
    for _ in range(20):
        protocol.issue(Step.RSET, RSET)
    pieces, size = [], 1
    while protocol.unwritten:
        piece = b"".join(protocol.outgoing())[:size]
        protocol.note_written(len(piece))
        pieces.append(piece)
        size = size % 7 + 1
    assert b"".join(pieces) == ON_WIRE + RSET * 20
