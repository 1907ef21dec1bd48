"""A real Exim: what it makes of refusals, of RSET, and of many of both."""

from __future__ import annotations

from collections import Counter

import exim
import pytest
from smtp_helpers import make_envelope

from txmail import transport_from_url
from txmail.transports.resend import send_all

pytestmark = pytest.mark.skipif(bool(exim.MISSING), reason=exim.MISSING)


@pytest.fixture(scope="module")
def server():
    with exim.running_exim() as server:
        yield server


def refused_at(stage, number, every):
    """Message `number`, which is refused at `stage` if it is one of `every` so many."""
    bad = number % every == every - 1
    name = f"{stage.replace(' ', '')}{every}x{number}"
    sender = f"refused{number}@a.example" if bad and stage == "MAIL" else f"s{number}@a.example"
    to = f"refused{number}@b.example" if bad and stage == "RCPT" else f"r{number}@b.example"
    word = "refused" if bad and stage == "content" else "fine"
    envelope = make_envelope(number, [to], sender)
    content = envelope.content.replace(f"<{number}@".encode(), f"<{name}@".encode())
    return bad, envelope.with_content(
        content.replace(f"Subject: {number}".encode(), f"Subject: {word}".encode())
    )


def check(server, messages, outcomes, *, doubtful=0):
    """What is said of each message is what the server has."""
    held = Counter(server.message_ids())
    assert len(outcomes) == len(messages)
    found = Counter()
    for (bad, envelope), outcome in zip(
        messages, sorted(outcomes, key=lambda o: o.position), strict=True
    ):
        found[str(outcome.status)] += 1
        if outcome.status != "in_doubt":
            assert outcome.status == ("failed" if bad else "accepted"), outcome
            assert held[envelope.message_id] == (0 if bad else 1)
    assert found["in_doubt"] <= doubtful, found


@pytest.mark.parametrize(
    ("window", "count"),
    [(64, 100), *(pytest.param(w, 300, marks=pytest.mark.sweep) for w in (16, 64))],
)
def test_a5_every_third_message_refused_leaves_nothing_in_doubt(server, window, count):
    """Kind: a server that counts against us what we need not have said hangs up in mid-stream."""
    messages = [refused_at("RCPT", n + window * count * 100, 3) for n in range(count)]
    transport = transport_from_url(f"{server.url}?window={window}")
    outcomes = list(send_all(transport, [envelope for _, envelope in messages]))
    transport.close()
    check(server, messages, outcomes)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("stage", "every"), [("MAIL", 3), ("content", 3), ("RCPT", 2), ("content", 2), ("RCPT", 10)]
)
def test_a5_nor_do_refusals_of_other_kinds(server, stage, every):
    """Kind: the same, whatever is refused and how often."""
    messages = [refused_at(stage, n + every * 100_000, every) for n in range(90)]
    transport = transport_from_url(f"{server.url}?window=16")
    outcomes = list(send_all(transport, [envelope for _, envelope in messages]))
    transport.close()
    check(server, messages, outcomes)


def test_a5_hundreds_of_accepted_messages_need_one_connection(server):
    """Kind: a RSET that is not needed counts against us."""
    messages = [refused_at("none", n, 1000) for n in range(50)]
    transport = transport_from_url(f"{server.url}?window=64")
    session = transport.open()
    outcomes = list(session.send([envelope for _, envelope in messages]))
    session.close()
    transport.close()
    check(server, messages, outcomes)
