"""Q12: how many copies a server gets that takes mail and never says so."""

from __future__ import annotations

import pytest
from commits import note
from queues import IN_SQLITE, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from dying import hold, killed  # noqa: E402
from workers import in_write, put, put_many  # noqa: E402

from txmail import mailer_from_settings, transport_from_url  # noqa: E402
from txmail.exceptions import ConfigurationError  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.queue.retry import RetryPolicy, Settlement  # noqa: E402
from txmail.queue.sql import schedule  # noqa: E402
from txmail.queue.states import State  # noqa: E402
from txmail.testing import CLOSE, Callback, then  # noqa: E402
from txmail.worker import run_once  # noqa: E402

HOUR = 3600.0


def try_often(app, server, clock, times=12, **options):
    """Have a worker look every few hours, for two days."""
    for _ in range(times):
        smtp = transport_from_url(server.url)
        run_once(app.queue, smtp, clock=clock, **options)
        smtp.close()
        clock.advance(6 * HOUR)


def count_dots(server, *, matching="", times=None):
    """Each final dot that the server answers by ending the connection."""
    dots = []
    server.on(".", then(Callback(lambda: dots.append(True)), CLOSE), matching=matching, times=times)
    return dots


@kinds(*OWN_QUEUES)
def test_q12_a_server_that_drops_at_the_dot_gets_four_copies_at_most(
    kind, make_queue, server, clock
):
    """Kind: what may have arrived is sent again and again, as if nobody could have it yet."""
    app = make_queue(kind, clock=clock)
    put(app, note("a"))
    dots = count_dots(server)
    try_often(app, server, clock)
    assert len(dots) == 4
    row = app.deliveries()["a@example.net"]
    assert (row.state, row.due, row.duplicate) == ("in_doubt", None, 1)
    assert len(app.attempts("a@example.net")) == 4


@pytest.mark.parametrize("retries", [1, 2, 5])
@kinds(OWN_SQLITE)
def test_q12_how_many_is_a_setting(kind, make_queue, server, clock, retries):
    app = make_queue(kind, clock=clock, doubt_retries=retries)
    put(app, note("a"))
    dots = count_dots(server)
    try_often(app, server, clock)
    assert len(dots) == retries + 1


@kinds(OWN_SQLITE)
def test_q12_without_retries_a_person_decides_at_once(kind, make_queue, server, clock):
    app = make_queue(kind, clock=clock, doubt_retries=0)
    put(app, note("a"))
    dots = count_dots(server)
    try_often(app, server, clock, times=3)
    assert len(dots) == 1


@kinds(OWN_SQLITE)
def test_q12_a_policy_of_somebody_else_is_bound_by_it_too(kind, make_queue, server, clock):
    class Eager(RetryPolicy):
        def settle(self, outcome, now, **known):
            made = super().settle(outcome, now, **known)
            if made.state is State.IN_DOUBT:
                return Settlement(State.IN_DOUBT, now, 0, True, None, None)
            return made

    app = make_queue(kind, clock=clock)
    put(app, note("a"))
    dots = count_dots(server)
    try_often(app, server, clock, policy=Eager())
    assert len(dots) == 4


@kinds(*OWN_QUEUES)
def test_q12_workers_that_die_of_a_message_are_counted_like_servers(kind, make_queue, clock):
    app = make_queue(kind, clock=clock)
    put_many(app, "n", 1)
    for number in range(4):
        killed(hold(app, begun=1))
        app.queue.resolve()
        row = app.deliveries()["n0@example.net"]
        assert row.state == "in_doubt"
        assert (row.due is None) is (number == 3)
        clock.advance(HOUR)
        in_write(app, schedule.wake)


@kinds(OWN_SQLITE, IN_SQLITE)
def test_q12_the_copy_that_the_transaction_sent_itself_is_counted(kind, make_queue, server, clock):
    app = make_queue(kind, clock=clock)
    mailer = app.mailer()
    dots = count_dots(server)
    with app._tm:
        mailer.send(note("a"))
        mailer.send(note("b"))
    app.queue.flush(20)
    assert dots
    try_often(app, server, clock)
    for name in "ab":
        tries = [row.state for row in app.attempts(f"{name}@example.net")]
        assert tries.count("in_doubt") == 4
    assert len(dots) == 8


@kinds(OWN_SQLITE)
def test_q12_doubts_about_one_recipient_are_not_those_of_another(kind, make_queue, server, clock):
    app = make_queue(kind, clock=clock)
    put(app, note("a"))
    count_dots(server, times=3)
    try_often(app, server, clock, times=2)
    put(app, note("b"))
    try_often(app, server, clock, times=4)
    assert app.states() == {"a@example.net": "sent", "b@example.net": "sent"}


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_q12_a_number_that_is_none_is_refused_by_name(value, tmp_path):
    settings = {"mail.url": "memory:", "mail.queue_url": f"sqlite:///{tmp_path}/m.db"}
    with pytest.raises(ConfigurationError) as caught:
        mailer_from_settings({**settings, "mail.doubt_retries": value})
    assert caught.value.field == "mail.doubt_retries"


@pytest.mark.parametrize("value", [-1, True, "3", None])
def test_q12_a_queue_refuses_what_is_no_number(value, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        Queue(f"sqlite:///{tmp_path}/m.db", doubt_retries=value)
    assert caught.value.field == "doubt_retries"


def test_q12_the_setting_comes_to_the_queue(tmp_path):
    mailer = mailer_from_settings(
        {
            "mail.url": "memory:",
            "mail.queue_url": f"sqlite:///{tmp_path}/m.db",
            "mail.doubt_retries": "2",
        }
    )
    assert mailer.queue.doubt_retries == 2
    mailer.close()
