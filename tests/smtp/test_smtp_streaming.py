"""Messages in a stream, fed by hand: what is on the wire, how much of it, and what never is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from clocks import Clock
from fuzzing import FakeStream, Hostile, Move
from smtp_helpers import (
    CHUNKING,
    GO_AHEAD,
    NO_SUCH_USER,
    OK,
    PIPELINING,
    STREAMING,
    Dialogue,
    Peer,
    converse,
    make_envelope,
    opened,
    statuses,
)

from txmail.envelope import Envelope
from txmail.smtp.options import Options
from txmail.smtp.session import Session
from txmail.smtp.transactions import RECIPIENTS_LIMIT
from txmail.testing import ScriptedServer

#: octets that may be on their way, unless a single message has more
WINDOW_OCTETS = 4 * 1024 * 1024
RSET = b"RSET\r\n"
TOO_MANY = b"452 4.5.3 too many\r\n"
#: with what a server would make of them if dots were looked at
ONE = make_envelope(1, body=b".\r\n..\r\n.x\r\n")
TWO = make_envelope(2, ["c@example.com"], sender="z@example.com", body=b".\r\n")
THREE = make_envelope(3)
PAIR = make_envelope(4, ["b@example.com", "c@example.com"])


def messages(count):
    """Small messages of different senders."""
    return [make_envelope(n, [f"r{n}@b.example"], f"s{n}@a.example") for n in range(count)]


def mail(envelope):
    return b"MAIL FROM:%b SIZE=%d\r\n" % (envelope.reverse_path, envelope.size)


def rcpt(envelope):
    return b"".join(b"RCPT TO:%b\r\n" % path for path in envelope.forward_paths)


def bdat(envelope):
    return b"BDAT %d LAST\r\n" % envelope.size + envelope.content


def streamed(*envelopes, behind=True):
    """`envelopes` as they stand in a stream, `behind` a mail transaction that may be open."""
    octets = b"".join(RSET + mail(e) + rcpt(e) + bdat(e) for e in envelopes)
    return octets if behind else octets.removeprefix(RSET)


@pytest.fixture
def dialogue():
    return Dialogue(STREAMING)


# What it looks like


def test_messages_stand_one_behind_another_in_one_write(dialogue):
    sending = dialogue.sending(ONE, TWO, THREE, window=16)
    assert dialogue.answer(*[OK] * 12) == streamed(ONE, TWO, THREE)
    assert dialogue.ended
    assert dialogue.error is None
    assert [(o.position, o.recipient, o.message_id) for o in sending.ready] == [
        (0, "b@example.com", "<1@example.com>"),
        (1, "c@example.com", "<2@example.com>"),
        (2, "b@example.com", "<3@example.com>"),
    ]
    assert statuses(sending.ready) == ["accepted"] * 3
    assert sending.accepted == 3
    assert not sending.dirty
    assert dialogue.protocol.idle


def test_the_server_gets_the_octets_as_they_are_from_the_right_senders(dialogue):
    peer = Peer()
    dialogue.sending(ONE, TWO, THREE, window=2)
    converse(dialogue, peer)
    assert peer.messages == [(e.sender, e.recipients, e.content) for e in (ONE, TWO, THREE)]


def test_an_outcome_is_known_with_the_last_octet_of_its_last_reply(dialogue):
    sending = dialogue.sending(ONE, TWO, window=16)
    dialogue.write()
    for octet in OK * 3 + b"250 2.0.0 queued as 17\r":
        dialogue.feed(bytes([octet]))
        assert not sending.ready
    dialogue.feed(b"\n")
    (outcome,) = sending.ready
    assert (outcome.position, outcome.status) == (0, "accepted")
    assert outcome.reply.text == "2.0.0 queued as 17"


def test_replies_of_several_lines_are_one_reply_each(dialogue):
    sending = dialogue.sending(ONE, TWO, window=16)
    dialogue.answer(*[b"250-one\r\n250-250 two\r\n250 three\r\n"] * 8)
    assert dialogue.ended
    assert statuses(sending.ready) == ["accepted"] * 2


# How much of it


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_no_more_messages_than_the_window_are_unanswered(dialogue, window, strict):
    envelopes = messages(20)
    dialogue.sending(*envelopes, window=window, strict=strict)
    expected = [streamed(*envelopes[:window])]
    for number in range(len(envelopes)):
        following = envelopes[window + number : window + number + 1]
        expected.append(streamed(*following, behind=window > 1))
        dialogue.answer(*[OK] * (4 if number == 0 or window > 1 else 3))
    assert dialogue.ended
    assert dialogue.writes == expected[:-1]


def test_a_window_of_octets_bounds_it_too(dialogue):
    size = WINDOW_OCTETS // 3
    large = [make_envelope(n, body=b"x" * (size - 100) + b"\r\n") for n in range(5)]
    dialogue.sending(*large, window=16)
    for behind in (3, 4, 5):
        assert dialogue.answer(*[OK] * 4) == streamed(
            *large[0 if behind == 3 else behind - 1 : behind]
        )
    dialogue.answer(*[OK] * 8)
    assert dialogue.ended


def test_a_message_larger_than_that_goes_alone(dialogue):
    large = make_envelope(9, body=b"x" * WINDOW_OCTETS + b"\r\n")
    sending = dialogue.sending(ONE, large, TWO, THREE, window=16)
    assert dialogue.answer(*[OK] * 4) == streamed(ONE)
    assert dialogue.answer(*[OK] * 3) == streamed(large, behind=False)
    assert dialogue.answer(*[OK] * 7) == streamed(TWO, THREE, behind=False)
    assert dialogue.ended
    assert [o.position for o in sending.ready] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("strict", "window", "of_url", "expected"),
    [
        (True, None, None, 1),
        (False, None, None, 16),
        (True, 5, None, 5),
        (False, 5, None, 5),
        (True, None, 3, 3),
        (False, None, 3, 3),
        (True, 64, 3, 3),
        (False, 1, 3, 3),
    ],
)
def test_the_window_is_one_if_strict_and_sixteen_otherwise_and_that_of_the_url_wins(
    strict, window, of_url, expected
):
    clock = Clock(0.0)
    # It takes all, and after EHLO never says anything again.
    peer = Hostile(iter([Move(), Move(), Move(said=b"", end="silence")]), (b"CHUNKING", *OFFERED))
    options = Options("mx.example.com", local_hostname="client.example", window=of_url)
    session = Session(FakeStream(peer, clock, lambda octets: octets), options, clock)
    session.greet(10)
    outcomes = list(session.send(messages(40), strict=strict, window=window))
    assert statuses(outcomes) == ["in_doubt"] * expected + ["unsent"] * (40 - expected)
    assert session.restartable is False


OFFERED = (b"PIPELINING", b"SIZE 100000")


# Where there is no stream


def test_nothing_is_streamed_where_it_is_turned_off():
    with ScriptedServer(extensions=CHUNKING) as server:
        with opened(server, chunking=False) as session:
            assert statuses(session.send([ONE, TWO], window=16)) == ["accepted"] * 2
        assert not [line for line in server.commands if line.startswith("BDAT")]
        with opened(server) as session:
            assert statuses(session.send([ONE, TWO], window=16)) == ["accepted"] * 2
        assert len([line for line in server.commands if line.startswith("BDAT")]) == 2


@pytest.mark.parametrize("extensions", [("CHUNKING",), ("PIPELINING",)])
def test_nothing_is_streamed_unless_chunking_and_pipelining_are_offered(extensions):
    with ScriptedServer(extensions=extensions) as server:
        with opened(server) as session:
            assert statuses(session.send([ONE, TWO], window=16)) == ["accepted"] * 2
        assert not [line for line in server.commands if line.startswith("BDAT")]
        assert [m.content for m in server.messages] == [ONE.content, TWO.content]


def test_nothing_is_streamed_where_pipelining_is_turned_off():
    with ScriptedServer(extensions=CHUNKING) as server:
        with opened(server, pipelining=False) as session:
            assert statuses(session.send([ONE, TWO], window=16)) == ["accepted"] * 2
        assert not [line for line in server.commands if line.startswith("BDAT")]


# What was staged


def asked(dialogue, *envelopes):
    """The `Preflight` of `envelopes`, which passed."""
    preflight = dialogue.preflight(*envelopes)
    converse(dialogue, Peer())
    assert preflight.refusals() == []
    return preflight


@pytest.mark.parametrize("first", [ONE, PAIR])
def test_of_a_staged_message_only_the_content_is_missing(dialogue, first):
    staged = asked(dialogue, first, TWO).open_transaction
    sending = dialogue.sending(first, TWO, open_transaction=staged, passed=(first, TWO), window=2)
    assert dialogue.answer(b"250 2.0.0 first\r\n", *[OK] * 4) == bdat(first) + streamed(TWO)
    assert statuses(sending.ready) == ["accepted"] * (len(first.recipients) + 1)
    assert [o.reply.text for o in sending.ready][:-1] == ["2.0.0 first"] * len(first.recipients)
    assert sending.dirty is False


def test_a_staged_message_that_is_not_the_first_any_more_is_reset(dialogue):
    staged = asked(dialogue, ONE, TWO).open_transaction
    sending = dialogue.sending(TWO, ONE, open_transaction=staged, passed=(ONE, TWO), window=2)
    assert dialogue.answer(*[OK] * 8) == streamed(TWO, ONE)
    assert statuses(sending.ready) == ["accepted"] * 2


def test_a_staged_message_that_is_refused_leaves_the_others_right(dialogue):
    staged = asked(dialogue, ONE, TWO).open_transaction
    sending = dialogue.sending(ONE, TWO, open_transaction=staged, strict=False, window=2)
    dialogue.answer(b"554 5.7.1 spam\r\n", *[OK] * 4)
    assert statuses(sending.ready) == ["failed", "accepted"]
    assert [o.position for o in sending.ready] == [0, 1]


# What needs care


@pytest.mark.parametrize("strict", [True, False])
def test_content_waits_for_several_recipients_that_were_not_asked_about(dialogue, strict):
    sending = dialogue.sending(ONE, PAIR, TWO, strict=strict, window=16)
    assert dialogue.answer(*[OK] * 4) == streamed(ONE)
    assert dialogue.answer(OK, OK, OK) == mail(PAIR) + rcpt(PAIR)
    assert dialogue.answer(GO_AHEAD) == b"DATA\r\n"
    assert dialogue.answer(OK) == PAIR.content + b".\r\n"
    assert dialogue.answer(*[OK] * 3) == streamed(TWO, behind=False)
    assert statuses(sending.ready) == ["accepted"] * 4
    assert [o.position for o in sending.ready] == [0, 1, 1, 2]


def test_in_strict_sending_one_of_several_refused_means_no_content(dialogue):
    peer = Peer()
    peer.on("RCPT", "550 5.1.1 no such user", matching="<c@")
    sending = dialogue.sending(ONE, PAIR, TWO, strict=True, window=16)
    converse(dialogue, peer)
    assert statuses(sending.ready) == ["accepted", "unsent", "failed", "unsent"]
    assert [content for _, _, content in peer.messages] == [ONE.content]


def test_otherwise_the_others_get_it(dialogue):
    peer = Peer()
    peer.on("RCPT", "550 5.1.1 no such user", matching="<c@")
    sending = dialogue.sending(ONE, PAIR, TWO, strict=False, window=16)
    converse(dialogue, peer)
    assert statuses(sending.ready) == ["accepted", "accepted", "failed", "accepted"]
    assert [recipients for _, recipients, _ in peer.messages] == [
        *(("b@example.com",), ("b@example.com",), ("c@example.com",))
    ]


def test_several_that_passed_the_preflight_are_streamed(dialogue):
    sending = dialogue.sending(ONE, PAIR, TWO, passed=(PAIR,), window=16)
    assert dialogue.answer(*[OK] * 13) == streamed(ONE, PAIR, TWO)
    assert statuses(sending.ready) == ["accepted"] * 4
    assert [o.preflighted for o in sending.ready] == [False, True, True, False]


def test_one_refused_after_its_preflight_is_no_success(dialogue):
    sending = dialogue.sending(PAIR, TWO, strict=False, passed=(PAIR,), window=16)
    dialogue.answer(OK, OK, NO_SUCH_USER, OK, OK, *[OK] * 4)
    assert [(o.recipient, str(o.status)) for o in sending.ready] == [
        ("b@example.com", "failed"),
        ("c@example.com", "accepted"),
        ("c@example.com", "accepted"),
    ]


def test_more_than_a_hundred_recipients_are_not_streamed(dialogue):
    many = make_envelope(5, [f"r{n}@b.example" for n in range(RECIPIENTS_LIMIT + 1)])
    hundred = make_envelope(6, [f"r{n}@b.example" for n in range(RECIPIENTS_LIMIT)])
    peer = Peer()
    sending = dialogue.sending(ONE, many, hundred, passed=(many, hundred), window=16)
    converse(dialogue, peer)
    assert set(statuses(sending.ready)) == {"accepted"}
    assert [o.recipient for o in sending.ready if o.position == 1] == list(many.recipients)
    assert [recipients for _, recipients, _ in peer.messages] == [
        *(ONE.recipients, many.recipients[:RECIPIENTS_LIMIT]),
        *(many.recipients[RECIPIENTS_LIMIT:], hundred.recipients),
    ]
    chunks = [line for line in peer.commands if line.startswith("BDAT")]
    assert chunks == [f"BDAT {ONE.size} LAST", f"BDAT {hundred.size} LAST"]


@pytest.mark.parametrize("strict", [True, False])
def test_whom_the_server_takes_no_more_at_once_goes_next(dialogue, strict):
    sending = dialogue.sending(PAIR, TWO, THREE, strict=strict, passed=(PAIR,), window=2)
    assert dialogue.answer(OK, OK, OK, TOO_MANY, OK, *[OK] * 4) == streamed(PAIR, TWO)
    again = mail(PAIR) + b"RCPT TO:<c@example.com>\r\nDATA\r\n"
    assert dialogue.answer(OK, OK, GO_AHEAD) == again
    assert dialogue.answer(OK) == PAIR.content + b".\r\n"
    assert dialogue.answer(*[OK] * 3) == streamed(THREE, behind=False)
    assert statuses(sending.ready) == ["accepted"] * 4
    assert sorted((o.position, o.recipient) for o in sending.ready) == [
        *((0, "b@example.com"), (0, "c@example.com"), (1, "c@example.com"), (2, "b@example.com"))
    ]


def test_one_that_is_too_many_alone_is_deferred(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False, window=2)
    dialogue.answer(OK, OK, TOO_MANY, b"554 5.5.1 no recipients\r\n", *[OK] * 4)
    assert dialogue.ended
    assert statuses(sending.ready) == ["deferred", "accepted"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("extensions", "envelope"),
    [
        (replace(STREAMING, smtputf8=False), Envelope("a@b.example", ["ü@d.example"], ONE.content)),
        (replace(STREAMING, size_limit=99), make_envelope(7, body=b"x" * 99 + b"\r\n")),
        (replace(STREAMING, eightbitmime=False), make_envelope(8, body="ü\r\n".encode())),
        (STREAMING, make_envelope(8, body=b"bare\nLF\r\n")),
    ],
)
def test_what_cannot_be_sent_is_left_out_of_the_stream(extensions, envelope, strict):
    dialogue = Dialogue(extensions)
    peer = Peer()
    after = messages(3)
    sending = dialogue.sending(ONE, TWO, envelope, *after, strict=strict, window=16)
    assert dialogue.answer(*[OK] * 8) == streamed(ONE, TWO)
    converse(dialogue, peer)
    rest = ["unsent" if strict else "accepted"] * 3
    assert statuses(sending.ready) == ["accepted"] * 2 + ["failed"] + rest
    assert [o.position for o in sending.ready] == list(range(6))
    assert [m[2] for m in peer.messages] == ([] if strict else [e.content for e in after])


# What the iterator keeps


@pytest.mark.parametrize("leave", [True, False])
def test_what_was_not_taken_when_sending_ended_stays_in_the_iterator(dialogue, leave):
    envelopes = iter(messages(10))
    sending = dialogue.sending(source=envelopes, window=3, keep_untaken=leave)
    dialogue.answer(OK, OK, OK, b"554 5.7.1 no\r\n", *[OK] * 8)
    assert dialogue.ended
    left = list(envelopes)
    assert [e.sender for e in left] == [f"s{n}@a.example" for n in range(3, 10) if leave]
    rest = [] if leave else ["unsent"] * 7
    assert statuses(sending.ready) == ["failed", "accepted", "accepted", *rest]


def test_one_that_was_taken_and_had_to_wait_is_reported(dialogue):
    """What was not streamed because it needs care is not lost when the connection is."""
    envelopes = iter([ONE, PAIR, TWO])
    sending = dialogue.sending(source=envelopes, window=3, keep_untaken=True)
    dialogue.write()
    dialogue.end()
    assert [(o.position, str(o.status)) for o in sending.ready] == [
        *((0, "in_doubt"), (1, "unsent"), (1, "unsent"))
    ]
    assert list(envelopes) == [TWO]


def test_a_dialogue_without_chunking_is_no_stream():
    dialogue = Dialogue(PIPELINING)
    dialogue.sending(ONE, TWO)
    assert dialogue.write() == mail(ONE) + rcpt(ONE) + b"DATA\r\n"
