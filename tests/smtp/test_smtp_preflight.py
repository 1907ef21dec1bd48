"""The preflight, fed by hand and over a session: who is asked, in how many writes, how often."""

from __future__ import annotations

import pytest
from smtp_helpers import (
    LOCKSTEP,
    NO_RECIPIENTS,
    NO_SUCH_USER,
    OK,
    Dialogue,
    lines,
    make_envelope,
    opened,
    statuses,
    transport_to,
)

from txmail.budget import Budget
from txmail.delivery.direct import DirectDelivery
from txmail.envelope import Envelope
from txmail.exceptions import TransportError
from txmail.smtp.extensions import Extensions
from txmail.smtp.preflight import PROBES_LIMIT
from txmail.smtp.transactions import RECIPIENTS_LIMIT, ConnectionEnded
from txmail.submission import Submission
from txmail.testing import CLOSE, ScriptedServer, then

ONE = make_envelope(1, ["b@example.com"])
TWO = make_envelope(2, ["c@example.com", "d@example.com"], body=b"x" * 50 + b"\r\n")
THREE = make_envelope(3, ["d@example.com", "e@example.com"])
UTF8 = Envelope("a@b.example", ["\u00fc@d.example"], ONE.content)


def of_sender(number):
    """An envelope that shares its MAIL with no other."""
    return make_envelope(number, [f"r{number}@example.com"], sender=f"s{number}@example.com")


def verbs(octets):
    return [line.split()[0] for line in lines(octets)]


# One write


def test_one_envelope_is_only_staged(dialogue):
    preflight = dialogue.preflight(TWO)
    assert lines(dialogue.answer(OK, OK, OK)) == [
        f"MAIL FROM:<a@example.com> SIZE={TWO.size}",
        "RCPT TO:<c@example.com>",
        "RCPT TO:<d@example.com>",
    ]
    assert dialogue.ended
    assert preflight.refusals() == []
    assert preflight.passed(TWO)
    assert preflight.open_transaction.envelope is TWO
    assert preflight.probes == 0


def test_envelopes_of_one_sender_share_a_mail_with_the_largest_size_and_one_rset(dialogue):
    preflight = dialogue.preflight(ONE, TWO, THREE)
    assert lines(dialogue.answer(*[OK] * 7)) == [
        f"MAIL FROM:<a@example.com> SIZE={TWO.size}",
        "RCPT TO:<c@example.com>",
        "RCPT TO:<d@example.com>",
        "RCPT TO:<e@example.com>",
        "RSET",
        f"MAIL FROM:<a@example.com> SIZE={ONE.size}",
        "RCPT TO:<b@example.com>",
    ]
    assert dialogue.ended
    assert preflight.open_transaction.envelope is ONE
    assert preflight.probes == 1
    assert all(preflight.passed(e) for e in (ONE, TWO, THREE))


def test_the_same_recipients_are_asked_about_once(dialogue):
    dialogue.preflight(*[make_envelope(n, ["b@example.com"]) for n in range(50)])
    assert verbs(dialogue.write()) == ["MAIL", "RCPT", "RSET", "MAIL", "RCPT"]


@pytest.mark.parametrize(
    "other",
    [
        make_envelope(2, sender="other@example.com"),
        make_envelope(2, sender=""),
        make_envelope(2, body=b"\xc3\xbc\r\n"),
        Envelope("a@example.com", ["\u00fc@example.com"], ONE.content),
    ],
)
def test_another_sender_body_or_smtputf8_is_a_group_of_its_own(dialogue, other):
    dialogue.preflight(make_envelope(0), ONE, other)
    written = dialogue.write()
    assert verbs(written) == ["MAIL", "RCPT", "RSET"] * 2 + ["MAIL", "RCPT"]


def test_without_staging_everything_is_asked_and_reset(dialogue):
    preflight = dialogue.preflight(ONE, keep_open=False)
    assert verbs(dialogue.answer(OK, OK, OK)) == ["MAIL", "RCPT", "RSET"]
    assert preflight.open_transaction is None
    assert not preflight.dirty


def test_a_dirty_connection_is_reset_in_the_same_write(dialogue):
    preflight = dialogue.preflight(ONE, TWO, dirty=True)
    assert verbs(dialogue.answer(*[OK] * 7)) == [
        *("RSET", "MAIL", "RCPT", "RCPT", "RSET", "MAIL", "RCPT")
    ]
    assert not preflight.dirty


def test_a_group_has_a_hundred_recipients_at_most(dialogue):
    envelopes = [make_envelope(n, [f"r{n}@example.com"]) for n in range(RECIPIENTS_LIMIT + 2)]
    dialogue.preflight(*envelopes)
    written = verbs(dialogue.write())
    assert written == ["MAIL", *["RCPT"] * 100, "RSET", "MAIL", "RCPT", "RSET", "MAIL", "RCPT"]


def test_a_staged_envelope_of_many_recipients_has_the_rest_asked_beside_it(dialogue):
    envelope = make_envelope(1, [f"r{n}@example.com" for n in range(RECIPIENTS_LIMIT + 5)])
    preflight = dialogue.preflight(envelope)
    assert verbs(dialogue.answer(*[OK] * 200)[:]) == [
        *("MAIL", *["RCPT"] * 5, "RSET", "MAIL", *["RCPT"] * 100)
    ]
    assert preflight.passed(envelope)


def test_without_pipelining_questions_go_one_at_a_time():
    dialogue = Dialogue(LOCKSTEP)
    preflight = dialogue.preflight(ONE, TWO)
    while not dialogue.ended:
        dialogue.answer(OK)
    assert [verbs(octets) for octets in dialogue.writes] == [
        [verb] for verb in ("MAIL", "RCPT", "RCPT", "RSET", "MAIL", "RCPT")
    ]
    assert preflight.passed(TWO)
    assert preflight.open_transaction.envelope is ONE


# Refusals


def test_refusals_come_in_the_order_of_the_envelopes_and_their_recipients(dialogue):
    preflight = dialogue.preflight(ONE, TWO, THREE)
    dialogue.answer(OK, OK, b"450 4.2.0 greylisted\r\n", NO_SUCH_USER, OK, OK, NO_SUCH_USER)
    refusals = preflight.refusals()
    assert [(o.recipient, o.message_id[1], o.status.value) for o in refusals] == [
        ("b@example.com", "1", "failed"),
        ("d@example.com", "2", "deferred"),
        ("d@example.com", "3", "deferred"),
        ("e@example.com", "3", "failed"),
    ]
    assert preflight.open_transaction is None
    assert preflight.dirty
    assert not preflight.passed(TWO)


def test_a_refused_mail_is_asked_again_for_each_envelope(dialogue):
    too_big = b"552 5.3.4 too big\r\n"
    preflight = dialogue.preflight(ONE, TWO, THREE)
    dialogue.answer(too_big, *[NO_RECIPIENTS] * 3, OK, OK, OK)
    again = dialogue.answer(OK, too_big, NO_RECIPIENTS, NO_RECIPIENTS, OK, *[OK] * 4)
    assert lines(again) == [
        "RSET",
        f"MAIL FROM:<a@example.com> SIZE={TWO.size}",
        "RCPT TO:<c@example.com>",
        "RCPT TO:<d@example.com>",
        "RSET",
        f"MAIL FROM:<a@example.com> SIZE={THREE.size}",
        "RCPT TO:<d@example.com>",
        "RCPT TO:<e@example.com>",
        "RSET",
    ]
    assert dialogue.ended
    assert [(o.message_id[1], o.status.value) for o in preflight.refusals()] == [
        ("2", "failed"),
        ("2", "failed"),
    ]


def test_a_refused_sender_of_the_staged_envelope_is_its_own_refusal(dialogue):
    preflight = dialogue.preflight(TWO)
    dialogue.answer(b"550 5.1.8 bad sender\r\n", NO_RECIPIENTS, NO_RECIPIENTS)
    assert [o.reply.text for o in preflight.refusals()] == ["5.1.8 bad sender"] * 2
    assert preflight.open_transaction is None


def test_too_many_recipients_at_once_is_no_refusal(dialogue):
    preflight = dialogue.preflight(ONE, TWO, THREE)
    too_many = b"452 4.5.3 too many\r\n"
    dialogue.answer(OK, OK, OK, too_many, OK, OK, OK)
    assert verbs(dialogue.answer(OK, OK, OK, OK)) == ["RSET", "MAIL", "RCPT", "RSET"]
    assert preflight.refusals() == []
    assert preflight.passed(THREE)


def test_too_many_of_none_is_a_deferral(dialogue):
    preflight = dialogue.preflight(ONE)
    dialogue.answer(OK, b"452 4.5.3 too many\r\n")
    assert dialogue.ended
    assert statuses(preflight.refusals()) == ["deferred"]


def test_a_full_mailbox_is_a_deferral_among_accepted_ones(dialogue):
    preflight = dialogue.preflight(TWO)
    dialogue.answer(OK, OK, b"452 4.2.2 full\r\n")
    assert dialogue.ended
    assert [o.recipient for o in preflight.refusals()] == ["d@example.com"]


@pytest.mark.parametrize(
    ("envelope", "extensions", "reason"),
    [
        (TWO, Extensions(size=True, size_limit=TWO.size - 1), "5.3.4"),
        (UTF8, Extensions(esmtp=True), "5.6.7"),
        (make_envelope(body=b"\xc3\xbc\r\n"), Extensions(), "5.6.3"),
    ],
)
def test_what_the_server_can_never_take_is_refused_without_asking(envelope, extensions, reason):
    dialogue = Dialogue(extensions)
    preflight = dialogue.preflight(envelope)
    assert dialogue.ended
    assert dialogue.write() == b""
    assert all(reason in o.reason and o.status == "failed" for o in preflight.refusals())


@pytest.mark.parametrize("answered", range(5))
def test_a_421_ends_it(dialogue, answered):
    dialogue.preflight(ONE, make_envelope(2))
    dialogue.answer(*[OK] * answered, b"421 bye\r\n")
    assert isinstance(dialogue.error, ConnectionEnded)
    assert dialogue.error.reply.code == 421


def test_a_refused_rset_ends_it(dialogue):
    dialogue.preflight(ONE, keep_open=False)
    dialogue.answer(OK, OK, b"502 what\r\n")
    assert isinstance(dialogue.error, ConnectionEnded)


# The limit


def test_no_more_groups_are_asked_about_than_allowed(dialogue):
    envelopes = [of_sender(n) for n in range(PROBES_LIMIT + 4)]
    preflight = dialogue.preflight(*envelopes)
    assert verbs(dialogue.answer(*[OK] * 100)).count("RSET") == PROBES_LIMIT
    assert preflight.refusals() == []
    assert [preflight.passed(e) for e in envelopes] == [
        *[True] * (PROBES_LIMIT + 1),
        *[False] * 3,
    ]


def test_always_refuses_what_is_beyond_the_limit_and_names_it(dialogue):
    envelopes = [of_sender(n) for n in range(PROBES_LIMIT + 3)]
    preflight = dialogue.preflight(*envelopes, always=True)
    dialogue.answer(*[OK] * 100)
    refusals = preflight.refusals()
    assert [o.recipient for o in refusals] == [f"r{n}@example.com" for n in (9, 10)]
    assert all(str(PROBES_LIMIT) in o.reason and o.status == "unsent" for o in refusals)


def test_a_servers_refusal_counts_for_more_than_the_limit(dialogue):
    envelopes = [make_envelope(n, [f"r{n}@example.com"]) for n in range(PROBES_LIMIT + 5)]
    preflight = dialogue.preflight(*envelopes, always=True)
    later = b"451 4.3.0 later\r\n"
    dialogue.answer(later, *[NO_RECIPIENTS] * (PROBES_LIMIT + 4), OK, later, NO_RECIPIENTS)
    while not dialogue.ended:
        dialogue.answer(*[OK, *[later, NO_RECIPIENTS, OK] * (PROBES_LIMIT - 1)])
    assert set(statuses(preflight.refusals())) == {"deferred"}


# Over a session


def mails(server):
    return [line for line in server.commands if line.startswith("MAIL")]


def test_what_was_asked_about_is_not_asked_again(server):
    envelopes = [of_sender(n) for n in range(PROBES_LIMIT + 4)]
    with opened(server) as session:
        assert session.preflight(envelopes) == []
        said = server.commands
        assert session.preflight(envelopes) == []
        assert session.preflight(envelopes[3:]) == []
        assert server.commands == said
        outcomes = list(session.send(envelopes, strict=True))
    assert statuses(outcomes) == ["accepted"] * len(envelopes)
    assert [o.preflighted for o in outcomes] == [*[True] * (PROBES_LIMIT + 1), *[False] * 3]


def test_what_comes_later_is_asked_with_the_first_staged_anew(server):
    with opened(server) as session:
        session.preflight([ONE])
        session.preflight([ONE, TWO])
        assert [line.split()[0] for line in server.commands] == [
            *("EHLO", "MAIL", "RCPT"),
            *("RSET", "MAIL", "RCPT", "RCPT", "RSET", "MAIL", "RCPT"),
        ]
        assert statuses(session.send([ONE, TWO], strict=True)) == ["accepted"] * 3
    assert [m.content for m in server.messages] == [ONE.content, TWO.content]


def test_however_often_more_comes_the_server_is_not_asked_beyond_the_limit(server):
    envelopes = [of_sender(n) for n in range(3 * PROBES_LIMIT)]
    with opened(server) as session:
        for count in range(1, len(envelopes) + 1):
            assert session.preflight(envelopes[:count]) == []
        asked = server.commands
        assert asked.count("RSET") <= PROBES_LIMIT + 1
        outcomes = list(session.send(envelopes, strict=True))
        assert statuses(outcomes) == ["accepted"] * len(envelopes)
        assert server.commands[len(asked)] == "DATA"  # the first is still staged
    assert not outcomes[-1].preflighted
    assert outcomes[1].preflighted


def test_a_dropped_staged_envelope_is_reset_before_the_next_is_sent(server):
    with opened(server) as session:
        session.preflight([ONE, TWO])
        assert statuses(session.send([TWO], strict=True)) == ["accepted"] * 2
        assert statuses(session.send([ONE], strict=True)) == ["accepted"]
    assert [m.content for m in server.messages] == [TWO.content, ONE.content]


def test_a_staged_envelope_that_nobody_sends_is_reset_before_the_next_is_sent(server):
    with opened(server) as session:
        session.preflight([ONE])
        assert list(session.send([])) == []
        assert statuses(session.send([TWO], strict=True)) == ["accepted"] * 2
    assert [m.recipients for m in server.messages] == [TWO.recipients]


def test_a_transaction_of_one_needs_one_write_before_its_vote_and_two_in_it(server):
    with opened(server) as session:
        session.preflight([ONE])
        assert statuses(session.send([ONE], strict=True)) == ["accepted"]
    server.wait_closed()
    from_client = [octets for _, who, octets in server.connections[0].octets if who == "C"]
    assert from_client[1:4] == [
        b"MAIL FROM:<a@example.com> SIZE=%d\r\nRCPT TO:<b@example.com>\r\n" % ONE.size,
        b"DATA\r\n",
        ONE.content + b".\r\n",
    ]


def test_a_connection_given_back_by_an_abort_is_reset_with_the_next_preflight(server):
    with transport_to(server) as transport:
        session = transport.open()
        session.preflight([ONE])
        session.close(dirty=True)
        again = transport.open()
        assert again is session
        assert not again.fresh
        again.preflight([TWO])
        assert statuses(again.send([TWO], strict=True)) == ["accepted"] * 2
        again.close()
    server.wait_closed()
    assert len(server.connections) == 1
    octets = [octets for _, who, octets in server.connections[0].octets if who == "C"]
    assert verbs(octets[2]) == ["RSET", "MAIL", "RCPT", "RCPT"]


def test_an_aborted_transaction_closed_clean_is_reset_all_the_same(server):
    with transport_to(server) as transport:
        session = transport.open()
        session.preflight([ONE])
        session.close()
        again = transport.open()
        assert statuses(again.send([TWO], strict=True)) == ["accepted"] * 2
        again.close()
    assert [m.recipients for m in server.messages] == [TWO.recipients]


def abort(transport, *envelopes):
    session = transport.open()
    session.preflight(list(envelopes))
    session.close(dirty=True)


def test_a_connection_is_retired_before_aborts_get_it_thrown_out(server):
    with transport_to(server) as transport:
        for _ in range(PROBES_LIMIT + 1):
            abort(transport, ONE)
    server.wait_closed()
    resets = [c.commands.count("RSET") for c in server.connections]
    assert len(resets) == 2
    assert max(resets) <= PROBES_LIMIT
    assert all(c.ended_by_quit for c in server.connections)


def test_questions_count_across_aborted_transactions(server):
    with transport_to(server) as transport:
        for _ in range(3):
            abort(transport, ONE, *[of_sender(n) for n in range(3)])
    assert len(server.connections) == 2


def test_an_accepted_message_makes_up_for_all_questions(server):
    with transport_to(server) as transport:
        for _ in range(3 * PROBES_LIMIT):
            abort(transport, ONE)
            session = transport.open()
            assert statuses(session.send([TWO])) == ["accepted"] * 2
            session.close()
    assert len(server.connections) == 1


def test_what_earlier_users_asked_takes_no_question_from_a_later_one(server):
    """It gets a connection that was asked nothing yet."""
    envelopes = [of_sender(n) for n in range(PROBES_LIMIT + 1)]
    with transport_to(server) as transport:
        delivery = DirectDelivery(transport, preflight="always")
        abort(transport, ONE, *envelopes[:3])
        session = transport.open()
        with pytest.raises(TransportError) as raised:
            session.preflight(envelopes, always=True)
        assert raised.value.lost
        session.close(dirty=True)
        run = delivery.begin(Budget())
        items = [Submission(envelope) for envelope in envelopes]
        assert run.prepare(items, True) == []
        assert statuses(run.send(items)) == ["accepted"] * len(envelopes)
        run.finish()
    assert len(server.connections) == 2


@pytest.mark.parametrize("action", [CLOSE, then("421 4.4.2 idle too long", CLOSE)])
def test_a_connection_that_ends_in_a_preflight_is_lost_and_closed(server, action):
    server.on("MAIL", action)
    with opened(server) as session:
        with pytest.raises(TransportError) as raised:
            session.preflight([ONE])
        assert raised.value.lost
        assert session.closed
        assert statuses(session.send([ONE])) == ["unsent"]
        assert session.restartable


def test_a_preflight_of_nothing_says_nothing(server):
    with opened(server) as session:
        said = server.commands
        assert session.preflight([]) == []
        assert server.commands == said


def test_a_preflight_has_a_deadline(server):
    server.on("RCPT", b"250-slow\r\n")
    with opened(server) as session:
        with pytest.raises(TransportError, match="in time") as raised:
            session.preflight([ONE], timeout=0.05)
        assert not raised.value.lost
        assert session.closed


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
@pytest.mark.parametrize("pipelining", [True, False])
def test_pipelining_is_used_where_it_is_offered_and_wanted(extensions, pipelining):
    with (
        ScriptedServer(extensions=extensions) as server,
        opened(server, pipelining=pipelining) as session,
    ):
        server.refuse("d@example.com")
        refusals = session.preflight([ONE, TWO, THREE])
        writes = [octets for _, who, octets in server.connections[0].octets if who == "C"]
    assert [o.recipient for o in refusals] == ["d@example.com"] * 2
    # The scripted server throws out who does not wait where PIPELINING is not offered.
    assert (len(writes) == 2) is (bool(extensions) and pipelining)
