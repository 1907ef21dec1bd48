"""A18, A19: routes that are paused: who is told, for how long mail waits, who tries them again."""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.request

import pytest
import transaction
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import (  # noqa: E402
    Heard,
    another,
    change,
    claim,
    put,
    put_many,
    received,
    wait_for,
    working,
)

from txmail import Message, mailer_from_settings, transport_from_url  # noqa: E402
from txmail.cli import main  # noqa: E402
from txmail.events import Events  # noqa: E402
from txmail.exceptions import QueueUnavailable  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.inspect import read_health  # noqa: E402
from txmail.queue.sql import route_state  # noqa: E402
from txmail.testing import CLOSE, RESET, ScriptedServer, then  # noqa: E402
from txmail.worker import dispatcher, run_once  # noqa: E402

HOUR = 3600.0
DOWN = then("421 4.3.2 down", CLOSE)


@pytest.fixture(autouse=True)
def verbose(caplog):
    caplog.set_level(logging.INFO, "txmail")


def oldest(app) -> float:
    return read_health(app.queue.database).oldest_due


# -- A19: for how long


FAULTS = {"connect": DOWN, "EHLO": DOWN, "MAIL": DOWN, "RCPT": RESET}


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("verb", FAULTS)
@kinds(*OWN_QUEUES)
def test_a19_a_route_that_fails_makes_no_mail_younger(app, server, smtp, clock, verb):
    """Kind: the age of what waits is measured by a time that each failure moves."""
    server.on(verb, FAULTS[verb], times=None)
    put_many(app, "n", 150)
    for _ in range(4):
        run_once(app.queue, smtp, clock=clock)
        clock.advance(1000.0)
    assert oldest(app) == pytest.approx(4000.0, abs=1.0)
    assert read_health(app.queue.database).deliveries["ready"] == 150
    server.clear()
    assert run_once(app.queue, smtp, clock=clock) == 150
    assert oldest(app) == 0.0


@kinds(OWN_SQLITE)
def test_a19_what_a_server_put_off_for_itself_counts_from_its_next_time(app, server, smtp, clock):
    put(app, note("a"))
    server.refuse("a@example.net", "450 4.2.0 greylisted")
    run_once(app.queue, smtp)
    due = app.deliveries()["a@example.net"].due / 1000
    clock.now = due - 1
    assert oldest(app) == 0.0
    clock.now = due + 50
    assert oldest(app) == pytest.approx(50.0, abs=1.0)
    smtp.close()
    server.on("connect", DOWN, times=None)
    for _ in range(3):
        run_once(app.queue, smtp, clock=clock)
        clock.advance(1000.0)
    assert oldest(app) == pytest.approx(3050.0, abs=1.0)


@kinds(OWN_SQLITE)
def test_a19_what_is_for_later_counts_from_then_on(app, clock):
    put(app, note("a"), not_before=clock.at(HOUR))
    clock.advance(HOUR - 1)
    assert oldest(app) == 0.0
    clock.advance(61)
    assert oldest(app) == pytest.approx(60.0, abs=1.0)


@kinds(OWN_SQLITE)
def test_a19_what_no_route_takes_grows_old_too(app, clock):
    from txmail.worker import Route

    route = Route.to("one", transport_from_url("memory:"), domains=["one.example"])
    put(app, note("a"))
    for _ in range(3):
        run_once(app.queue, [route])
        clock.advance(1000.0)
    assert oldest(app) == pytest.approx(3000.0, abs=1.0)


@kinds(OWN_SQLITE)
def test_a19_what_a_worker_has_and_does_not_send_grows_old_too(app, clock):
    put_many(app, "n", 5)
    claim(app, 5, lease=10_000.0)
    clock.advance(500.0)
    assert oldest(app) == pytest.approx(500.0, abs=1.0)


@kinds(*OWN_QUEUES)
def test_a19_what_was_given_back_is_as_old_as_before(app, clock, server, smtp):
    put_many(app, "n", 3)
    clock.advance(100.0)
    claim(app, 3, lease=10.0)
    clock.advance(100.0)
    server.on("connect", DOWN, times=None)
    run_once(app.queue, smtp, clock=clock)
    assert oldest(app) == pytest.approx(200.0, abs=1.0)


# -- A19: who is told


@pytest.fixture
def queue_url(tmp_path):
    return f"sqlite:///{tmp_path}/mail.db"


def fill(url, count):
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.queue_url": url})
    manager = transaction.TransactionManager()
    with manager:
        for number in range(count):
            message = Message("News", [f"n{number}@example.com"], "...", sender="a@example.com")
            mailer.bind(transaction_manager=manager).enqueue(message)
    mailer.close()


def test_a19_a_run_of_the_command_that_leaves_mail_behind_says_so(queue_url, capsys):
    """500 mails, and a server that is down: it said "0 deliveries", and that all was well."""
    fill(queue_url, 500)
    with ScriptedServer() as server:
        url = server.url
    once = ["worker", "--once", "-q", "--queue-url", queue_url, "--url", url]
    assert main(once) == 1
    said = capsys.readouterr().err
    assert "route default is paused, next try in " in said
    assert "500 delivery(s) wait for it: cannot connect" in said
    health = ["doctor", "--health", "--workers", "0", "--queue-url", queue_url]
    assert main(health) == 1
    assert "BAD  route default is paused" in capsys.readouterr().out
    assert main(once) == 1


def test_a19_a_run_that_sends_all_is_well(queue_url, server, capsys):
    fill(queue_url, 3)
    assert main(["worker", "--once", "--queue-url", queue_url, "--url", server.url]) == 0
    assert main(["doctor", "--health", "--workers", "0", "--queue-url", queue_url]) == 0
    # Nothing waits for it: that it fails is nobody's matter.
    with ScriptedServer() as gone:
        url = gone.url
    assert main(["worker", "--once", "--queue-url", queue_url, "--url", url]) == 0
    capsys.readouterr()


@kinds(OWN_SQLITE)
def test_a19_mail_that_waits_for_room_or_for_itself_is_no_failure(app, server, smtp):
    put(app, note("a"))
    server.refuse("a@example.net", "450 4.2.0 greylisted")
    run_once(app.queue, smtp)
    assert read_health(app.queue.database).problems(workers=0) == []


# -- A18


def paused(app, server, smtp, clock, *, minutes=10, state="open", reason="down"):
    """A route that was left alone for long, a while ago."""
    wanted = put_many(app, "n", 100)
    server.on("connect", DOWN, times=None)
    run_once(app.queue, smtp)
    now = int(clock.now * 1000)
    values = {"until": now + minutes * 60_000, "changed": now - 120_000, "reason": reason}
    change(app, schema.route.update().values(state=state, failures=9, **values))
    delivery = schema.delivery
    change(app, delivery.update().values(due=now + minutes * 60_000))
    return wanted


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("state", [route_state.OPEN, route_state.STOPPED])
@kinds(*OWN_QUEUES)
def test_a18_a_worker_that_begins_tries_a_paused_route_and_all_goes_out(
    app, server, smtp, clock, state, monkeypatch
):
    """Kind: what was mended waits for the end of a pause, and nobody can say that it is mended."""
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    wanted = paused(app, server, smtp, clock, state=state)
    server.clear()
    with working(app.queue, smtp):
        wait_for(lambda: app.queue.counts() == {"sent": 100}, "it waits for the end of the pause")
    assert sorted(received(server)) == sorted(wanted)


@kinds(OWN_SQLITE)
def test_a18_a_worker_that_begins_in_vain_pauses_again_and_says_for_how_long(
    app, server, smtp, clock, monkeypatch
):
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    paused(app, server, smtp, clock)
    before = len(server.connections)
    with Heard("txmail") as heard, working(app.queue, smtp, clock=clock) as worker:
        heard.wait_for("route default was paused, and is tried now: down")
        heard.wait_for("route default failed, next try in ")
        worker.wait_rounds(10)
    assert len(server.connections) - before <= 2
    assert app.queue.counts() == {"ready": 100}
    (row,) = app.read(sa.select(schema.route))
    assert (row.state, row.failures) == ("open", 10)


@kinds(OWN_SQLITE)
def test_a18_others_that_begin_within_a_minute_do_not(app, server, smtp, clock, monkeypatch):
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    paused(app, server, smtp, clock)
    with Heard("txmail") as heard, working(app.queue, smtp, clock=clock):
        heard.wait_for("route default failed, next try in ")
        wait_for(lambda: app.read(sa.select(schema.route))[0].failures == 10, "it is not written")
    before = len(server.connections)
    queue = another(app)
    for _ in range(3):
        with Heard("txmail") as heard, working(queue, smtp, clock=clock) as worker:
            heard.wait_for("route default is paused, next try in ")
            worker.wait_rounds(3)
    assert len(server.connections) == before
    clock.advance(61.0)
    with Heard("txmail") as heard, working(queue, smtp, clock=clock):
        heard.wait_for("route default was paused, and is tried now")
    queue.close()


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(
    "reason",
    [
        "535 5.7.8 wrong password",
        "534 5.7.9 stronger",
        "538 encryption",
        "not tried again for 5 min",
    ],
)
@kinds(OWN_SQLITE)
def test_a18_a_route_without_a_login_is_tried_whatever_its_reason_is_called(
    app, server, smtp, clock, reason, monkeypatch
):
    """A login that was refused is told by what was tried: see ``test_cases_a_secret.py``."""
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    wanted = paused(app, server, smtp, clock, state=route_state.STOPPED, reason=reason)
    server.clear()
    with working(app.queue, smtp, clock=clock):
        wait_for(lambda: app.queue.counts() == {"sent": 100}, "it waits for the end of the pause")
    assert sorted(received(server)) == sorted(wanted)


@kinds(*OWN_QUEUES)
def test_a18_a_run_keeps_the_pause(app, server, smtp, clock):
    paused(app, server, smtp, clock)
    server.clear()
    before = len(server.connections)
    assert run_once(app.queue, smtp, clock=clock) == 0
    assert len(server.connections) == before
    clock.advance(601.0)
    assert run_once(app.queue, smtp, clock=clock) == 100


# -- A19: probes


@pytest.fixture
def ask(make_queue):
    """Ask for a page of a worker's metrics; the status."""
    prometheus = pytest.importorskip("txmail.integrations.prometheus")
    app = make_queue(OWN_SQLITE)
    server = prometheus.serve(prometheus.Metrics(app.queue, Events()), 0)

    def ask(page):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{page}") as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    ask.app = app
    yield ask
    server.stop()


def test_a19_a_probe_that_would_start_it_again_does_not_ask_for_mail_servers(ask):
    """What is down elsewhere is for people, and no reason to start a worker again."""
    with ScriptedServer() as gone:
        smtp = transport_from_url(gone.url)
    put_many(ask.app, "n", 3)
    with working(ask.app.queue, smtp):
        wait_for(lambda: ask("/health") == 503, "it is called well")
        assert ask("/live") == 200
    assert ask("/live") == 200
    smtp.close()


@pytest.mark.parametrize(("seconds", "status"), [(0, 200), (60, 200), (119, 200), (121, 503)])
def test_a19_a_worker_that_does_not_go_on_is_not_live(ask, seconds, status):
    ask.app.queue.attended = time.monotonic() - seconds
    assert ask("/live") == status


def test_a19_a_queue_that_cannot_be_read_is_no_reason_to_start_again(ask, monkeypatch):
    def fails(*_, **__):
        raise QueueUnavailable("it is down")

    monkeypatch.setattr(ask.app.queue.database, "read", fails)
    assert (ask("/live"), ask("/health")) == (200, 503)
