"""Q3, Q11, Q13, A17: workers that end by themselves, by a signal or an event, and soon."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commits import note
from queues import OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import PATIENCE, Heard, another, put, put_many, received, wait_for, working  # noqa: E402

import txmail  # noqa: E402
from txmail import transport_from_url  # noqa: E402
from txmail.queue.database import listener  # noqa: E402
from txmail.testing import Callback  # noqa: E402
from txmail.worker import run_once  # noqa: E402

ROOT = Path(txmail.__file__).parents[1]


# -- Q3

#: An application with a worker in a thread. Its end, a statement, is an argument.
APPLICATION = """
import atexit, multiprocessing, os, sys, threading, time
from txmail import mailer_from_settings, start_worker
told = os.fdopen(os.dup(0))  # a child of multiprocessing has no standard input
mailer = mailer_from_settings({"mail.url": sys.argv[2], "mail.queue_url": sys.argv[1]})
def begin():
    running = start_worker(mailer)
    told.readline()
    return running
"""
ENDS = {
    "the end of the program": "begin()",
    "sys.exit": "begin(); sys.exit(0)",
    "an exception": "begin(); raise SystemExit(0)",
    "a child, as a server forks it": """
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
else:
    begin(); sys.exit(0)
""",
    "a child of multiprocessing": """
child = multiprocessing.get_context("fork").Process(target=begin); child.start(); child.join()
""",
    "a thread that outlives the program": """
threading.Thread(target=told.readline).start(); start_worker(mailer)
while "sending" not in mailer.queue.counts():
    time.sleep(0.01)
""",
    "the mailer is closed first": "begin(); atexit.register(mailer.close)",
    "it was stopped before": "begin().stop()",
}


@pytest.mark.representative(every=8)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@kinds(OWN_SQLITE)
def test_q3_a_worker_in_a_thread_gives_back_what_it_has_when_its_process_ends(
    kind, make_queue, server, end
):
    """Kind: a process ends in good order, and leaves mail behind as if it had crashed."""
    app = make_queue(kind)
    put_many(app, "n", 150)
    reached, opened = threading.Event(), threading.Event()
    server.on(".", Callback(lambda: (reached.set(), opened.wait(PATIENCE))))
    url = app.engine.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", APPLICATION + end, url, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert reached.wait(PATIENCE)
        assert app.queue.counts()["sending"] > 1
        process.stdin.write(b"end\n")
        process.stdin.flush()
        opened.set()
        _, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaint) == (0, b"")
    found = app.queue.counts()
    assert set(found) <= {"ready", "sent"}
    assert found["sent"] == len(received(server)) >= 1


def test_q3_the_time_that_the_end_of_a_process_takes_is_bounded(make_queue, memory, monkeypatch):
    """What is on the wire then has no reply, and the process that had it is dead: see Q1."""
    from txmail.worker import worker as loop

    app = make_queue(OWN_SQLITE)
    running = loop.RunningWorker(loop.Worker(app.queue, memory))
    waited = []
    join = running._thread.join
    monkeypatch.setattr(running._thread, "join", lambda s=None: (waited.append(s), join(s)))
    running._end()
    assert waited == [loop.LAST_CHANCE]
    assert not running.running


# -- A17


def ends(url, server, number, *, ignored=False):
    """How ``txmail worker`` ends by the signal `number`, once it has something on the wire."""

    def before():
        # A test runner in the background of a shell is started to ignore some of them itself.
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    reached, opened = threading.Event(), threading.Event()
    server.on(".", Callback(lambda: (reached.set(), opened.wait(PATIENCE))))
    arguments = ["worker", "--queue-url", url, "--url", server.url]
    with subprocess.Popen(
        [sys.executable, "-m", "txmail", *arguments],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=before,
    ) as process:
        try:
            assert reached.wait(PATIENCE)
            process.send_signal(number)
            if ignored:
                process.send_signal(signal.SIGTERM)
            said = b""
            while b"finishing" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            opened.set()
            said += process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    return process.returncode, said.decode()


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGTERM", "SIGINT"])
def test_a17_every_signal_that_means_the_end_has_it_finish(make_queue, server, name):
    """Kind: a signal that ends programs by default ends the worker in the middle."""
    app = make_queue(OWN_SQLITE)
    put_many(app, "n", 40)
    url = app.engine.url.render_as_string(hide_password=False)
    code, said = ends(url, server, signal.Signals[name])
    assert code == 0
    assert f"{name}: finishing what is on the wire" in said
    assert set(app.queue.counts()) <= {"ready", "sent"}


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGQUIT"])
def test_a17_a_signal_that_it_was_started_to_ignore_it_ignores(make_queue, server, name):
    """As ``nohup`` has it ignore SIGHUP, and a shell the keyboard in the background."""
    app = make_queue(OWN_SQLITE)
    put_many(app, "n", 2)
    number = signal.Signals[name]
    url = app.engine.url.render_as_string(hide_password=False)
    code, said = ends(url, server, number, ignored=True)
    assert code == 0
    assert "SIGTERM: finishing" in said
    assert name not in said


# -- Q13


@kinds(*OWN_QUEUES)
def test_q13_a_run_starts_no_thread_that_would_have_to_be_waited_for(
    kind, make_queue, memory, monkeypatch
):
    """Kind: something that is soon over waits for the end of something that only looks."""
    app = make_queue(kind)
    started = []
    monkeypatch.setattr(listener.Listening, "start", lambda self: started.append(self))
    assert run_once(app.queue, memory) == 0
    put(app, note("a"))
    assert run_once(app.queue, memory, seconds=60) == 1
    assert run_once(app.queue, memory, limit=1) == 0
    assert started == []


@kinds(*OWN_QUEUES)
def test_q13_a_worker_that_stops_does_not_wait_for_a_poll(kind, make_queue, memory, monkeypatch):
    app = make_queue(kind)
    monkeypatch.setattr(listener, "LOOK", PATIENCE * 10)
    monkeypatch.setattr(listener, "AGAIN", PATIENCE * 10)
    monkeypatch.setattr(listener.Bell.wait, "__defaults__", (None, PATIENCE * 10))
    with working(app.queue, memory) as worker:
        worker.wait_rounds()
        wait_for(
            lambda: app.queue.host.notifier._listening._thread is not None, "it does not listen"
        )
    app.queue.host.notifier._listening._thread.join(PATIENCE)
    assert not app.queue.host.notifier._listening._thread.is_alive()


@kinds(OWN_POSTGRESQL)
def test_q13_who_listens_hears_before_the_poll_ends(kind, make_queue, memory, monkeypatch):
    app = make_queue(kind)
    monkeypatch.setattr(listener.Bell.wait, "__defaults__", (None, PATIENCE * 10))
    monkeypatch.setattr("txmail.worker.dispatcher.POLL", PATIENCE * 10)
    queue = another(app)
    with working(queue, memory) as worker:
        worker.wait_rounds()
        put(app, note("a"))
        wait_for(lambda: app.queue.counts() == {"sent": 1}, "it has not heard of it")
    queue.close()


@pytest.mark.parametrize("seconds", [None, 60])
@kinds(*OWN_QUEUES)
def test_q13_a_run_ends_early_when_its_event_is_set_and_gives_back(
    kind, make_queue, server, seconds
):
    app = make_queue(kind)
    put_many(app, "n", 150)
    stop = threading.Event()
    server.on(".", Callback(stop.set))
    smtp = transport_from_url(server.url)
    tried = run_once(app.queue, smtp, seconds=seconds, stop=stop)
    smtp.close()
    assert 1 <= tried < 150
    assert app.queue.counts() == {"ready": 150 - tried, "sent": tried}


@kinds(OWN_SQLITE)
def test_q13_a_run_whose_event_is_set_does_nothing(kind, make_queue, memory):
    app = make_queue(kind)
    put(app, note("a"))
    stop = threading.Event()
    stop.set()
    assert run_once(app.queue, memory, stop=stop) == 0
    assert app.queue.counts() == {"ready": 1}


def test_q13_a_run_that_waits_for_a_slow_server_sees_its_event(make_queue, server):
    app = make_queue(OWN_SQLITE)
    put_many(app, "n", 150)
    stop, opened = threading.Event(), threading.Event()
    server.on(".", Callback(lambda: (stop.set(), opened.wait(PATIENCE))))
    smtp = transport_from_url(server.url)
    thread = threading.Thread(target=lambda: run_once(app.queue, smtp, stop=stop), daemon=True)
    thread.start()
    wait_for(lambda: app.queue.counts().get("ready", 0) > 100, "it does not give back")
    opened.set()
    thread.join(PATIENCE)
    smtp.close()
    assert "sending" not in app.queue.counts()


# -- Q11: the thread that listens


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    "error",
    [RuntimeError("psycopg"), AttributeError("closed"), ValueError(), OSError(9), KeyError()],
)
@kinds(*OWN_QUEUES)
def test_q11_a_thread_that_listens_begins_again_whatever_it_meets(
    kind, make_queue, memory, monkeypatch, error
):
    """Kind: a thread that nobody looks after dies of an error that nobody has foreseen."""
    app = make_queue(kind)
    monkeypatch.setattr(listener, "AGAIN", 0.01)
    queue = another(app)
    listen, failed = queue.database.listen, []

    def fail(*args):
        if len(failed) < 2:
            failed.append(True)
            raise error
        return listen(*args)

    monkeypatch.setattr(queue.database, "listen", fail)
    monkeypatch.setattr("txmail.worker.dispatcher.POLL", PATIENCE * 10)
    with Heard("txmail.queue") as heard, working(queue, memory):
        heard.wait_for(f"cannot listen: {type(error).__name__}; trying again")
        wait_for(lambda: len(failed) == 2, "it is not tried again")
        wait_for(lambda: queue.host.notifier._listening._thread.is_alive(), "it has died")
    queue.close()


@kinds(OWN_SQLITE)
def test_q11_what_a_listener_raises_does_not_end_it(kind, make_queue, memory, monkeypatch):
    app = make_queue(kind)
    monkeypatch.setattr(listener, "AGAIN", 0.01)
    queue = another(app)
    calls = []

    def raises():
        calls.append(True)
        raise RuntimeError("a listener of somebody else")

    queue.host.notifier.listeners.append(raises)
    with working(queue, memory):
        put(app, note("a"))
        wait_for(lambda: calls, "it has heard of nothing")
        before = len(calls)
        put(app, note("b"))
        wait_for(lambda: len(calls) > before or app.queue.counts() == {"sent": 2}, "it has died")
        assert queue.host.notifier._listening._thread.is_alive()
    queue.host.notifier.listeners.remove(raises)
    queue.close()
