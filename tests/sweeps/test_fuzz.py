"""Sessions with servers that say anything: only our errors, and never a wrong success."""

from __future__ import annotations

import pytest
import transaction
from accounts import Delivery, check_outcome
from commits import note
from fuzzing import ENDS, OFFERS, Counts, Hostile, Move, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seeded import seeded_session
from thin import one_in

from txmail.outcome import Outcome, Status
from txmail.reply import Reply

SOME_REPLIES = [
    *(b"250 Ok\r\n", b"220 mx\r\n", b"354 go\r\n", b"421 bye\r\n", b"450 4.2.0 later\r\n"),
    *(b"451 4.7.1 slow down\r\n", b"452 4.5.3 many\r\n", b"500 what\r\n", b"502 what\r\n"),
    *(b"550 5.1.1 no\r\n", b"552 5.2.2 full\r\n", b"554 5.7.1 spam\r\n", b"250-a\r\n250 b\r\n"),
    *(b"250-a\r\n", b"25", b"250 Ok\n", b"\r\n", b"99 x\r\n", b"2_5 x\r\n", b"250-a\r\n550 b\r\n"),
    *(b"250-mx\r\n250 PIPELINING\r\n", b"250 Ok\r\n250 Ok\r\n", b"354 go\r\n250 Ok\r\n", b""),
]
OCTETS = st.one_of(st.sampled_from(SOME_REPLIES), st.binary(max_size=30))
MOVES = st.builds(
    Move,
    said=st.none() | OCTETS,
    extra=st.just(b"") | OCTETS,
    end=st.just("") | st.sampled_from(ENDS),
    early=st.just(b"") | st.sampled_from([b"250 Ok\r\n", b"554 no\r\n", b"2"]),
)
ENVELOPES = [
    note("one", body=b".\r\n..\r\n"),
    note("two", recipients=["a@example.net", "b@example.net", "c@example.net"]),
    note("three", body=b"x" * 900 + b"\r\n"),
]


@settings(
    max_examples=400 // one_in(4),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    moves=st.lists(MOVES, max_size=25),
    offers=st.sampled_from([OFFERS, OFFERS[:-1], OFFERS[1:], ()]),
    preflight=st.sampled_from(["auto", "never", "always"]),
    pieces=st.integers(1, 400) | st.none(),
    window=st.integers(1, 8),
    worker=st.booleans(),
)
def test_whatever_a_server_says(tm, moves, offers, preflight, pieces, window, worker):
    size = (lambda octets: octets) if pieces is None else (lambda octets: min(octets, pieces))
    transactions = [ENVELOPES, ENVELOPES[:2], ENVELOPES]
    play(
        *(tm, moves, size, offers, preflight, transactions, Counts()),
        window=window,
        worker=worker,
    )


def test_some_hundred_seeded_sessions(tm):
    counts = Counts()
    sessions = 600 // one_in(4)
    for seed in range(sessions):
        seeded_session(tm, seed, counts)
    # It would be no test if the servers had been too good, or too bad.
    assert counts.sessions == sessions
    assert counts.failed > sessions / 2
    assert counts.commits - counts.failed > sessions
    assert set(counts.statuses) == {str(status) for status in Status}
    assert counts.longest < 200_000
    assert counts.chunks > 1000 / one_in(4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_is_a_session(seed):
    """The same again, for whoever has to find out why one failed."""
    first, second = Counts(), Counts()
    for counts in (first, second):
        seeded_session(transaction.TransactionManager(), seed, counts)
    assert first == second


# The account itself


def outcome(status, code=None):
    return Outcome("a@example.net", Status(status), reply=None if code is None else Reply(code))


PATH = b"<a@example.net>"


def deliveries(codes):
    """Messages that came whole for the one recipient, by their final replies."""
    return [Delivery(b"", {PATH}, code, {PATH}) for code in codes]


@pytest.mark.parametrize(
    ("status", "code", "codes"),
    [
        ("accepted", 250, []),
        ("accepted", 250, [0]),
        ("accepted", 250, [550]),
        ("accepted", 250, [250, 250]),
        ("in_doubt", None, []),
        ("in_doubt", None, [250, 250]),
        ("unsent", None, [250]),
        ("unsent", None, [0]),
        ("deferred", None, [0]),
        ("deferred", 450, [250]),
        ("failed", 550, [450]),
        ("failed", 450, []),
    ],
)
def test_a_wrong_account_is_noticed(status, code, codes):
    with pytest.raises((AssertionError, AttributeError)):
        check_outcome(outcome(status, code), PATH, deliveries(codes))


@pytest.mark.parametrize(
    ("status", "code", "codes"),
    [
        ("accepted", 250, [250]),
        ("in_doubt", None, [0]),
        ("in_doubt", None, [250]),
        ("unsent", None, []),
        ("deferred", 450, [450]),
        ("deferred", None, []),
        ("failed", 550, [550]),
        ("failed", 550, []),
    ],
)
def test_a_right_account_is_right(status, code, codes):
    check_outcome(outcome(status, code), PATH, deliveries(codes))


def test_the_server_reads_what_a_client_writes():
    peer = Hostile(iter(()), OFFERS)
    for octets in (
        *(b"EHLO client\r\n", b"MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"),
        *(b"..\r\nbody\r\n.\r\n", b"RSET\r\nQUIT\r\n"),
    ):
        peer.deliver(65536)
        peer.hear(octets)
    peer.deliver(65536)
    assert [said.line for said in peer.commands] == [
        *(b"EHLO client\r\n", b"MAIL FROM:<a@b.c>\r\n", b"RCPT TO:<d@e.f>\r\n", b"DATA\r\n"),
        *(b".", b"RSET\r\n", b"QUIT\r\n"),
    ]
    (delivery,) = peer.deliveries()
    assert (delivery.content, delivery.recipients, delivery.code) == (
        *(b".\r\nbody\r\n", {b"<d@e.f>"}),
        250,
    )
    assert [code for code, _ in peer.replies()] == [220, 250, 250, 250, 354, 250, 250, 221]


def one_streamed(*moves):
    """A message to two in a stream, and the replies that `moves` make of it."""
    peer = Hostile(iter([Move(), Move(), *moves]), OFFERS)
    peer.hear(b"EHLO client\r\n")
    peer.hear(b"RSET\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nRCPT TO:<g@e.f>\r\n")
    peer.hear(b"BDAT 5 LAST\r\n.\r")
    peer.hear(b"\n\r\nRSET\r\n")
    peer.deliver(65536)
    assert peer.commands[-1].line == b"RSET\r\n"
    (delivery,) = peer.deliveries()
    assert delivery.content == b".\r\n\r\n"
    return delivery


REFUSAL = Move(said=b"554 no\r\n")


@pytest.mark.parametrize(
    ("moves", "recipients", "code", "open_", "lost"),
    [
        ([], {b"<d@e.f>", b"<g@e.f>"}, 250, {b"<d@e.f>", b"<g@e.f>"}, False),
        ([Move()] * 2 + [REFUSAL], {b"<g@e.f>"}, 250, {b"<g@e.f>"}, False),
        ([Move(), REFUSAL], set(), 250, {b"<d@e.f>", b"<g@e.f>"}, False),
        ([REFUSAL], {b"<d@e.f>", b"<g@e.f>"}, 250, {b"<d@e.f>", b"<g@e.f>"}, True),
        ([REFUSAL] * 2, set(), 250, {b"<d@e.f>", b"<g@e.f>"}, True),
        ([Move()] * 4 + [REFUSAL], {b"<d@e.f>", b"<g@e.f>"}, 554, {b"<d@e.f>", b"<g@e.f>"}, False),
        ([Move()] * 4 + [Move(end="eof", said=b"")], {b"<d@e.f>", b"<g@e.f>"}, 0,
         {b"<d@e.f>", b"<g@e.f>"}, False),
    ],
)  # fmt: skip
def test_what_the_server_makes_of_a_streamed_message(moves, recipients, code, open_, lost):
    delivery = one_streamed(*moves)
    assert delivery.chunk
    assert (delivery.recipients, delivery.code) == (recipients, code)
    assert (delivery.open, delivery.lost) == (open_, lost)
