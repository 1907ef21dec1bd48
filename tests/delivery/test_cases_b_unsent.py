"""Mail that nobody commits: whoever forgot it is told."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import transaction
from databases import Recorder
from letters import letter
from pyramid.config import Configurator

from txmail import DummyMailer, Mailer, transport_from_url
from txmail.exceptions import TxmailError, UnsentMailWarning

NEVER = "handed in and never committed"

HEAD = """
import os, threading, transaction
from txmail import DummyMailer, Mailer, Message, transport_from_url
mailer = Mailer(transport_from_url("memory:"), default_sender="shop@example.com")
dummy = DummyMailer(default_sender="shop@example.com")
def message(subject="Order"):
    return Message(subject, ["ann@example.com"], "Thank you")
"""

#: scripts, and of how many messages each ends with a warning
SCRIPTS = {
    "a script that forgets": ("print(mailer.send(message()))", 1),
    "three of them": ("[print(mailer.send(message())) for _ in range(3)]", 3),
    "a manager of its own": (
        "tm = transaction.TransactionManager()\n"
        "print(mailer.bind(transaction_manager=tm).send(message()))",
        1,
    ),
    "a script that ends with an error": ("print(mailer.send(message())); 1 / 0", 1),
    "sys.exit": ("print(mailer.send(message())); raise SystemExit(0)", 1),
    "begin over it": ("print(mailer.send(message())); transaction.begin()", 1),
    "a with statement over it": (
        "print(mailer.send(message()))\nwith transaction.manager: pass",
        1,
    ),
    "a thread": (
        "t = threading.Thread(target=lambda: print(mailer.send(message())))\nt.start(); t.join()",
        1,
    ),
    "a dropped transaction": (
        "tm = transaction.TransactionManager()\n"
        "print(mailer.bind(transaction_manager=tm).send(message()))\n"
        "tm = None; import gc; gc.collect()",
        1,
    ),
    "committed": ("mailer.send(message()); transaction.commit()", 0),
    "aborted": ("mailer.send(message()); transaction.abort()", 0),
    "doomed and aborted": ("mailer.send(message()); transaction.doom(); transaction.abort()", 0),
    "a dummy": ("dummy.send(message()); dummy.enqueue(message())", 0),
    "taken back": ("s = transaction.savepoint(); mailer.send(message()); s.rollback()", 0),
    "a commit at the exit": (
        "import atexit; atexit.register(transaction.commit); mailer.send(message())",
        0,
    ),
    "a child that ends": (
        "mailer.send(message())\npid = os.fork()\nif not pid: raise SystemExit(0)\n"
        "os.waitpid(pid, 0); transaction.commit()",
        0,
    ),
    "a commit that failed": (
        "class Bad:\n"
        "    sortKey = lambda s: 'a'\n"
        "    tpc_begin = abort = tpc_abort = lambda s, t: None\n"
        "    def commit(s, t): raise ValueError\n"
        "transaction.get().join(Bad()); mailer.send(message())\n"
        "try: transaction.commit()\nexcept ValueError: pass",
        0,
    ),
}


#: the representatives: each takes a process
FIRST = ("a script that forgets", "a thread", "committed", "a commit at the exit", "a dummy")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FIRST else [pytest.mark.sweep]) for n in SCRIPTS],
)
def test_b14_a_script_that_never_commits_is_told_what_was_not_sent(name):
    """Kind: work that is lost without a word, because nobody has said that it is to be done."""
    script, count = SCRIPTS[name]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HEAD) + script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "default", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    ids = done.stdout.split()
    assert done.stderr.count(NEVER) == (1 if count else 0), done.stderr
    if count:
        assert "UnsentMailWarning" in done.stderr
        assert f"{count} message(s)" in done.stderr
        assert len(ids) == count
        assert all(id_ in done.stderr for id_ in ids)


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def unsent(caught):
    return [w for w in caught if issubclass(w.category, UnsentMailWarning)]


def test_b14_the_warning_carries_the_message_ids_and_points_at_the_begin(tm, caught):
    """Kind: the same, for who reads it with a program."""
    mailer = Mailer(transport_from_url("memory:"), transaction_manager=tm)
    tm.begin()
    ids = tuple(mailer.send(letter(number)) for number in range(30))
    tm.begin()
    (warning,) = unsent(caught)
    assert warning.message.message_ids == ids
    assert warning.filename == __file__
    assert "30 message(s)" in str(warning.message)
    assert issubclass(UnsentMailWarning, TxmailError)
    assert issubclass(UnsentMailWarning, UserWarning)


def by_begin(tm):
    tm.begin()


def by_with(tm):
    with tm:
        pass


def by_run(tm):
    tm.run(lambda: None)


def by_attempts(tm):
    for attempt in tm.attempts(2):
        with attempt:
            pass


@pytest.mark.parametrize("again", [by_begin, by_with, by_run, by_attempts])
@pytest.mark.parametrize("threads", [True, False])
def test_b14_whatever_begins_over_it_is_told_once(again, threads, caught):
    """Kind: the same, by every way to begin."""
    tm = transaction.ThreadTransactionManager() if threads else transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    again(tm)
    (warning,) = unsent(caught)
    assert "begin()" in str(warning.message)
    again(tm)
    gc.collect()
    assert len(unsent(caught)) == 1


@pytest.mark.parametrize("fails", ["", "commit", "vote", "finish"])
def test_b14_who_commits_or_aborts_is_told_nothing(tm, fails, caught):
    """Kind: the other side of it: an error has told already, or there is nothing to tell."""
    mailer = Mailer(transport_from_url("memory:"), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    if fails:
        tm.get().join(Recorder("a", fails=fails))
        with pytest.raises(Exception, match=fails):
            tm.commit()
    else:
        tm.commit()
    tm.begin()
    mailer.send(letter("two"))
    tm.abort()
    tm.begin()
    gc.collect()
    assert not unsent(caught)


def test_b14_a_thread_that_ends_is_told_unless_another_may_commit(caught):
    """Kind: the same, where it is not the process that ends."""
    own, shared = transaction.ThreadTransactionManager(), transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), transaction_manager=own)

    def work():
        mailer.send(letter("own"))
        mailer.bind(transaction_manager=shared).send(letter("shared"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (warning,) = unsent(caught)
    assert "thread" in str(warning.message)
    shared.commit()
    assert len(unsent(caught)) == 1


def test_b14_a_dummy_is_not_missed(tm, caught):
    """Kind: the other side of it: a test that ends."""
    DummyMailer(transaction_manager=tm).send(letter("one"))
    tm.begin()
    gc.collect()
    assert not unsent(caught)


@pytest.mark.parametrize("order", ["txmail first", "txmail last", "without", "a request.tm"])
def test_b14_pyramid_without_a_transaction_manager_says_so(order, caplog):
    """Kind: the same, where nobody reads the warnings of a process that never ends."""
    config = Configurator(settings={"mail.url": "memory:"})
    includes = {"txmail first": ["txmail", "pyramid_tm"], "txmail last": ["pyramid_tm", "txmail"]}
    for include in includes.get(order, ["txmail"]):
        config.include(include)
    if order == "a request.tm":
        config.add_request_method(lambda request: transaction.manager, "tm", reify=True)
    config.make_wsgi_app()
    said = [r for r in caplog.records if "no transaction manager" in r.getMessage()]
    assert len(said) == (1 if order == "without" else 0)


def test_b14_nor_does_it_for_a_dummy(caplog):
    """Kind: the other side of it."""
    config = Configurator()
    config.include("txmail.testing")
    config.make_wsgi_app()
    assert not caplog.records
