"""What a mail server gets to see of transactions, counted and timed at the server."""

from __future__ import annotations

import time

import pytest
from databases import ZODB_KIND, Recorder
from letters import letter, subjects


def verbs(server):
    return [line.split(" ")[0] for line in server.commands]


def client_turns(connection, since=0.0, until=float("inf")):
    """How often the client spoke, after the server had, between two moments."""
    speakers = [who for when, who, _ in connection.octets if since <= when <= until]
    return sum(
        who == "C" and before != "C"
        for before, who in zip(["S", *speakers], speakers, strict=False)
    )


class Moments:
    """When a transaction began its two-phase commit, when the votes reached the mail, the end."""

    def __init__(self, tm):
        def note(name):
            return lambda: setattr(self, name, time.monotonic())

        self.first = Recorder("0", do={"begin": note("begin")})
        self.last_before_mail = Recorder("~~a", do={"vote": note("vote")})
        self.finishing = Recorder("0 finish", do={"finish": note("finish")})
        tm.get().join(self.last_before_mail)
        tm.get().join(self.first)
        tm.get().join(self.finishing)


def test_ten_mails_of_a_transaction_take_one_connection_and_one_ehlo(tm, mailer, server):
    with tm:
        for number in range(10):
            mailer.send(letter(number, f"user{number}@example.com"))
    assert subjects(server) == [str(number) for number in range(10)]
    assert len(server.connections) == 1
    assert verbs(server).count("EHLO") == 1
    assert [m.recipients for m in server.messages] == [(f"user{n}@example.com",) for n in range(10)]


@pytest.mark.parametrize("mails", [1, 10])
def test_no_octet_is_exchanged_between_tpc_begin_and_the_vote(
    tm, mailer, server, make_database, mails
):
    database = make_database(ZODB_KIND)
    tm.begin()
    moments = Moments(tm)
    database.write("order")
    for number in range(mails):
        mailer.send(letter(number))
    tm.commit()
    (connection,) = server.connections
    times = [when for when, _, _ in connection.octets]
    assert [when for when in times if moments.begin <= when <= moments.vote] == []
    assert [when for when in times if when < moments.begin]
    assert [when for when in times if when > moments.vote]
    assert len(server.messages) == mails


def test_nothing_is_said_to_the_server_before_the_commit(tm, mailer, server):
    tm.begin()
    mailer.send(letter("one"))
    tm.savepoint()
    mailer.send(letter("two"))
    assert server.connections == []
    tm.commit()
    assert subjects(server) == ["one", "two"]


def test_fifty_transactions_of_one_mail_take_one_connection_without_noop_and_rset(
    tm, mailer, server
):
    for number in range(50):
        with tm:
            mailer.send(letter(number))
    assert subjects(server) == [str(number) for number in range(50)]
    assert len(server.connections) == 1
    assert verbs(server) == ["EHLO"] + ["MAIL", "RCPT", "DATA"] * 50


def test_after_an_abort_rset_comes_in_the_same_write_as_the_next_mail(tm, mailer, server):
    tm.begin().join(Recorder("a", fails="vote"))
    mailer.send(letter("aborted"))
    with pytest.raises(Exception, match="failed in vote"):
        tm.commit()
    tm.abort()
    (connection,) = server.connections
    before = len(connection.octets)
    with tm:
        mailer.send(letter("next"))
    first_write = next(octets for _, who, octets in connection.octets[before:] if who == "C")
    assert first_write.startswith(b"RSET\r\nMAIL FROM:")
    assert subjects(server) == ["next"]
    assert "NOOP" not in verbs(server)
    assert len(server.connections) == 1


@pytest.mark.parametrize("same", [True, False], ids=["one recipient", "fifty recipients"])
def test_fifty_mails_take_at_most_n_plus_3_round_trips_from_begin_to_finish(
    tm, mailer, server, same
):
    mails = 50
    tm.begin()
    moments = Moments(tm)
    for number in range(mails):
        mailer.send(letter(number, "ann@example.com" if same else f"user{number}@example.com"))
    tm.commit()
    (connection,) = server.connections
    assert len(server.messages) == mails
    assert client_turns(connection, moments.begin, moments.finish) <= mails + 3


def test_a_warm_mail_takes_three_round_trips(tm, mailer, server):
    with tm:
        mailer.send(letter("warm up"))
    (connection,) = server.connections
    since = time.monotonic()
    with tm:
        mailer.send(letter("one"))
    assert client_turns(connection, since) <= 3
    assert len(server.messages) == 2


def test_never_more_than_one_final_dot_is_unanswered(tm, mailer, server):
    with tm:
        for number in range(20):
            mailer.send(letter(number))
    (connection,) = server.connections
    unanswered = most = 0
    for _, who, octets in connection.octets:
        if who == "C":
            unanswered += octets.count(b"\r\n.\r\n")
        else:
            unanswered -= octets.count(b"queued")
        most = max(most, unanswered)
    assert unanswered == 0
    assert most == 1


def test_closing_the_mailer_says_quit_on_every_connection(tm, mailer, server):
    with tm:
        mailer.send(letter("one"))
    mailer.close()
    server.wait_closed()
    assert [connection.ended_by_quit for connection in server.connections] == [True]
    with tm:
        mailer.send(letter("two"))
    assert subjects(server) == ["one", "two"]
