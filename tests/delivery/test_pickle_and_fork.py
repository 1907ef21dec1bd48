"""Mailers and transports in other processes: as a pickle, after a fork, under gunicorn."""

from __future__ import annotations

import contextlib
import copy
import http.client
import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import transaction
from commits import commit, note
from databases import ZodbDatabase
from forking import in_child

from txmail import DummyMailer, Mailer, Message, mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError
from txmail.mailer import DebugMailer
from txmail.testing import ScriptedServer

USER, PASSWORD = "ann", "s3cret?>word"
ONE = note("one")


@pytest.fixture
def tls_server(authority):
    """Takes mail from Ann, over TLS."""
    with ScriptedServer(
        tls_context=authority.server(), credentials={USER: PASSWORD}, login_required=True
    ) as server:
        yield server


def password():
    return PASSWORD


def settings_for(server, authority, **settings):
    url = f"smtp://127.0.0.1:{server.port}?tls=required&cafile={authority.cafile}"
    settings = {"url": url, "username": USER, **settings}
    return {f"mail.{name}": value for name, value in settings.items()}


@pytest.fixture
def made(tls_server, authority):
    """Make mailers that use `transaction.manager`."""
    mailers = []

    def make(**settings):
        mailers.append(mailer_from_settings(settings_for(tls_server, authority, **settings)))
        return mailers[-1]

    yield make
    transaction.abort()
    for mailer in mailers:
        mailer.close()


def sources(tmp_path, monkeypatch):
    """A password in each kind of source."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    monkeypatch.setenv("TXMAIL_TEST_PASSWORD", PASSWORD)
    return ["env:TXMAIL_TEST_PASSWORD", f"file:{file}", f"{__name__}:password", password]


def again(thing):
    return pickle.loads(pickle.dumps(thing))


# Pickles and copies


def test_a_pickled_mailer_asks_for_its_password_and_connects_on_first_use(
    made, tls_server, tmp_path, monkeypatch
):
    for number, source in enumerate(sources(tmp_path, monkeypatch), 1):
        mailer = made(password_from=source)
        assert commit(transaction.manager, mailer, ONE).statuses == ["accepted"]
        pickled = pickle.dumps(mailer)
        assert PASSWORD.encode() not in pickled
        twin = pickle.loads(pickled)
        assert len(tls_server.connections) == 2 * number - 1
        assert twin.last_outcomes == ()
        assert commit(transaction.manager, twin, ONE).statuses == ["accepted"]
        assert len(tls_server.connections) == 2 * number
        twin.close()


def test_a_pickled_password_is_gone_and_first_use_says_whose_it_was(made, tls_server):
    twin = again(made(password=PASSWORD))
    twin.send(ONE)
    with pytest.raises(ConfigurationError, match=r"ann@127\.0\.0\.1: .*password_from"):
        transaction.commit()
    transaction.abort()
    with pytest.raises(ConfigurationError, match=r"ann@127\.0\.0\.1"):
        again(made(password=PASSWORD)._direct.transport).open()
    tls_server.wait_closed()
    assert tls_server.messages == []
    assert not any("AUTH" in line for line in tls_server.commands)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_in_the_process_keeps_the_password_and_shares_no_connection(
    made, tls_server, copied
):
    mailer = made(password=PASSWORD)
    commit(transaction.manager, mailer, ONE)
    twin = copied(mailer)
    transport = copied(mailer._direct.transport)
    assert commit(transaction.manager, twin, ONE).statuses == ["accepted"]
    session = transport.open()
    assert [str(o.status) for o in session.send([ONE])] == ["accepted"]
    session.close()
    assert [m.connection for m in tls_server.messages] == [1, 2, 3]
    for other in (twin, transport):
        other.close()
    assert commit(transaction.manager, mailer, ONE).statuses == ["accepted"]
    assert tls_server.messages[-1].connection == 1


def test_options_survive_and_listeners_do_not():
    mailer = Mailer(
        transport_from_url("memory:"),
        default_sender="shop@example.com",
        preflight="never",
        transient=True,
        commit_timeout=3,
    )
    told = []
    mailer.events.subscribe(told.append)
    twin = again(mailer)
    delivery = twin._direct
    assert (delivery.preflight, delivery.transient, delivery.commit_timeout) == ("never", True, 3)
    assert twin.default_sender == "shop@example.com"
    assert twin.transaction_manager is transaction.manager
    with transaction.manager:
        twin.send(Message("Hello", ["ann@example.com"], "Hello."))
    assert [o.status for o in twin.last_outcomes] == ["accepted"]
    assert told == []
    assert mailer.last_outcomes == ()


def test_a_mailer_of_another_transaction_manager_is_not_pickled(tm):
    """It would send with the transactions of somebody else where it is loaded."""
    mailer = Mailer(transport_from_url("memory:"))
    with pytest.raises(ConfigurationError, match="transaction manager of its own"):
        pickle.dumps(mailer.bind(transaction_manager=tm))
    for copied in (copy.copy, copy.deepcopy):
        assert copied(mailer.bind(transaction_manager=tm)).transaction_manager is tm


@pytest.mark.parametrize(
    "url",
    [
        *("memory:", "file://{}", "console:", "sendmail:///bin/true", "smtp://localhost"),
        *("smtps://mx.example.com", "smtp://localhost memory:"),
    ],
)
def test_every_transport_of_a_mailer_can_be_pickled(url, tmp_path):
    mailer = mailer_from_settings({"mail.url": url.format(tmp_path / "mails")})
    twin = again(mailer)
    assert repr(twin) == repr(mailer)
    assert pickle.dumps(twin) == pickle.dumps(again(twin))


def test_a_certificate_that_is_not_there_fails_the_first_use_and_not_the_loading(
    made, tmp_path, authority
):
    here = tmp_path / "ca.pem"
    here.write_bytes(authority.cafile.read_bytes())
    url = "smtp://mx.example.com"
    pickled = pickle.dumps(made(password_from=password, cafile=str(here), url=url))
    here.unlink()
    twin = pickle.loads(pickled)
    twin.send(ONE)
    with pytest.raises(ConfigurationError, match="cafile"):
        transaction.commit()
    transaction.abort()


def test_the_other_mailers_can_be_pickled(tmp_path):
    dummy = DummyMailer(default_sender="shop@example.com")
    with transaction.manager:
        dummy.send(Message("Hello", ["ann@example.com"], "Hello."))
    dummy.refuse("*")
    for twin in (again(dummy), again(again(dummy))):
        assert (twin.outbox, twin.queue, twin.pending, twin.envelopes) == ([], [], [], [])
        with transaction.manager:
            twin.send(Message("Hello", ["ann@example.com"], "Hello."))
        assert len(twin.outbox) == 1
    assert len(dummy.outbox) == 1

    debug = again(DebugMailer(tmp_path / "mails", default_sender="shop@example.com"))
    with transaction.manager:
        debug.send(Message("Hello", ["ann@example.com"], "Hello."))
    assert len(list((tmp_path / "mails").glob("*.eml"))) == 1


def test_a_mailer_kept_on_a_persistent_object_sends_after_it_was_loaded(made, tls_server, tmp_path):
    def stored():
        return b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    database = ZodbDatabase(tmp_path, transaction.manager)
    try:
        root = database.connection.root()
        root["mailer"] = made(password_from=password)
        root["other"] = made(password=PASSWORD)
        transaction.commit()
    finally:
        database.close()
    assert PASSWORD.encode() not in stored()

    database = ZodbDatabase(tmp_path, transaction.manager)
    try:
        root = database.connection.root()
        mailer = root["mailer"]
        root["counter"] = 1
        mailer.send(ONE)
        transaction.commit()
        assert len(tls_server.messages) == 1
        # To have sent is no change of the object, and to change it stores no connection.
        root["mailer"] = mailer
        transaction.commit()
        root["other"].send(ONE)
        with pytest.raises(ConfigurationError, match=r"ann@127\.0\.0\.1"):
            transaction.commit()
        transaction.abort()
        mailer.close()
    finally:
        database.close()
    assert PASSWORD.encode() not in stored()
    assert len(tls_server.messages) == 1


# Forks


def test_parent_and_child_send_each_over_a_connection_of_its_own(made, tls_server):
    mailer = made(password_from=password)
    assert commit(transaction.manager, mailer, ONE).statuses == ["accepted"]
    before = tls_server.connections[0].octets

    def work():
        found = commit(transaction.manager, mailer, note("child")).statuses
        mailer.close()
        return found

    assert in_child(work) == "['accepted']"
    # Not an octet on the parent's TLS session, not even a farewell: it would be the end of it.
    assert tls_server.connections[0].octets == before
    assert not tls_server.connections[0].closed
    assert commit(transaction.manager, mailer, note("parent")).statuses == ["accepted"]
    assert [(m.sender, m.connection) for m in tls_server.messages] == [
        ("one@example.com", 1),
        ("child@example.com", 2),
        ("parent@example.com", 1),
    ]
    assert len(tls_server.connections) == 2


def test_a_fork_within_a_transaction_leaves_it_to_the_parent(made, tls_server):
    mailer = made(password_from=password)
    transaction.begin()
    mailer.send(ONE)

    def work():
        transaction.abort()
        return commit(transaction.manager, mailer, note("child")).statuses

    assert in_child(work) == "['accepted']"
    transaction.commit()
    assert sorted(m.sender for m in tls_server.messages) == ["child@example.com", "one@example.com"]


def test_a_child_may_log_in_while_the_parent_does(made, tls_server):
    mailer = made(password_from=password)
    begun, go_on = threading.Event(), threading.Event()
    transport = mailer._direct.transport

    def hold():
        with transport._logins.one(10):
            begun.set()
            go_on.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begun.wait(10)
    try:
        found = in_child(lambda: commit(transaction.manager, mailer, ONE).statuses)
        assert found == "['accepted']"
    finally:
        go_on.set()
        holder.join(10)


def test_many_children_at_once_use_no_connection_twice(made, tls_server):
    """As a server that forks its workers after it has sent mail itself."""
    mailer = made(password_from=password)
    commit(transaction.manager, mailer, note("master"))
    reading, writing = os.pipe()
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                os.close(writing)
                os.read(reading, 1)  # until all are there
                for turn in range(3):
                    ended = commit(transaction.manager, mailer, note(f"w{number}-{turn}"))
                    assert ended.statuses == ["accepted"]
                code = 0
            os._exit(code)
        children.append(child)
    os.close(writing)
    os.close(reading)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0]
    assert commit(transaction.manager, mailer, note("master")).statuses == ["accepted"]
    used = {}
    for message in tls_server.messages:
        who = message.sender.partition("@")[0].partition("-")[0]
        used.setdefault(who, set()).add(message.connection)
    assert len(tls_server.messages) == 2 + 9
    assert used.pop("master") == {1}
    assert sorted(connection for (connection,) in used.values()) == [2, 3, 4]


APPLICATION = """
import os
import transaction
from txmail import Message, mailer_from_settings

mailer = mailer_from_settings({"mail.url": os.environ["MAIL_URL"],
                               "mail.default_sender": "shop@example.com"})

def send(subject):
    with transaction.manager:
        mailer.send(Message(subject, ["ann@example.com"], "Hello."))

send(f"master {os.getpid()}")

def application(environ, start_response):
    send(f"worker {os.getpid()}")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


def test_gunicorn_s_preforked_workers_send(tls_server, authority, tmp_path):
    """The application is loaded, and sends, before the workers are forked (``preload``)."""
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    (tmp_path / "shop.py").write_text(APPLICATION)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    root = Path(__file__).parents[2]
    url = f"smtp://{USER}:s3cret%3F%3Eword@127.0.0.1:{tls_server.port}"
    with listener:
        master = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"),
                *("--bind", f"fd://{listener.fileno()}", "--no-control-socket", "shop:application"),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "MAIL_URL": f"{url}?tls=required&cafile={authority.cafile}",
            },
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            workers = set()
            for _ in range(200):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/")
                response = connection.getresponse()
                assert response.status == 200
                workers.add(response.read())
                connection.close()
                if len(workers) == 2:
                    break
        finally:
            master.send_signal(signal.SIGTERM)
            _, errors = master.communicate(timeout=30)
    assert len(workers) == 2, errors.decode()
    by_connection = {}
    for message in tls_server.messages:
        subject = message.content.partition(b"Subject: ")[2].partition(b"\r\n")[0]
        by_connection.setdefault(message.connection, set()).add(subject)
    assert len(by_connection) == 3
    assert all(len(subjects) == 1 for subjects in by_connection.values())
    assert {s.split()[1] for (s,) in by_connection.values()} > workers
