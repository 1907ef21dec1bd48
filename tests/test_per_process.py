"""State that a forked child must not share with its parent: one mechanism, used everywhere."""

import ast
import contextlib
import io
import os
import threading
from pathlib import Path

import pytest
from forking import in_child

import txmail
from txmail.common.per_process import PerProcess, this_process
from txmail.transports.local.console import ConsoleTransport

PACKAGE = Path(txmail.__file__).parent
#: The files that may ask for the process or for forks themselves, and why.
OWN_WAYS = {
    "common/per_process.py": "it is the mechanism",
    "common/system.py": "it says what an operating system lacks",
    "queue/process_identity.py": "the process id is what it is about",
    "queue/database/fork_guard.py": "it has forks wait, and keeps no state over one",
}
ASKS = {"getpid", "register_at_fork", "at_fork"}


def test_a_child_has_another_mark_and_a_grandchild_another_again():
    mine = this_process()

    def child():
        inner = this_process()
        return in_child(lambda: len({mine, inner, this_process()}))

    assert mine == this_process()
    assert in_child(child) == "3"


def test_a_value_is_made_once_in_each_process():
    made = []
    value = PerProcess(lambda: made.append(1) or [os.getpid()])
    assert value.known() is None
    assert value.get() is value.get() is value.known()
    assert len(made) == 1
    assert in_child(lambda: value.known() is None and value.get() == [os.getpid()]) == "True"
    assert in_child(lambda: value.get() and len(made)) == "2"
    assert value.get() == [os.getpid()]


def test_a_child_keeps_its_parents_value_and_forgets_its_own_only():
    value = PerProcess(list)
    mine = value.get()

    def child():
        value.get()
        return value.forget() is not mine and value.forget() is None and len(value._values)

    assert in_child(child) == "1"
    assert value.forget() is mine
    assert value.get() is not mine


def test_a_value_that_cannot_be_made_is_made_with_the_next_try():
    tries = iter([ZeroDivisionError, int])
    value = PerProcess(lambda: _made(next(tries)))
    with pytest.raises(ZeroDivisionError):
        value.get()
    assert value.get() == 0


def _made(kind):
    if issubclass(kind, Exception):
        raise kind
    return kind()


def test_no_other_file_of_the_package_asks_for_the_process():
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ASKS)
        or (isinstance(node, ast.Name) and node.id in ASKS)
    }
    assert found <= set(OWN_WAYS), "use txmail.common.per_process"


@contextlib.contextmanager
def held(lock):
    """Another thread holds `lock`."""
    holds, ends = threading.Event(), threading.Event()

    def hold():
        with lock:
            holds.set()
            ends.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert holds.wait(10)
        yield
    finally:
        ends.set()
        thread.join()


def test_a_child_writes_to_the_console_although_a_thread_was_writing_at_the_fork():
    stream = io.StringIO()
    console = ConsoleTransport(stream)
    with held(console._lock.get()):
        assert in_child(lambda: console.write("one") or stream.getvalue()) == "one"


def test_a_child_opens_its_queue_although_a_thread_was_told_of_the_file_at_the_fork(tmp_path):
    pytest.importorskip("sqlalchemy")
    from txmail.queue.database.sqlite_file import SqliteFile

    file = SqliteFile(str(tmp_path / "mail.db"), own_checkpoints=False)
    with held(file._telling.get()):
        assert in_child(lambda: file.connect().in_transaction) == "False"


def test_a_child_does_not_stop_its_parents_listening(tmp_path):
    pytest.importorskip("sqlalchemy")
    from txmail.queue.queue import Queue

    queue = Queue(f"sqlite:///{tmp_path}/mail.db")
    queue.counts()
    told = threading.Event()
    queue.subscribe(told.set)
    listening = queue.host.notifier._listening
    try:
        assert in_child(lambda: listening.stop() or listening._bell.rung) == "False"
        assert listening._thread.is_alive()
        assert in_child(lambda: listening.start() or listening._thread.is_alive()) == "True"
    finally:
        queue.unsubscribe(told.set)
        queue.close()
