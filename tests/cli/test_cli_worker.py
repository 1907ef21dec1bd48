"""``txmail worker``: what it sends, how it ends, and what it says."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
import transaction

import txmail
from txmail import Message, mailer_from_settings
from txmail.testing import HANG, Callback

pytest.importorskip("sqlalchemy")

from txmail.queue.database.database import Database
from txmail.queue.queue import Queue
from txmail.queue.schema import metadata

ROOT = Path(txmail.__file__).parents[1]
PASSWORD = "hunter2"
BODY = "what only Ann may read"


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/mail.db"


@pytest.fixture
def worker(command):
    """Run ``txmail worker`` here; what it returned and said."""
    return functools.partial(command, "worker")


def fill(url, *recipients):
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.queue_url": url})
    manager = transaction.TransactionManager()
    bound = mailer.bind(transaction_manager=manager)
    with manager:
        for recipient in recipients:
            bound.enqueue(Message("News", [recipient], BODY, sender="app@example.com"))
    mailer.close()


def counts(url):
    queue = Queue(url)
    try:
        return queue.counts()
    finally:
        queue.close()


def people(number):
    return [f"r{n}@example.com" for n in range(number)]


@contextlib.contextmanager
def process(*arguments):
    """``txmail worker`` as a process; it is gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "txmail", "worker", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def said(started, text):
    """Wait for a line with `text` in it; what was said until then."""
    lines = []
    for line in started.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} was not said:\n{''.join(lines)}")


def test_once_sends_what_is_due_and_says_so_in_a_line_each(worker, server, url):
    fill(url, *people(3))
    code, out, error = worker("--once", "--queue-url", url, "--url", server.url)
    assert (code, out) == (0, "")
    assert sorted(m.recipients[0] for m in server.messages) == people(3)
    assert counts(url) == {"sent": 3}
    lines = [line for line in error.splitlines() if " INFO sent <" in line]
    assert len(lines) == 3
    assert all("via default to r" in line and "250 2.0.0" in line for line in lines)
    assert BODY not in error


def test_quiet_says_only_what_is_not_as_it_should_be(worker, server, url):
    fill(url, *people(2))
    server.refuse("r1@example.com")
    code, _, error = worker("--once", "-q", "--queue-url", url, "--url", server.url)
    assert code == 0
    (line,) = error.splitlines()
    assert "WARNING failed <" in line
    assert "r1@example.com: 550 5.1.1 no such user" in line


def test_a_limit_leaves_the_rest_in_the_queue(worker, server, url):
    fill(url, *people(5))
    assert worker("--once", "--limit", "2", "--queue-url", url, "--url", server.url)[0] == 0
    assert counts(url) == {"sent": 2, "ready": 3}


def test_a_server_that_is_down_leaves_all_in_the_queue_and_is_said_once(worker, url):
    fill(url, *people(5))
    code, _, error = worker("--once", "-q", "--queue-url", url, "--url", "smtp://127.0.0.1:1")
    assert code == 1
    assert counts(url) == {"ready": 5}
    assert sum("route default failed" in line for line in error.splitlines()) == 1


@pytest.mark.parametrize("option", [["--limit", "1"], ["--seconds", "1"]])
def test_a_bound_without_once_is_a_wrong_argument(worker, option, capsys, url):
    with pytest.raises(SystemExit) as caught:
        worker(*option, "--queue-url", url, "--url", "memory:")
    assert caught.value.code == 2
    assert "--once" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [["--limit", "0"], ["--limit", "x"], ["--seconds", "-1"], ["--metrics-port", "65536"]],
)
def test_a_number_that_is_none_is_a_wrong_argument(worker, option, capsys):
    with pytest.raises(SystemExit) as caught:
        worker("--once", *option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_the_settings_come_from_an_ini_file(worker, server, url, tmp_path):
    fill(url, *people(1))
    ini = tmp_path / "app.ini"
    ini.write_text(
        f"[app:main]\nmail.url = {server.url}\nmail.queue_url = sqlite:///%(here)s/mail.db\n"
        "mail.on_doubt = hold\nmail.default_sender = app@example.com\n"
    )
    assert worker("--once", "-c", str(ini))[0] == 0
    assert counts(url) == {"sent": 1}


def test_the_settings_come_from_the_environment(worker, server, url, monkeypatch):
    fill(url, *people(1))
    monkeypatch.setenv("TXMAIL_URL", server.url)
    monkeypatch.setenv("TXMAIL_QUEUE_URL", url)
    assert worker("--once")[0] == 0
    assert counts(url) == {"sent": 1}


def test_urls_of_the_command_line_come_before_those_of_the_file(worker, server, url, tmp_path):
    fill(url, *people(1))
    ini = tmp_path / "app.ini"
    ini.write_text(
        "[app:main]\nmail.host = nowhere.example.com\nmail.username = app\n"
        f"mail.password = {PASSWORD}\nmail.queue_path = %(here)s/other\n"
    )
    assert worker("--once", "-c", str(ini), "--queue-url", url, "--url", server.url)[0] == 0
    assert counts(url) == {"sent": 1}
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--queue-url"),
        (["--url", "memory:"], "--queue-url"),
        (["--queue-url", "sqlite:////nowhere/mail.db"], "--url"),
        (["--queue-url", f"nonsense {PASSWORD}", "--url", "memory:"], "queue_url"),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_not_shown(worker, arguments, named):
    code, out, error = worker("--once", *arguments)
    assert (code, out) == (2, "")
    assert named in error
    assert PASSWORD not in error


@pytest.mark.parametrize(("queue", "named"), [("session:", "--queue-url"), ("", "mail.queue_url")])
def test_an_ini_file_that_names_no_database_says_what_to_add(worker, tmp_path, queue, named):
    ini = tmp_path / "app.ini"
    ini.write_text(f"[app:main]\nmail.url = memory:\nmail.queue_url = {queue}\n")
    code, _, error = worker("--once", "-c", str(ini))
    assert code == 2
    assert named in error


@pytest.mark.parametrize("once", [["--once"], []])
def test_missing_tables_are_a_failure_that_says_what_to_do(worker, once, postgresql_url):
    database = Database.from_url(postgresql_url)
    with database.write(prepared=False) as connection:
        metadata.drop_all(connection)
    database.close()
    code, _, error = worker(*once, "--queue-url", postgresql_url, "--url", "memory:")
    assert code == 1
    assert "run txmail db init" in error


def test_a_database_that_is_not_there_is_a_failure_of_a_single_run(worker):
    url = f"postgresql://app:{PASSWORD}@127.0.0.1:1/mail"
    code, _, error = worker("--once", "--queue-url", url, "--url", "memory:")
    assert code == 1
    assert "127.0.0.1:1" in error
    assert PASSWORD not in error


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_on_the_wire_and_gives_back_the_rest(
    server, url, number, keyboard
):
    held, released = threading.Event(), threading.Event()
    server.on(".", Callback(lambda: (held.set(), released.wait(30))))
    fill(url, *people(40))
    try:
        with process("--queue-url", url, "--url", server.url) as started:
            assert held.wait(30)
            started.send_signal(number)
            said(started, f"{number.name}: finishing what is on the wire")
            released.set()
            said(started, "a worker has ended")
            assert started.wait(30) == 0
    finally:
        released.set()
    arrived = [m.recipients[0] for m in server.messages]
    assert arrived
    assert len(set(arrived)) == len(arrived)
    assert counts(url) == {"sent": len(arrived), "ready": 40 - len(arrived)}


def test_a_second_signal_ends_it_at_once(server, url):
    held = threading.Event()
    server.on(".", Callback(held.set))
    server.on(".", HANG, times=None)
    fill(url, "ann@example.com", "bob@example.com")
    with process("--queue-url", url, "--url", server.url) as started:
        assert held.wait(30)
        started.send_signal(signal.SIGTERM)
        said(started, "finishing")
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == -signal.SIGTERM


def test_it_goes_on_with_mail_that_comes_later(server, url):
    fill(url)
    with process("--queue-url", url, "--url", server.url) as started:
        said(started, "a worker has begun")
        fill(url, "ann@example.com")
        server.wait_for(lambda: server.messages, 30)
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0
    assert counts(url) == {"sent": 1}


def test_metrics_are_served_on_loopback(server, url):
    pytest.importorskip("prometheus_client")
    fill(url, "ann@example.com")
    with process("--queue-url", url, "--url", server.url, "--metrics-port", "0") as started:
        (line,) = said(started, "metrics at ")[-1:]
        said(started, "INFO sent <")
        address = line.split()[-1]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=30) as answer:
            text = answer.read().decode()
    assert 'txmail_deliveries_total{route="default",state="sent"} 1.0' in text
    assert "ann@example.com" not in text


def test_a_port_that_is_taken_is_a_wrong_argument(worker, server, url):
    pytest.importorskip("prometheus_client")
    arguments = ["--queue-url", url, "--url", server.url, "--metrics-port", str(server.port)]
    code, _, error = worker(*arguments)
    assert code == 2
    assert f"port {server.port}" in error


@pytest.mark.parametrize(
    ("missing", "extra"), [("sqlalchemy", "queue"), ("prometheus_client", "metrics")]
)
def test_without_its_extra_it_says_what_to_install(missing, extra, url):
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == {missing!r} else find(name)\n"
        "from txmail.cli import main\n"
        f"sys.exit(main(['worker', '--queue-url', {url!r}, '--url', 'memory:', "
        "'--metrics-port', '0']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"pip install 'txmail[{extra}]'" in done.stderr
