"""Mail servers that hang, vanish or refuse in mid-commit, and interrupts: what is known after."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from databases import Recorder
from letters import letter, statuses, subjects
from transaction.interfaces import TransientError

from txmail.events import Connected, ConnectionLost, MessageSettled
from txmail.exceptions import (
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    TransactionClosed,
)
from txmail.smtp.stream import Stream
from txmail.testing import CLOSE, HANG, NO_REPLY, RESET, Callback, ScriptedServer, then

#: (where the server stops to answer, the error, the statuses of three messages)
HANGS = [
    ("connect", 0, DeliveryUnavailable, ["unsent"] * 3),
    ("EHLO", 0, DeliveryUnavailable, ["unsent"] * 3),
    ("MAIL", 0, DeliveryUnavailable, ["unsent"] * 3),
    ("RCPT", 0, DeliveryUnavailable, ["unsent"] * 3),
    ("DATA", 0, DeliveryUnavailable, ["unsent"] * 3),
    (".", 0, PartialDelivery, ["in_doubt", "unsent", "unsent"]),
    (".", 1, PartialDelivery, ["accepted", "in_doubt", "unsent"]),
    (".", 2, PartialDelivery, ["accepted", "accepted", "in_doubt"]),
]


@pytest.mark.representative(every=4)
@pytest.mark.representative(every=4)
@pytest.mark.parametrize("transient", [False, True])
@pytest.mark.parametrize(("verb", "after", "kind", "expected"), HANGS)
def test_commit_timeout_bounds_a_commit_wherever_the_server_hangs(
    tm, make_mailer, server, verb, after, kind, expected, transient
):
    mailer = make_mailer(commit_timeout=0.3, transient=transient)
    server.on(verb, HANG, after=after)
    other = Recorder("a")
    tm.begin().join(other)
    for number in range(3):
        mailer.send(letter(number))
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        tm.commit()
    assert time.monotonic() - started < 3
    tm.abort()
    assert "finish" not in other.calls
    assert statuses(caught.value.outcomes) == statuses(mailer.last_outcomes) == expected
    assert subjects(server) == [str(number) for number in range(after)]
    # Nothing went out and nothing is in doubt: only then may somebody try again unasked.
    nothing_out = kind is DeliveryUnavailable
    assert isinstance(caught.value, TransientError) == (transient and nothing_out)
    server.clear()
    with tm:
        mailer.send(letter("next"))
    assert subjects(server)[after:] == ["next"]


def test_the_timeout_is_for_all_of_it_and_not_for_each_reply(tm, make_mailer, server):
    mailer = make_mailer(commit_timeout=0.4)
    never = threading.Event()
    server.on(".", Callback(lambda: never.wait(0.15)), times=None)
    tm.begin()
    for number in range(20):
        mailer.send(letter(number))
    started = time.monotonic()
    with pytest.raises(PartialDelivery) as caught:
        tm.commit()
    assert time.monotonic() - started < 2
    tm.abort()
    assert statuses(caught.value.outcomes)[-1] == "unsent"
    assert statuses(caught.value.outcomes).count("in_doubt") == 1


def test_other_managers_time_is_not_counted(tm, make_mailer, server):
    mailer = make_mailer(commit_timeout=0.4)
    never = threading.Event()
    tm.begin().join(Recorder("a", do={"vote": lambda: never.wait(0.5)}))
    mailer.send(letter("one"))
    tm.commit()
    assert subjects(server) == ["one"]


#: (the server's behaviour, the error, the statuses of three messages, how many it has)
ENDINGS = [
    ("MAIL", "550 5.7.1 not you", 0, DeliveryRefused, ["failed"] * 3, 0),
    (".", "554 5.7.1 spam", 0, DeliveryRefused, ["failed", "unsent", "unsent"], 0),
    (".", "452 4.3.1 full", 0, DeliveryUnavailable, ["deferred", "unsent", "unsent"], 0),
    (".", "554 5.7.1 spam", 1, PartialDelivery, ["accepted", "failed", "unsent"], 1),
    (".", "452 4.3.1 full", 2, PartialDelivery, ["accepted", "accepted", "deferred"], 2),
    (".", RESET, 0, PartialDelivery, ["in_doubt", "unsent", "unsent"], 0),
    (".", CLOSE, 1, PartialDelivery, ["accepted", "in_doubt", "unsent"], 1),
    (".", then(NO_REPLY, RESET), 0, PartialDelivery, ["in_doubt", "unsent", "unsent"], 1),
    (".", then(b"25", CLOSE), 0, PartialDelivery, ["in_doubt", "unsent", "unsent"], 1),
    (".", then("421 4.3.2 bye", CLOSE), 0, DeliveryUnavailable, ["deferred"] + ["unsent"] * 2, 0),
]


@pytest.mark.parametrize(("verb", "action", "after", "kind", "expected", "arrived"), ENDINGS)
def test_the_error_says_for_every_message_what_became_of_it(
    tm, mailer, server, events, verb, action, after, kind, expected, arrived
):
    server.on(verb, action, after=after, times=None if verb == "MAIL" else 1)
    tm.begin()
    ids = [mailer.send(letter(number)) for number in range(3)]
    with pytest.raises(kind) as caught:
        tm.commit()
    tm.abort()
    outcomes = caught.value.outcomes
    assert [outcome.message_id for outcome in outcomes] == ids
    assert statuses(outcomes) == expected
    assert len(server.messages) == arrived
    assert mailer.last_outcomes == outcomes
    settled = [event for event in events if isinstance(event, MessageSettled)]
    tried = [o.message_id for o in outcomes if o.status != "unsent"]
    assert [event.message_id for event in settled] == tried


@pytest.mark.parametrize("recipients", [2, 5])
def test_no_recipient_gets_a_message_that_another_is_refused_in_the_vote(
    tm, make_mailer, server, recipients
):
    mailer = make_mailer(preflight="never")
    addresses = [f"user{number}@example.com" for number in range(recipients)]
    server.refuse(addresses[-1])
    tm.begin()
    mailer.send(letter("one", *addresses))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert server.messages == []
    assert statuses(caught.value.outcomes) == ["unsent"] * (recipients - 1) + ["failed"]


# -- connections that end


@pytest.mark.parametrize("ending", [CLOSE, RESET, then("421 4.4.2 timeout exceeded", CLOSE)])
def test_easynewsletter_150_a_connection_that_idled_out_before_the_vote_is_replaced(
    tm, mailer, server, events, ending
):
    """The server hangs up on us when we come back to it with the first command of the vote."""
    server.on("DATA", ending)
    with tm:
        for number in range(3):
            mailer.send(letter(number))
    assert subjects(server) == ["0", "1", "2"]
    assert len(server.connections) == 2
    assert len([event for event in events if isinstance(event, ConnectionLost)]) == 1
    assert len([event for event in events if isinstance(event, Connected)]) == 2


@pytest.mark.parametrize("ending", [CLOSE, RESET, then("421 4.4.2 timeout exceeded", CLOSE)])
def test_an_idle_connection_that_the_server_ended_costs_nothing(tm, mailer, server, ending):
    with tm:
        mailer.send(letter("one"))
    server.on("MAIL", ending)
    with tm:
        mailer.send(letter("two"))
    assert subjects(server) == ["one", "two"]


def test_a_connection_is_replaced_once_and_not_for_ever(tm, mailer, server):
    server.on("MAIL", CLOSE, times=None)
    tm.begin()
    mailer.send(letter("one"))
    with pytest.raises(DeliveryUnavailable):
        tm.commit()
    tm.abort()
    assert len(server.connections) == 2


def test_when_the_server_is_down_the_transaction_aborts_and_the_mail_goes_at_the_next_try(
    tm, mailer, server
):
    server.stop()
    other = Recorder("a")
    message = letter("patient")
    tm.begin().join(other)
    mailer.send(message)
    with pytest.raises(DeliveryUnavailable) as caught:
        tm.commit()
    tm.abort()
    assert other.calls == ["abort"]
    assert caught.value.temporary
    assert statuses(caught.value.outcomes) == ["unsent"]
    server.start()
    with tm:
        mailer.send(message)
    assert subjects(server) == ["patient"]


def test_a_server_that_dies_in_the_middle_of_a_message_leaves_it_in_doubt(tm, mailer, server):
    server.on(".", Callback(server.kill), after=1)
    tm.begin()
    for number in range(3):
        mailer.send(letter(number))
    with pytest.raises(PartialDelivery) as caught:
        tm.commit()
    tm.abort()
    assert statuses(caught.value.outcomes) == ["accepted", "in_doubt", "unsent"]


def test_the_second_of_two_servers_failing_in_the_vote_is_partial_delivery(
    tm, mailer, server, make_mailer
):
    with ScriptedServer() as second:
        second.on(".", "554 5.7.1 spam")
        elsewhere = make_mailer(second.url)
        tm.begin()
        elsewhere.send(letter("two"))
        mailer.send(letter("one"))
        elsewhere.send(letter("three"))
        with pytest.raises(DeliveryRefused) as caught:
            tm.commit()
        tm.abort()
        assert statuses(caught.value.outcomes) == ["failed", "unsent", "unsent"]
        second.on(".", "554 5.7.1 spam")
        tm.begin()
        mailer.send(letter("one"))
        elsewhere.send(letter("two"))
        mailer.send(letter("three"))
        with pytest.raises(PartialDelivery) as caught:
            tm.commit()
        tm.abort()
        assert statuses(caught.value.outcomes) == ["accepted", "failed", "accepted"]
        assert statuses(mailer.last_outcomes) == ["accepted", "accepted"]
        assert statuses(elsewhere.last_outcomes) == ["failed"]
        assert subjects(server) == ["one", "three"]


def test_after_a_failed_commit_there_is_no_sending_before_the_abort(tm, mailer, server):
    server.on(".", "554 5.7.1 spam")
    tm.begin()
    mailer.send(letter("one"))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    with pytest.raises(TransactionClosed):
        mailer.send(letter("two"))
    tm.abort()
    with tm:
        mailer.send(letter("three"))
    assert subjects(server) == ["three"]


# -- interrupts


def interrupt_main_thread():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


#: (at which command of which number the interrupt comes, the statuses, how many arrived). The
#: server offers no PIPELINING, so that everything before that command has been answered and read.
INTERRUPTS = [
    ("RCPT", 0, None, 0),
    ("DATA", 0, ["unsent", "unsent", "unsent"], 0),
    # MAIL was asked for the others, then for the first, and now for the second
    ("MAIL", 2, ["accepted", "unsent", "unsent"], 1),
    ("DATA", 1, ["accepted", "unsent", "unsent"], 1),
    (".", 0, ["in_doubt", "unsent", "unsent"], 0),
    (".", 1, ["accepted", "in_doubt", "unsent"], 1),
]


@pytest.mark.parametrize(("verb", "after", "expected", "arrived"), INTERRUPTS)
def test_an_interrupt_ends_sending_and_says_what_happened(
    tm, make_mailer, caplog, verb, after, expected, arrived
):
    with ScriptedServer(extensions=("8BITMIME",)) as server:
        mailer = make_mailer(server.url)
        server.on(verb, then(Callback(interrupt_main_thread), HANG), after=after)
        other = Recorder("a")
        tm.begin().join(other)
        for number in range(3):
            mailer.send(letter(number))
        with pytest.raises(KeyboardInterrupt) as caught:
            tm.commit()
        tm.abort()
        server.wait_closed()
        assert len(server.messages) == arrived
        assert "finish" not in other.calls
        if expected is not None:
            assert statuses(mailer.last_outcomes) == expected
            (note,) = caught.value.__notes__
            assert all(str(outcome) in note for outcome in mailer.last_outcomes)
            assert note in caplog.text
        server.clear()
        with tm:
            mailer.send(letter("next"))
        assert subjects(server) == [str(number) for number in range(arrived)] + ["next"]


def test_an_interrupt_right_behind_the_write_of_the_final_dot_leaves_the_message_in_doubt(
    tm, mailer, server, monkeypatch
):
    """A signal that came within the system call is raised when it has returned."""
    send = Stream.send

    def interrupted(self, buffers):
        final = b"".join(buffers).endswith(b"\r\n.\r\n")
        taken = send(self, buffers)
        if final:
            raise KeyboardInterrupt
        return taken

    monkeypatch.setattr(Stream, "send", interrupted)
    tm.begin()
    mailer.send(letter("one"))
    with pytest.raises(KeyboardInterrupt):
        tm.commit()
    tm.abort()
    server.wait_closed()
    assert len(server.messages) == 1
    assert statuses(mailer.last_outcomes) == ["in_doubt"]
