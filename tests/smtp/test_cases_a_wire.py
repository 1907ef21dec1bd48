"""Cases of servers that count, forget, and do not know what they should: on the wire."""

from __future__ import annotations

import pytest
from commits import note
from smtp_helpers import (
    CHUNKING,
    NO_RECIPIENTS,
    NO_SUCH_USER,
    OK,
    STREAMING,
    Dialogue,
    lines,
    make_envelope,
    opened,
    statuses,
    transport_to,
)

from txmail import Mailer
from txmail.testing import CLOSE, ScriptedServer, then
from txmail.transports.resend import send_all

SPAM = b"554 5.7.1 spam\r\n"
UNKNOWN = b"502 5.5.1 unknown\r\n"
TOO_MANY = b"554 Too many nonmail commands\r\n"
BYE = b"421 4.7.0 bye\r\n"


def messages(count, start=0):
    """Small messages of different senders to different recipients."""
    return [
        make_envelope(n, [f"r{n}@b.example"], f"s{n}@a.example")
        for n in range(start, start + count)
    ]


def arrived(server):
    return [m.content for m in server.messages]


# A5: what is not needed is not said, and what a server says before it hangs up counts


@pytest.mark.parametrize("window", [1, 2, 5, 16])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a5_no_rset_stands_where_no_mail_transaction_can_be_open(window, count):
    """Kind: a command that is not needed counts against us."""
    with ScriptedServer(extensions=CHUNKING) as server, opened(server, window=window) as session:
        for _ in range(2):
            assert statuses(session.send(messages(count))) == ["accepted"] * count
        commands = server.commands
    resets = commands.count("RSET")
    first = commands.index(next(line for line in commands if line.startswith("MAIL")))
    assert "RSET" not in commands[:first]
    # Whether one stands between two depends on when the reply to the first came.
    assert resets <= (0 if window == 1 else 2 * (count - 1))


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("exim_like", [True, False])
def test_a5_and_stands_behind_every_refusal(window, exim_like):
    """Kind: a message goes out under the sender of one that was refused."""
    envelopes = messages(9)
    with ScriptedServer(extensions=CHUNKING, exim_like=exim_like) as server:
        for number in (0, 3, 4):
            server.on(".", "554 5.7.1 spam", matching=f"s{number}@")
        server.refuse("r6@b.example")
        with opened(server, window=window) as session:
            found = statuses(session.send(envelopes))
        senders = [m.sender for m in server.messages]
    good = [n for n in range(9) if n not in (0, 3, 4, 6)]
    assert found == ["accepted" if n in good else "failed" for n in range(9)]
    assert senders == [f"s{n}@a.example" for n in good]


ENDINGS = {
    "RSET refused": ([OK] * 3 + [TOO_MANY], ["accepted", "unsent", "unsent"]),
    "RSET refused, and all that follows": (
        [OK] * 3 + [TOO_MANY, SPAM, SPAM, SPAM],
        ["accepted", "unsent", "unsent"],
    ),
    "RSET refused behind a refusal": (
        [OK, NO_SUCH_USER, NO_RECIPIENTS, TOO_MANY],
        ["failed", "unsent", "unsent"],
    ),
    "421 to RSET": ([OK] * 3 + [BYE], ["accepted", "unsent", "unsent"]),
    "421 to MAIL": ([OK] * 4 + [BYE], ["accepted", "unsent", "unsent"]),
    "421 to RCPT": ([OK] * 5 + [BYE], ["accepted", "deferred", "unsent"]),
    "421 to the content": ([OK] * 6 + [BYE], ["accepted", "deferred", "unsent"]),
    # What came behind it shows that the server went on.
    "something positive behind it": ([OK] * 3 + [TOO_MANY, OK], ["accepted"] + ["in_doubt"] * 2),
    "421 and something positive": ([OK] * 4 + [BYE, OK], ["accepted", "unsent", "in_doubt"]),
    # Any other refusal says nothing of what stands behind it.
    "MAIL refused": ([OK] * 4 + [SPAM], ["accepted", "failed", "in_doubt"]),
    "RCPT refused": ([OK] * 5 + [NO_SUCH_USER], ["accepted", "failed", "in_doubt"]),
    "content refused": ([OK] * 6 + [SPAM], ["accepted", "failed", "in_doubt"]),
    "nothing": ([OK] * 3, ["accepted", "in_doubt", "in_doubt"]),
}


@pytest.mark.parametrize(("replies", "found"), ENDINGS.values(), ids=ENDINGS)
def test_a5_what_a_server_says_before_it_hangs_up_decides_what_is_in_doubt(replies, found):
    """Kind: a message is doubted of which the server has said that it does nothing any more."""
    dialogue = Dialogue(STREAMING)
    sending = dialogue.sending(*messages(3), strict=False, window=3, dirty=False)
    dialogue.write()
    dialogue.feed(*replies)
    dialogue.end()
    assert statuses(sending.ready) == found


def test_a5_but_what_it_says_before_time_is_up_does_not():
    dialogue = Dialogue(STREAMING)
    sending = dialogue.sending(*messages(2), strict=False, window=2, dirty=False)
    dialogue.write()
    dialogue.feed(BYE)
    from txmail.smtp.transactions import ConnectionEnded

    dialogue._go_on(ConnectionEnded("no answer in time", lost=False))
    assert statuses(sending.ready) == ["unsent", "in_doubt"]


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_a5_a_connection_is_left_after_eight_refusals_that_are_counted_in_all(window, every):
    """Kind: refusals are counted from the last message that was accepted."""
    envelopes = messages(60)
    with ScriptedServer(extensions=CHUNKING) as server:
        for number in range(0, 60, every):
            server.refuse(f"r{number}@b.example")
        with transport_to(server, f"window={window}") as transport:
            outcomes = sorted(send_all(transport, envelopes), key=lambda o: o.position)
        per_connection = [
            sum(line.startswith("RCPT") and int(line[10:].split("@")[0]) % every == 0
                for line in connection.commands)
            for connection in server.connections
        ]  # fmt: skip
    assert statuses(outcomes) == ["accepted" if n % every else "failed" for n in range(60)]
    assert max(per_connection) <= 8 + window // every


# A6: a server that does not know RSET


@pytest.mark.parametrize("code", [500, 502, 503, 504, 550, 451])
@pytest.mark.parametrize("window", [2, 3, 16])
def test_a6_what_stands_behind_an_accepted_message_is_accepted_without_rset(window, code):
    """Kind: accepted mail is doubted, and sent again at each retry."""
    envelopes = messages(20)
    with ScriptedServer(extensions=CHUNKING) as server:
        server.on("RSET", f"{code} 5.5.1 what?", times=None)
        with transport_to(server, f"window={window}") as transport:
            first = list(send_all(transport, envelopes[:10]))
            before = len(server.commands)
            second = list(send_all(transport, envelopes[10:]))
        later = server.commands[before:]
        held = arrived(server)
    assert statuses(first + second) == ["accepted"] * 20
    assert held == [e.content for e in envelopes]
    assert not [line for line in later if line.startswith(("BDAT", "RSET"))]


@pytest.mark.parametrize(
    ("to_first", "first"),
    [
        ([OK, NO_SUCH_USER, NO_RECIPIENTS], "failed"),
        ([NO_SUCH_USER, NO_RECIPIENTS, NO_RECIPIENTS], "failed"),
        ([OK, b"450 4.2.0 later\r\n", NO_RECIPIENTS], "deferred"),
        ([OK, OK, SPAM], "failed"),
        ([OK, OK, b"451 4.3.0 later\r\n"], "deferred"),
    ],
)
@pytest.mark.parametrize(
    ("to_second", "second"),
    [
        ([UNKNOWN, OK, OK, OK], "in_doubt"),
        ([UNKNOWN, b"503 5.5.1 nested\r\n", OK, OK], "in_doubt"),
        ([UNKNOWN, b"503 5.5.1 nested\r\n", OK, SPAM], "unsent"),
        ([UNKNOWN, OK, NO_SUCH_USER, OK], "unsent"),
    ],
)
def test_a6_behind_a_message_that_has_not_ended_it_is_in_doubt(to_first, first, to_second, second):
    """Kind: mail goes out under the sender, or to the recipients, of another message."""
    dialogue = Dialogue(STREAMING)
    envelopes = messages(4)
    sending = dialogue.sending(*envelopes, strict=False, window=3, dirty=False, keep_untaken=True)
    # The third stands behind one whose content was taken or not.
    dialogue.answer(*to_first, *to_second, UNKNOWN, OK, OK, OK)
    third = "accepted" if to_second[-1] == OK else "in_doubt"
    assert statuses(sending.ready)[:3] == [first, second, third]
    assert dialogue.error is not None  # the connection is closed
    assert dialogue.write() == b""


@pytest.mark.parametrize("strict", [True, False])
def test_a6_a_connection_that_may_have_one_open_is_not_streamed_on(strict):
    dialogue = Dialogue(STREAMING)
    sending = dialogue.sending(*messages(2), strict=strict, window=2, dirty=True)
    assert lines(dialogue.write())[0] == "RSET"
    dialogue.feed(UNKNOWN, *[OK] * 3, UNKNOWN, *[OK] * 3)
    assert statuses(sending.ready) == ["in_doubt", "accepted"]
    assert dialogue.error is not None or (strict and sending.dirty)


@pytest.mark.parametrize("extensions", [CHUNKING, ("PIPELINING",), ()])
@pytest.mark.parametrize("preflight", ["auto", "never"])
def test_a6_direct_mode_works_with_a_server_that_knows_no_rset(tm, extensions, preflight):
    """Kind: a command that a server does not know keeps all mail back."""
    with ScriptedServer(extensions=extensions) as server:
        server.on("RSET", "502 5.5.1 what?", times=None)
        with transport_to(server) as transport:
            mailer = Mailer(transport, transaction_manager=tm, preflight=preflight)
            sent = 0
            for count in (1, 3, 2, 12):
                for number in range(sent, sent + count):
                    mailer.send(note(f"m{number}"))
                tm.commit()
                sent += count
                mailer.send(note("never"))
                tm.abort()
        server.stop()
        assert len(server.messages) == sent


def test_a6_a_server_that_hangs_up_at_rset_knows_it(tm):
    """Exim refuses one RSET too many, and hangs up: that is no matter of knowing it."""
    with ScriptedServer(extensions=CHUNKING) as server:
        server.on("RSET", then("554 Too many nonmail commands", CLOSE))
        with transport_to(server) as transport:
            mailer = Mailer(transport, transaction_manager=tm)
            for _ in range(2):
                for number in range(3):
                    mailer.send(note(f"m{number}"))
                tm.commit()
        assert len(server.messages) == 6
        assert [line for line in server.commands if line.startswith("BDAT")]
