"""The sending conversation, fed by hand: what shares a write, and what became of each recipient."""

from __future__ import annotations

import pytest
from smtp_helpers import (
    GO_AHEAD,
    LOCKSTEP,
    NO_RECIPIENTS,
    NO_SUCH_USER,
    OK,
    PIPELINING,
    Dialogue,
    make_envelope,
    opened,
    statuses,
)

from txmail.envelope import Envelope
from txmail.smtp.extensions import Extensions
from txmail.smtp.transactions import RECIPIENTS_LIMIT, ConnectionEnded, MailTransaction
from txmail.testing import ScriptedServer

ONE, TWO, THREE = (make_envelope(number) for number in (1, 2, 3))
PAIR = make_envelope(4, ["b@example.com", "c@example.com"])
TRIO = make_envelope(5, ["b@example.com", "c@example.com", "d@example.com"])
UTF8 = Envelope("a@b.example", ["\u00fc@d.example"], ONE.content)


def mail(envelope):
    return b"MAIL FROM:<%s> SIZE=%d\r\n" % (envelope.sender.encode(), envelope.size)


def rcpt(*recipients):
    return b"".join(b"RCPT TO:<%s>\r\n" % recipient.encode() for recipient in recipients)


def opening(envelope):
    """MAIL, RCPTs and DATA of `envelope`."""
    return mail(envelope) + rcpt(*envelope.recipients) + b"DATA\r\n"


def content(envelope):
    return envelope.content + b".\r\n"


@pytest.fixture
def lockstep():
    return Dialogue(LOCKSTEP)


# What shares a write


def test_content_and_dot_share_a_write_with_the_next_mail_rcpt_and_data(dialogue):
    sending = dialogue.sending(ONE, TWO, THREE)
    for _ in range(3):
        dialogue.answer(*[OK] * (len(dialogue.writes) > 0), OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert dialogue.ended
    assert dialogue.error is None
    assert dialogue.writes == [
        opening(ONE),
        content(ONE) + opening(TWO),
        content(TWO) + opening(THREE),
        content(THREE),
    ]
    assert statuses(sending.ready) == ["accepted"] * 3
    assert not sending.dirty
    assert dialogue.protocol.idle


def test_an_outcome_is_known_with_the_reply_to_its_final_dot(dialogue):
    sending = dialogue.sending(ONE, TWO)
    dialogue.answer(OK, OK, GO_AHEAD)
    assert not sending.ready
    dialogue.answer(b"250 2.0.0 queued as 17\r\n")
    (outcome,) = sending.ready
    assert (outcome.recipient, outcome.message_id) == ("b@example.com", "<1@example.com>")
    assert outcome.reply.text == "2.0.0 queued as 17"


def test_without_pipelining_commands_go_one_at_a_time(lockstep):
    sending = lockstep.sending(PAIR, ONE)
    answers = [OK, OK, OK, GO_AHEAD, OK, OK, OK, GO_AHEAD, OK]
    for reply in answers:
        lockstep.answer(reply)
    assert lockstep.writes == [
        b"MAIL FROM:<a@example.com>\r\n",
        rcpt("b@example.com"),
        rcpt("c@example.com"),
        b"DATA\r\n",
        content(PAIR),
        b"MAIL FROM:<a@example.com>\r\n",
        rcpt("b@example.com"),
        b"DATA\r\n",
        content(ONE),
    ]
    assert lockstep.ended
    assert statuses(sending.ready) == ["accepted"] * 3


def test_without_pipelining_a_refused_sender_is_not_asked_about_recipients(lockstep):
    sending = lockstep.sending(PAIR)
    lockstep.answer(b"550 5.1.8 bad sender\r\n")
    assert lockstep.ended
    assert len(lockstep.writes) == 1
    assert statuses(sending.ready) == ["failed", "failed"]


def test_data_is_not_pipelined_behind_two_recipients_that_were_not_asked_about(dialogue):
    dialogue.sending(PAIR)
    dialogue.answer(OK, OK, OK)
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK)
    assert dialogue.writes == [
        mail(PAIR) + rcpt(*PAIR.recipients),
        b"DATA\r\n",
        content(PAIR),
    ]


def test_data_is_pipelined_behind_two_recipients_that_passed_the_preflight_here(dialogue):
    dialogue.sending(PAIR, passed=[PAIR])
    dialogue.answer(OK, OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert dialogue.writes == [opening(PAIR), content(PAIR)]


def test_a_following_message_with_two_unasked_recipients_shares_the_write_without_data(dialogue):
    sending = dialogue.sending(ONE, PAIR)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK, OK, OK, OK)
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK)
    assert dialogue.writes == [
        opening(ONE),
        content(ONE) + mail(PAIR) + rcpt(*PAIR.recipients),
        b"DATA\r\n",
        content(PAIR),
    ]
    assert statuses(sending.ready) == ["accepted"] * 3


def test_there_is_never_more_than_one_final_dot_unanswered(dialogue):
    dialogue.sending(ONE, TWO, THREE)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK, OK, GO_AHEAD)  # the final reply, then MAIL and RCPT: no 354 yet
    assert dialogue.write() == b""


def test_the_content_is_stuffed(dialogue):
    envelope = make_envelope(1, body=b".\r\n..x\r\n")
    dialogue.sending(envelope)
    dialogue.answer(OK, OK, GO_AHEAD)
    assert dialogue.write().endswith(b"\r\n\r\n..\r\n...x\r\n.\r\n")


def test_nothing_to_send_says_nothing(dialogue):
    sending = dialogue.sending()
    assert dialogue.ended
    assert dialogue.write() == b""
    assert not sending.ready
    assert not sending.dirty


# Refused recipients


def test_strictly_one_refused_recipient_means_no_data_and_a_reset_next(dialogue):
    sending = dialogue.sending(TRIO, ONE)
    dialogue.answer(OK, OK, NO_SUCH_USER, OK)
    assert dialogue.ended
    assert dialogue.error is None
    assert dialogue.write() == b""
    assert statuses(sending.ready) == ["unsent", "failed", "unsent", "unsent"]
    assert sending.dirty
    assert not sending.begun


def test_otherwise_the_accepted_recipients_get_the_message(dialogue):
    sending = dialogue.sending(TRIO, strict=False)
    dialogue.answer(OK, OK, NO_SUCH_USER, b"450 4.2.0 greylisted\r\n")
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted", "failed", "deferred"]


def test_if_all_recipients_are_refused_there_is_no_data_and_the_next_mail_begins_with_rset(
    dialogue,
):
    sending = dialogue.sending(PAIR, ONE, strict=False)
    dialogue.answer(OK, NO_SUCH_USER, NO_SUCH_USER)
    dialogue.answer(OK, OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert dialogue.writes[1] == b"RSET\r\n" + opening(ONE)
    assert statuses(sending.ready) == ["failed", "failed", "accepted"]


def test_a_refused_recipient_and_its_refused_data_are_followed_by_rset(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, NO_SUCH_USER, NO_RECIPIENTS)
    assert dialogue.answer(OK, OK, OK, GO_AHEAD) == b"RSET\r\n" + opening(TWO)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["failed", "accepted"]
    assert sending.ready[0].reply.code == 550


@pytest.mark.parametrize("strict", [True, False])
def test_a_354_for_a_message_without_recipients_is_hung_up_on(dialogue, strict):
    sending = dialogue.sending(ONE, TWO, strict=strict)
    dialogue.answer(OK, NO_SUCH_USER, GO_AHEAD)
    assert isinstance(dialogue.error, ConnectionEnded)
    assert dialogue.write() == b""
    assert statuses(sending.ready) == ["failed", "unsent"]
    assert not dialogue.protocol.idle


def test_strictly_a_354_behind_a_recipient_refused_after_its_preflight_is_hung_up_on(dialogue):
    sending = dialogue.sending(PAIR, passed=[PAIR])
    dialogue.answer(OK, OK, NO_SUCH_USER, GO_AHEAD)
    assert isinstance(dialogue.error, ConnectionEnded)
    assert dialogue.write() == b""
    assert statuses(sending.ready) == ["unsent", "failed"]


def test_a_refused_data_is_about_the_message(dialogue):
    sending = dialogue.sending(PAIR, strict=False)
    dialogue.answer(OK, OK, NO_SUCH_USER)
    dialogue.answer(b"451 4.3.0 later\r\n")
    assert dialogue.ended
    assert statuses(sending.ready) == ["deferred", "failed"]
    assert sending.dirty


def test_a_refused_sender_fails_all_recipients_with_its_reply(dialogue):
    sending = dialogue.sending(PAIR, strict=False)
    dialogue.answer(b"550 5.1.8 bad sender\r\n", NO_RECIPIENTS, NO_RECIPIENTS)
    assert dialogue.ended
    assert statuses(sending.ready) == ["failed", "failed"]
    assert {o.reply.text for o in sending.ready} == {"5.1.8 bad sender"}


def test_strictly_a_refused_message_ends_sending_with_the_next_mail_unanswered(dialogue):
    sending = dialogue.sending(ONE, TWO, THREE)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(b"554 5.7.1 spam\r\n")
    assert dialogue.ended
    assert dialogue.write() == b""
    assert statuses(sending.ready) == ["failed", "unsent", "unsent"]
    assert not dialogue.protocol.idle  # so that the connection is closed


# After a refused message


def test_a_mail_accepted_behind_a_refused_message_goes_on(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(b"554 spam\r\n", OK, OK, GO_AHEAD)
    assert dialogue.answer(OK) == content(TWO)
    assert statuses(sending.ready) == ["failed", "accepted"]
    assert not sending.dirty


def test_a_mail_refused_behind_a_refused_message_is_asked_again_after_rset(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    nested = b"503 5.5.1 sender already given\r\n"
    dialogue.answer(b"554 spam\r\n", nested, OK, NO_RECIPIENTS)
    assert dialogue.answer(OK, OK, OK) == b"RSET\r\n" + mail(TWO) + rcpt("b@example.com")
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["failed", "accepted"]


def test_a_354_behind_a_mail_refused_behind_a_refused_message_is_hung_up_on(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    nested = b"503 5.5.1 sender already given\r\n"
    dialogue.answer(b"554 spam\r\n", nested, OK, GO_AHEAD)
    assert isinstance(dialogue.error, ConnectionEnded)
    assert dialogue.write() == b""
    assert statuses(sending.ready) == ["failed", "unsent"]


def test_after_the_last_refused_message_the_connection_is_dirty(dialogue):
    sending = dialogue.sending(ONE, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(b"554 spam\r\n")
    assert dialogue.error is None
    assert sending.dirty


def test_a_refused_rset_ends_the_connection(dialogue):
    sending = dialogue.sending(ONE, dirty=True)
    dialogue.answer(b"500 what\r\n", OK, OK, GO_AHEAD)
    assert isinstance(dialogue.error, ConnectionEnded)
    assert statuses(sending.ready) == ["unsent"]


# Many recipients


def many(count):
    return make_envelope(9, [f"r{number}@example.com" for number in range(count)])


def test_more_recipients_than_a_server_has_to_take_go_in_several_transactions(dialogue):
    envelope = many(RECIPIENTS_LIMIT * 2 + 1)
    sending = dialogue.sending(envelope, passed=[envelope])
    first = dialogue.answer(*[OK] * (RECIPIENTS_LIMIT + 1), GO_AHEAD)
    second = dialogue.answer(*[OK] * (RECIPIENTS_LIMIT + 2), GO_AHEAD)
    third = dialogue.answer(*[OK] * 3, GO_AHEAD)
    last = dialogue.answer(OK)
    assert [octets.count(b"RCPT TO:") for octets in (first, second, third, last)] == [
        *(RECIPIENTS_LIMIT, RECIPIENTS_LIMIT, 1, 0)
    ]
    assert [octets.count(envelope.content) for octets in (first, second, third, last)] == [
        *(0, 1, 1, 1)
    ]
    assert [o.recipient for o in sending.ready] == list(envelope.recipients)
    assert statuses(sending.ready) == ["accepted"] * len(envelope.recipients)


def test_too_many_recipients_at_once_go_on_in_a_transaction_of_their_own(dialogue):
    sending = dialogue.sending(TRIO)
    dialogue.answer(OK, OK, b"452 4.5.3 too many\r\n", b"452 4.5.3 too many\r\n")
    assert dialogue.answer(GO_AHEAD) == b"DATA\r\n"
    assert dialogue.answer(OK, OK, OK, b"452 4.5.3 too many\r\n") == (
        content(TRIO) + mail(TRIO) + rcpt("c@example.com", "d@example.com")
    )
    dialogue.answer(GO_AHEAD)
    assert dialogue.answer(OK, OK, OK, GO_AHEAD) == (
        content(TRIO) + mail(TRIO) + rcpt("d@example.com") + b"DATA\r\n"
    )
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"] * 3
    assert [o.recipient for o in sending.ready] == list(TRIO.recipients)


def test_a_bare_452_splits_too(dialogue):
    sending = dialogue.sending(PAIR)
    dialogue.answer(OK, OK, b"452 too many recipients\r\n")
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK, OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"] * 2


@pytest.mark.parametrize("reply", [b"452 4.5.3 too many\r\n", b"452\r\n"])
def test_too_many_of_one_is_a_deferral(dialogue, reply):
    sending = dialogue.sending(ONE)
    dialogue.answer(OK, reply, NO_RECIPIENTS)
    assert dialogue.ended
    assert statuses(sending.ready) == ["deferred"]


def test_a_full_mailbox_is_no_matter_of_number(dialogue):
    sending = dialogue.sending(PAIR, strict=False)
    dialogue.answer(OK, OK, b"452 4.2.2 mailbox full\r\n")
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK)
    assert dialogue.ended
    assert statuses(sending.ready) == ["accepted", "deferred"]


def test_the_rest_of_a_split_message_keeps_its_own_outcome(dialogue):
    sending = dialogue.sending(PAIR, strict=False)
    dialogue.answer(OK, OK, b"452 4.5.3 too many\r\n")
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK, OK, NO_SUCH_USER, NO_RECIPIENTS)
    assert statuses(sending.ready) == ["accepted", "failed"]


# What the preflight left open


def staged(dialogue, envelope):
    """As the preflight leaves it."""
    transaction = MailTransaction(envelope, range(len(envelope.recipients)), dialogue.extensions)
    transaction.issue(dialogue.protocol)
    dialogue.write()
    dialogue.protocol.receive(OK * len(transaction.commands))
    for _ in transaction.answers(dialogue.protocol, pipelining=True):
        raise AssertionError("all answers are there")
    return transaction


def test_a_staged_envelope_that_is_first_lacks_only_data(dialogue):
    transaction = staged(dialogue, PAIR)
    sending = dialogue.sending(PAIR, ONE, passed=[PAIR, ONE], open_transaction=transaction)
    assert dialogue.answer(GO_AHEAD) == b"DATA\r\n"
    assert dialogue.answer(OK, OK, OK, GO_AHEAD) == content(PAIR) + opening(ONE)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"] * 3


def test_a_staged_envelope_that_is_not_first_any_more_is_reset(dialogue):
    transaction = staged(dialogue, PAIR)
    sending = dialogue.sending(ONE, PAIR, passed=[PAIR, ONE], open_transaction=transaction)
    assert dialogue.answer(OK, OK, OK, GO_AHEAD) == b"RSET\r\n" + opening(ONE)
    assert dialogue.answer(OK, OK, OK, OK, GO_AHEAD) == content(ONE) + opening(PAIR)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"] * 3


def test_a_staged_envelope_that_nobody_sends_leaves_the_connection_dirty(dialogue):
    transaction = staged(dialogue, PAIR)
    sending = dialogue.sending(open_transaction=transaction)
    assert dialogue.ended
    assert sending.dirty


def test_a_dirty_connection_is_reset_in_the_first_write(dialogue):
    sending = dialogue.sending(ONE, dirty=True)
    assert dialogue.answer(OK, OK, OK, GO_AHEAD) == b"RSET\r\n" + opening(ONE)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"]
    assert not sending.dirty


# Known here to be impossible


@pytest.mark.parametrize(
    ("envelope", "extensions", "reason"),
    [
        (ONE, Extensions(size=True, size_limit=10), "5.3.4"),
        (UTF8, Extensions(esmtp=True), "5.6.7"),
        (make_envelope(body=b"\xc3\xbc\r\n"), LOCKSTEP, "5.6.3"),
        (make_envelope(body=b"bare\n.\n"), PIPELINING, "line ends"),
    ],
)
def test_what_the_server_can_never_take_is_not_sent(envelope, extensions, reason):
    dialogue = Dialogue(extensions)
    sending = dialogue.sending(envelope, ONE)
    assert dialogue.ended
    assert dialogue.write() == b""
    first, second = sending.ready
    assert (first.status, first.action) == ("failed", "fail")
    assert reason in first.reason
    assert second.status == "unsent"


def test_a_message_as_large_as_the_limit_is_sent():
    dialogue = Dialogue(Extensions(size=True, size_limit=ONE.size))
    dialogue.sending(ONE)
    assert dialogue.write() == mail(ONE)


# The connection ends


@pytest.mark.parametrize("strict", [True, False])
def test_a_connection_lost_before_the_content_leaves_everything_unsent(dialogue, strict):
    sending = dialogue.sending(ONE, PAIR, strict=strict)
    dialogue.answer(OK, OK)
    dialogue.end()
    assert statuses(sending.ready) == ["unsent"] * 3
    assert {o.action for o in sending.ready} == {"defer_route"}
    assert not sending.begun


@pytest.mark.parametrize("octets", range(len(content(ONE)) + len(opening(TWO)) + 1))
def test_a_message_is_in_doubt_from_the_last_octet_of_its_dot_on(octets):
    dialogue = Dialogue()
    sending = dialogue.sending(ONE, TWO)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.write(octets)
    dialogue.end()
    first = "in_doubt" if octets >= len(content(ONE)) else "deferred"
    assert statuses(sending.ready) == [first, "unsent"]
    assert sending.begun


@pytest.mark.parametrize(
    "nonsense", [b"250 Ok\n", b"2_5 Ok\r\n", b"354 more\r\n", b"250-a\r\n251 b\r\n", b"\0\r\n"]
)
def test_nonsense_after_the_final_dot_is_a_doubt(dialogue, nonsense):
    sending = dialogue.sending(ONE, TWO)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(nonsense)
    assert statuses(sending.ready) == ["in_doubt", "unsent"]


def test_half_a_reply_to_the_final_dot_is_none(dialogue):
    sending = dialogue.sending(ONE)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(b"250 2.0.0 Ok: queued\r")
    dialogue.end()
    assert statuses(sending.ready) == ["in_doubt"]


def test_an_early_refusal_is_the_verdict_and_the_dot_never_leaves(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.write(10)
    dialogue.feed(b"552 5.3.4 too big\r\n")
    assert isinstance(dialogue.error, ConnectionEnded)
    assert statuses(sending.ready) == ["failed", "unsent"]


def test_a_refusal_with_only_later_commands_unwritten_keeps_the_connection(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.write(len(content(ONE)) + 3)
    dialogue.feed(b"554 spam\r\n")
    assert dialogue.error is None
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["failed", "accepted"]


def test_an_early_acceptance_is_none(dialogue):
    sending = dialogue.sending(ONE)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.write(10)
    dialogue.feed(OK)
    assert statuses(sending.ready) == ["deferred"]


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([b"421 bye\r\n"], ["unsent", "unsent", "unsent"]),
        ([OK, b"421 bye\r\n"], ["deferred", "deferred", "unsent"]),
        ([OK, NO_SUCH_USER, b"421 bye\r\n"], ["deferred", "deferred", "unsent"]),
    ],
)
def test_a_421_defers_the_message_whose_recipients_it_answers_and_no_other(
    dialogue, replies, expected
):
    sending = dialogue.sending(PAIR, ONE, strict=False)
    dialogue.answer(*replies)
    assert isinstance(dialogue.error, ConnectionEnded)
    assert dialogue.error.lost
    assert statuses(sending.ready) == expected


def test_a_421_to_the_final_dot_defers_and_ends_the_connection(dialogue):
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(b"421 4.3.0 shutting down\r\n")
    assert isinstance(dialogue.error, ConnectionEnded)
    assert statuses(sending.ready) == ["deferred", "unsent"]


def test_a_421_to_data_alone_defers(lockstep):
    sending = lockstep.sending(ONE)
    for reply in (OK, OK, b"421 bye\r\n"):
        lockstep.answer(reply)
    assert isinstance(lockstep.error, ConnectionEnded)
    assert statuses(sending.ready) == ["deferred"]


def test_a_split_message_cut_in_its_second_part_keeps_what_was_accepted(dialogue):
    sending = dialogue.sending(TRIO, strict=False)
    dialogue.answer(OK, OK, b"452 4.5.3 too many\r\n", NO_SUCH_USER)
    dialogue.answer(GO_AHEAD)
    dialogue.answer(OK, OK, OK, GO_AHEAD)
    dialogue.write()
    dialogue.end()
    assert statuses(sending.ready) == ["accepted", "in_doubt", "failed"]


def test_envelopes_are_taken_as_they_are_needed(dialogue):
    taken = []

    def produce():
        for envelope in (ONE, TWO, THREE):
            taken.append(envelope)
            yield envelope

    dialogue.sending(source=produce())
    assert taken == [ONE]
    dialogue.answer(OK, OK, GO_AHEAD)
    assert taken == [ONE, TWO]


# A server like Exim, which keeps the transaction of a refused message


@pytest.mark.parametrize("query", [{}, {"pipelining": False}])
@pytest.mark.parametrize("strict", [True, False])
def test_no_message_goes_out_under_the_sender_of_a_refused_one(query, strict):
    envelopes = [
        make_envelope(
            number, sender=f"s{number}@example.com", recipients=[f"r{number}@example.com"]
        )
        for number in range(1, 6)
    ]
    with ScriptedServer(exim_like=True) as server:
        for number in (2, 3, 5):
            server.on(".", "550 5.7.1 spam", matching=f"s{number}@")
        results = []
        for _ in range(2):
            with opened(server, **query) as session:
                results += session.send(envelopes, strict=strict)
        for received in server.messages:
            number = received.sender[1]
            assert received.recipients == (f"r{number}@example.com",)
            assert received.content == envelopes[int(number) - 1].content
        accepted = [o.recipient for o in results if o.status == "accepted"]
        assert sorted(accepted) == sorted(r for m in server.messages for r in m.recipients)
        assert "in_doubt" not in statuses(results)


def test_a_354_for_a_message_that_must_not_go_out_leaves_no_message():
    with ScriptedServer() as server:
        server.refuse("c@example.com")
        server.on("DATA", b"354 go\r\n")
        with opened(server) as session:
            session.preflight([])
            outcomes = list(session.send([make_envelope(1, ["c@example.com"])], strict=True))
            assert session.closed
        server.wait_closed()
        assert statuses(outcomes) == ["failed"]
        assert server.messages == []
        assert not server.connections[0].ended_by_quit
