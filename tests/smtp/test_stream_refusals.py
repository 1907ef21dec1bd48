"""Refusals in a stream, fed by hand: whose they are, what follows, and never the wrong sender."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from smtp_helpers import (
    GO_AHEAD,
    NO_RECIPIENTS,
    NO_SUCH_USER,
    OK,
    STREAMING,
    Dialogue,
    Peer,
    converse,
    make_envelope,
    statuses,
)

from txmail.smtp.replies import MalformedReply
from txmail.smtp.transactions import ConnectionEnded

BAD, GOOD = make_envelope(1, sender="bad@a.example"), make_envelope(2, sender="good@a.example")
LATER = make_envelope(3, sender="later@a.example")
SPAM = b"554 5.7.1 spam\r\n"


@pytest.fixture
def dialogue():
    return Dialogue(STREAMING)


def held(envelope):
    return envelope.sender, envelope.recipients, envelope.content


# A server that keeps the mail transaction of what it refused


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("exim_like", [True, False])
@pytest.mark.parametrize(
    ("verb", "reply", "status"),
    [
        ("MAIL", "550 5.1.8 bad sender", "failed"),
        ("MAIL", "451 4.3.0 later", "deferred"),
        ("RCPT", "550 5.1.1 no such user", "failed"),
        ("RCPT", "450 4.2.0 later", "deferred"),
        ("BDAT", "554 5.7.1 spam", "failed"),
        ("BDAT", "451 4.3.0 later", "deferred"),
        (".", "550 5.7.1 spam", "failed"),
    ],
)
def test_a_good_message_behind_a_refused_one_never_has_its_sender(
    dialogue, exim_like, window, verb, reply, status
):
    peer = Peer(exim_like=exim_like)
    peer.on(verb, reply)
    sending = dialogue.sending(BAD, GOOD, LATER, strict=False, window=window)
    converse(dialogue, peer)
    assert dialogue.error is None
    assert statuses(sending.ready) == [status, "accepted", "accepted"]
    assert peer.messages == [held(GOOD), held(LATER)]


@pytest.mark.parametrize("staged", [True, False])
def test_nor_behind_one_that_was_staged(dialogue, staged):
    peer = Peer(exim_like=True)
    preflight = dialogue.preflight(BAD, GOOD)
    converse(dialogue, peer)
    peer.on(".", "554 5.7.1 spam")
    sending = dialogue.sending(
        *(BAD, GOOD, LATER),
        strict=False,
        window=1,
        open_transaction=preflight.open_transaction if staged else None,
    )
    converse(dialogue, peer)
    assert statuses(sending.ready) == ["failed", "accepted", "accepted"]
    assert peer.messages == [held(GOOD), held(LATER)]


# The first refusal, and until all is well again


def test_behind_a_refusal_content_waits_for_its_recipient_until_a_message_is_accepted(dialogue):
    sending = dialogue.sending(
        *(BAD, GOOD, LATER, BAD, GOOD, LATER), strict=False, window=2, keep_untaken=True
    )
    assert dialogue.write().count(b"BDAT") == 2
    dialogue.feed(OK, OK, NO_SUCH_USER, NO_RECIPIENTS)
    assert dialogue.write() == b""  # the second of the window is not answered yet
    dialogue.feed(OK, OK, OK, OK)
    opening = b"MAIL FROM:<%s@a.example> SIZE=%d\r\nRCPT TO:<b@example.com>\r\n"
    # The second message was accepted: no mail transaction is open.
    assert dialogue.write() == opening % (b"later", LATER.size)
    dialogue.feed(OK, NO_SUCH_USER)
    assert dialogue.write() == b"RSET\r\n" + opening % (b"bad", BAD.size)
    dialogue.feed(OK, OK, OK)
    assert dialogue.write() == b"DATA\r\n"
    dialogue.feed(GO_AHEAD)
    assert dialogue.write() == BAD.content + b".\r\n"
    dialogue.feed(OK)
    assert dialogue.write().count(b"BDAT") == 2
    dialogue.feed(*[OK] * 7)
    assert dialogue.ended
    assert statuses(sending.ready) == ["failed", "accepted", "failed", *["accepted"] * 3]
    assert [o.position for o in sending.ready] == list(range(6))


def test_a_503_where_no_recipient_was_accepted_is_no_word_on_bdat(dialogue):
    sending = dialogue.sending(BAD, GOOD, LATER, strict=False, window=1)
    dialogue.answer(OK, OK, NO_SUCH_USER, b"503 5.5.1 no recipients\r\n")
    dialogue.answer(OK, OK, OK)
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK)
    assert b"BDAT" in dialogue.answer(OK, OK, OK)
    assert statuses(sending.ready) == ["failed", "accepted", "accepted"]
    assert not sending.chunking_failed


def test_in_strict_sending_only_what_is_in_the_window_is_sent_behind_a_refusal(dialogue):
    sending = dialogue.sending(GOOD, BAD, GOOD, LATER, LATER, strict=True, window=3)
    dialogue.answer(OK, OK, OK, OK, OK, OK, OK, SPAM)
    assert dialogue.answer(OK, OK, OK, OK) == b""
    assert statuses(sending.ready) == ["accepted", "failed", "accepted", "unsent", "unsent"]


# What has no place in a stream


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(
    ("replies", "status"),
    [
        ([b"421 bye\r\n", OK, OK, OK], "in_doubt"),
        ([b"354 go\r\n", OK, OK, OK], "in_doubt"),
        ([OK, b"354 go\r\n", OK, OK], "in_doubt"),
        ([OK, OK, b"300 go\r\n", SPAM], "unsent"),
        ([OK, OK, OK, b"354 go\r\n"], "in_doubt"),
    ],
)
def test_what_has_no_place_in_a_stream_ends_the_connection(dialogue, window, replies, status):
    sending = dialogue.sending(BAD, GOOD, LATER, LATER, strict=False, window=window)
    dialogue.answer(*replies, *[OK] * 4 * (window - 1))
    assert type(dialogue.error) is MalformedReply
    # Nobody knows any more which message a reply is about: those behind it have been sent.
    assert statuses(sending.ready)[0] == status
    assert statuses(sending.ready)[1:window] == ["in_doubt"] * (window - 1)
    assert statuses(sending.ready)[window:] == ["unsent"] * (4 - window)
    assert dialogue.protocol.unwritten is False


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("nonsense", [b"250 Ok\n", b"99 x\r\n", b"250-a\r\n251 b\r\n"])
def test_what_came_before_nonsense_counts(dialogue, nonsense, after):
    sending = dialogue.sending(GOOD, BAD, LATER, LATER, strict=False, window=3)
    dialogue.answer(*[OK] * 4, *[OK] * after, nonsense, *[OK] * 8)
    assert type(dialogue.error) is MalformedReply
    assert statuses(sending.ready) == ["accepted", "in_doubt", "in_doubt", "unsent"]


def test_a_refusal_that_came_before_nonsense_counts(dialogue):
    sending = dialogue.sending(BAD, GOOD, strict=False, window=2)
    dialogue.answer(OK, OK, NO_SUCH_USER, NO_RECIPIENTS, OK, OK, NO_SUCH_USER, b"250\n")
    assert type(dialogue.error) is MalformedReply
    assert statuses(sending.ready) == ["failed", "failed"]


def test_a_reply_that_nothing_asked_for_is_noticed_before_the_next_message(dialogue):
    sending = dialogue.sending(GOOD, LATER, BAD, strict=False, window=1, keep_untaken=True)
    dialogue.answer(OK, OK, OK, OK, OK)
    assert type(dialogue.error) is MalformedReply
    assert dialogue.write() == b""
    assert statuses(sending.ready) == ["in_doubt"]


def test_and_behind_the_last_one_it_leaves_nothing_certain(dialogue):
    sending = dialogue.sending(GOOD, window=1)
    dialogue.answer(OK, OK, OK, OK, b"2")
    assert statuses(sending.ready) == ["in_doubt"]


@pytest.mark.parametrize("octets", range(1, 4))
@pytest.mark.parametrize("reply", [OK, b"354 go\r\n"])
def test_a_message_whose_last_octet_has_not_left_is_never_accepted(dialogue, reply, octets):
    sending = dialogue.sending(GOOD, LATER, strict=False, window=1)
    dialogue.protocol.note_written(len(b"".join(dialogue.protocol.outgoing())) - octets)
    dialogue.feed(OK, OK, OK, reply)
    assert type(dialogue.error) is MalformedReply
    assert statuses(sending.ready) == ["deferred", "unsent"]


def test_nor_is_one_behind_it_in_the_stream(dialogue):
    sending = dialogue.sending(GOOD, LATER, strict=False, window=2)
    waiting = b"".join(dialogue.protocol.outgoing())
    dialogue.protocol.note_written(waiting.rindex(b"RSET"))
    dialogue.feed(*[OK] * 8)
    assert type(dialogue.error) is MalformedReply
    assert statuses(sending.ready) == ["accepted", "unsent"]


def test_a_message_may_be_refused_before_its_last_octet_has_left(dialogue):
    sending = dialogue.sending(BAD, GOOD, strict=False, window=1)
    octets = b"".join(dialogue.protocol.outgoing())
    dialogue.write(len(octets) - 1)
    dialogue.feed(OK, OK, OK, b"552 5.3.4 too big\r\n")
    assert statuses(sending.ready) == ["failed"]
    # BDAT has said how many octets there are: the rest has to follow whatever happens.
    written = dialogue.write()
    assert written[:7] == octets[-1:] + b"RSET\r\n"


# The end of the connection

ENDS = [
    ([], ["in_doubt", "in_doubt", "in_doubt", "unsent"]),
    ([OK, OK], ["in_doubt", "in_doubt", "in_doubt", "unsent"]),
    ([OK, SPAM], ["failed", "in_doubt", "in_doubt", "unsent"]),
    ([OK, OK, NO_SUCH_USER], ["failed", "in_doubt", "in_doubt", "unsent"]),
    ([OK] * 7, ["accepted", "in_doubt", "in_doubt", "in_doubt"]),
    # Behind a 421 the server does nothing any more.
    ([b"421 bye\r\n"], ["unsent", "unsent", "unsent", "unsent"]),
    ([OK, b"421 bye\r\n"], ["unsent", "unsent", "unsent", "unsent"]),
    ([OK, OK, b"421 bye\r\n"], ["deferred", "unsent", "unsent", "unsent"]),
    ([OK, OK, OK, b"421 bye\r\n"], ["deferred", "unsent", "unsent", "unsent"]),
    ([OK] * 4 + [b"421 bye\r\n"], ["accepted", "unsent", "unsent", "unsent"]),
    ([b"421 bye\r\n", SPAM, SPAM, SPAM], ["unsent", "unsent", "unsent", "unsent"]),
    # One octet at a time.
    ([OK] * 4 + [b"4", b"2", b"1 bye\r\n"], ["accepted", "unsent", "unsent", "unsent"]),
]


@pytest.mark.parametrize(("replies", "found"), ENDS)
def test_what_is_known_when_the_connection_has_ended(dialogue, replies, found):
    sending = dialogue.sending(GOOD, LATER, BAD, GOOD, strict=False, window=3)
    dialogue.write()
    for reply in replies:
        dialogue.feed(reply)
        dialogue.write()
    dialogue.end()
    assert statuses(sending.ready) == found
    assert [o.position for o in sending.ready] == [0, 1, 2, 3]


def test_it_can_be_started_over_until_the_first_octet_of_any_content_has_left():
    total = GOOD.size + LATER.size + 200
    seen = set()
    for octets in range(total):
        dialogue = Dialogue(STREAMING)
        sending = dialogue.sending(GOOD, LATER, window=2)
        written = dialogue.write(octets)
        dialogue.end()
        first = "unsent"
        if GOOD.content in written:
            first = "in_doubt"
        elif b"LAST\r\nM" in written:
            first = "deferred"
        assert statuses(sending.ready)[0] == first
        assert sending.begun is (first != "unsent")
        assert statuses(sending.ready)[1] in ("unsent", "deferred", "in_doubt")
        seen.update(statuses(sending.ready))
    assert seen == {"unsent", "deferred", "in_doubt"}


def test_what_was_accepted_is_never_started_over(dialogue):
    """Not even if what comes behind it, in the same breath, says nothing any more."""
    sending = dialogue.sending(GOOD, LATER, window=2)
    dialogue.answer(*[OK] * 5, b"354 go\r\n", OK, SPAM)
    assert type(dialogue.error) is MalformedReply
    assert statuses(sending.ready) == ["accepted", "unsent"]
    assert sending.begun


def test_of_several_recipients_each_is_known_as_far_as_its_reply(dialogue):
    trio = make_envelope(7, ["b@example.com", "c@example.com", "d@example.com"])
    sending = dialogue.sending(trio, strict=False, window=3, passed=(trio,))
    dialogue.write()
    dialogue.feed(OK, OK, NO_SUCH_USER, b"452 4.5.3 many\r\n", OK)
    dialogue.end()
    assert statuses(sending.ready) == ["failed", "unsent", "in_doubt"]


def test_whom_the_server_would_have_taken_later_is_unsent_if_it_ends_now(dialogue):
    pair = make_envelope(7, ["b@example.com", "c@example.com"])
    sending = dialogue.sending(pair, strict=False, window=3, passed=(pair,))
    dialogue.write()
    dialogue.feed(OK, OK, OK, b"452 4.5.3 many\r\n")
    dialogue.end()
    assert statuses(sending.ready) == ["in_doubt", "unsent"]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_421_begins_nothing_new(dialogue, window):
    sending = dialogue.sending(
        GOOD, LATER, BAD, GOOD, strict=False, window=window, keep_untaken=True
    )
    dialogue.answer(*[OK] * 4)
    assert dialogue.write().count(b"BDAT") == 1
    dialogue.feed(*[OK] * (2 if window == 1 else 3), b"4")
    dialogue.feed(b"21 bye\r\n")
    assert dialogue.write() == b""
    dialogue.end()
    assert type(dialogue.error) is ConnectionEnded
    assert statuses(sending.ready)[:2] == ["accepted", "deferred"]
    assert statuses(sending.ready)[2:] == ["unsent"] * (window - 1)


def test_nor_does_one_that_is_seen_before_its_turn(dialogue):
    """The reply in front of it makes room in the window."""
    sending = dialogue.sending(GOOD, LATER, BAD, strict=False, window=2, keep_untaken=True)
    dialogue.answer(*[OK] * 5, b"421 bye\r\n")
    assert dialogue.write() == b""
    dialogue.end()
    assert statuses(sending.ready) == ["accepted", "unsent"]


# Three hundred messages, some of which are refused


@dataclass
class Planned:
    """A message, and what the server does with it."""

    name: str
    kind: str
    recipients: int

    @property
    def envelope(self):
        recipients = [f"{self.name}-{n}@b.example" for n in range(self.recipients)]
        body = f"This is {self.name}.\r\n".encode()
        return make_envelope(int(self.name[1:]), recipients, f"{self.name}@a.example", body)

    def script(self, peer):
        kind, name = self.kind, self.name
        code = {"4": "450 4.2.0", "5": "550 5.7.1"}.get(kind[-1], "")
        if kind.startswith("MAIL"):
            peer.on("MAIL", f"{code} {name}", matching=f"<{name}@")
        elif kind.startswith("RCPT"):
            peer.on("RCPT", f"{code} {name}", matching=f"<{name}-0@")
        elif kind == "452":
            peer.on("RCPT", f"452 4.5.3 {name}", matching=f"<{name}-0@")
        elif kind.startswith("."):
            peer.on(".", f"{code} {name}", matching=f"{name}@a.example")
        peer.on(".", f"250 2.0.0 {name}", matching=f"{name}@a.example", times=None)

    @property
    def statuses(self):
        refused = "deferred" if self.kind[-1] == "4" else "failed"
        if self.kind.startswith("RCPT"):
            return [refused] + ["accepted"] * (self.recipients - 1)
        if self.kind == "452" and self.recipients == 1:
            return ["deferred"]
        good = self.kind in ("good", "452")
        return ["accepted" if good else refused] * self.recipients


KINDS = ("MAIL4", "MAIL5", "RCPT4", "RCPT5", ".4", ".5", "452")


def planned(seed):
    """Three hundred messages; most refusals come in groups, as a bad list has them."""
    chance = random.Random(seed)
    found = []
    while len(found) < 300:
        group = chance.choice((1, 1, 3))
        bad = chance.random() < 0.2
        for _ in range(group):
            kind = chance.choice(KINDS) if bad else "good"
            found.append(Planned(f"m{len(found):03}", kind, chance.choice((1, 1, 2, 3))))
    return found[:300]


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("exim_like", [True, False])
@pytest.mark.parametrize("window", [1, 16, 64])
def test_each_of_three_hundred_outcomes_belongs_to_its_message(dialogue, window, exim_like):
    plan = planned(window)
    peer = Peer(exim_like=exim_like)
    envelopes = []
    for one in plan:
        one.script(peer)
        envelopes.append(one.envelope)
    asked = {id(e) for n, e in enumerate(envelopes) if n % 2}
    passed = [e for e in envelopes if id(e) in asked]
    sending = dialogue.sending(*envelopes, strict=False, window=window, passed=passed)
    in_pieces(dialogue, peer, random.Random(window))
    assert dialogue.error is None
    check_outcomes(plan, envelopes, sending.ready)
    check_held(plan, envelopes, peer.messages)
    assert len([line for line in peer.commands if line.startswith("BDAT")]) > 60
    assert len([line for line in peer.commands if line.startswith("DATA")]) > 20


def in_pieces(dialogue, peer, chance):
    """Let both talk; replies come cut anywhere, and the client's octets go as they like."""
    replies = b""
    while not dialogue.ended:
        replies += peer.hear(dialogue.write(chance.choice((None, None, 7, 1000))))
        size = chance.choice((1, 10, 100, 10_000))
        piece, replies = replies[:size], replies[size:]
        dialogue.feed(piece)
    assert not replies


def check_outcomes(plan, envelopes, outcomes):
    by_position = {}
    for outcome in outcomes:
        by_position.setdefault(outcome.position, []).append(outcome)
    assert sorted(by_position) == list(range(len(plan)))
    for position, one in enumerate(plan):
        envelope, of_it = envelopes[position], by_position[position]
        assert [o.recipient for o in of_it] == list(envelope.recipients)
        assert statuses(of_it) == one.statuses
        assert {o.message_id for o in of_it} == {envelope.message_id}
        assert {o.reply.text.split()[1] for o in of_it} == {one.name}


def check_held(plan, envelopes, messages):
    expected = [
        (envelope.sender, recipient, envelope.content)
        for one, envelope in zip(plan, envelopes, strict=True)
        for recipient, status in zip(envelope.recipients, one.statuses, strict=True)
        if status == "accepted"
    ]
    found = [(sender, r, content) for sender, recipients, content in messages for r in recipients]
    assert sorted(found) == expected
