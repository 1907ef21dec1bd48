"""A commit is acknowledged only if its mail is in the store that the next process will open."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import transaction
from forking import in_child

import txmail

sa = pytest.importorskip("sqlalchemy")

from txmail import Mailer, Message, transport_from_url  # noqa: E402
from txmail.exceptions import ConfigurationError, QueueUnavailable, SchemaError  # noqa: E402
from txmail.queue.database import upgrade  # noqa: E402
from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.worker import run_once  # noqa: E402

ROOT = Path(txmail.__file__).parents[1]


@pytest.fixture
def queue(file):
    """Its thread does no rounds.

    If two threads of a process notice at once that the log is gone, each waits for the connection
    of the other to be closed: a commit may be refused then. No mail is lost by that.
    """
    queue = Queue(f"sqlite:///{file}")
    queue.host.background._round = lambda: None
    yield queue
    queue.close()


@pytest.fixture
def mailer(queue, tm):
    return Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)


@pytest.fixture
def enqueue(mailer, tm):
    def put(to):
        with tm:
            mailer.enqueue(Message("News", [f"{to}@example.com"], "x", sender="app@example.com"))

    return put


def recipients(file, state="ready"):
    """Who has mail in the store at `file`, as a process sees it that opens it now."""
    program = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(f'file:{sys.argv[1]}?mode=rw', uri=True)\n"
        "print(*[r[0].partition('@')[0] for r in c.execute("
        "'SELECT recipient FROM txmail_delivery WHERE state = ? ORDER BY id', sys.argv[2:])])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), state], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def other_queue(folder):
    """The file of a queue with nothing in it."""
    database = Database.from_url(f"sqlite:///{folder}/other/mail.db")
    database.prepare()
    database.close()
    return folder / "other" / "mail.db"


def beside(file):
    return [Path(f"{file}{suffix}") for suffix in ("-wal", "-shm")]


def unlink(file):
    file.unlink()


def unlink_all(file):
    for each in (file, *beside(file)):
        each.unlink()


def move_away(file):
    file.rename(file.with_suffix(".away"))


def move_the_folder(file):
    file.parent.rename(file.parent.with_name("moved"))


def cut(file):
    os.truncate(file, 0)


def cut_short(file):
    os.truncate(file, 100)


def put_a_folder(file):
    file.unlink()
    file.mkdir()


def put_a_link(file):
    file.rename(file.with_suffix(".away"))
    file.symlink_to(file.with_suffix(".away"))


def put_nonsense(file):
    file.with_suffix(".new").write_bytes(b"no database at all" * 1000)
    file.with_suffix(".new").rename(file)


def put_an_empty_one(file):
    file.with_suffix(".new").touch(0o600)
    file.with_suffix(".new").rename(file)


def put_another(file):
    other_queue(file.parent).rename(file)


def put_another_with_its_log(file):
    for each in beside(file):
        each.unlink()
    put_another(file)


def copy_itself(file):
    """As an editor or rsync saves a file: the same name and octets, another inode."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for _ in range(1000):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # Nobody writes while it is copied, or the copy is half of the old and half of the new.
            connection.execute("BEGIN IMMEDIATE")
            if not beside(file)[0].stat().st_size:
                break
            connection.execute("ROLLBACK")
        shutil.copy(file, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)
        for each in beside(file):
            each.unlink()


def remove_the_log(file):
    beside(file)[0].unlink()


def remove_the_index(file):
    beside(file)[1].unlink()


def remove_both(file):
    for each in beside(file):
        each.unlink()


def move_the_log(file):
    beside(file)[0].rename(file.with_suffix(".away"))


#: What somebody did, and whether commits are taken after that.
GONE = (unlink, unlink_all, move_away, move_the_folder, cut, cut_short)
WRONG = (put_a_folder, put_a_link, put_nonsense, put_an_empty_one)
REPLACED = (put_another, put_another_with_its_log)
REMOVED = (remove_the_log, remove_the_index, remove_both, move_the_log)


def criticals(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL]


@pytest.mark.parametrize("what", [*GONE, *WRONG])
def test_b9_a_commit_into_a_file_that_is_gone_is_refused(
    file, folder, enqueue, what, caplog, queue
):
    """Kind: what is open is not what has that name; nobody would ever find the mail again."""
    enqueue("one")
    enqueue("two")
    what(file)
    refusals = []
    for name in ("three", "four"):
        try:
            enqueue(name)
        except (QueueUnavailable, ConfigurationError) as error:
            refusals.append(str(error))
        else:
            # All was in the log still, and SQLite has written it into the file that was cut.
            assert what in (cut, cut_short)
            assert recipients(file)[:2] == ["one", "two"]
            assert name in recipients(file)
    if what in GONE:
        assert all("txmail db init" in said or "from a backup" in said for said in refusals)
        (said,) = criticals(caplog)
        assert "2 unsent mails" in said or (what in (cut, cut_short) and "unsent mails" in said)
    if what not in (cut, cut_short, put_a_folder, put_a_link, put_nonsense, put_an_empty_one):
        assert not file.exists()
    queue.flush(5)


@pytest.mark.parametrize("what", [unlink, move_away, unlink_all])
def test_b9_it_goes_on_when_a_file_is_there_again(file, folder, enqueue, what, caplog):
    """Kind: whoever mends it need not restart what uses it."""
    enqueue("one")
    what(file)
    with pytest.raises(QueueUnavailable):
        enqueue("two")
    if what is move_away:
        file.with_suffix(".away").rename(file)
    else:
        put_another(file)
    enqueue("three")
    assert recipients(file) == (["one", "three"] if what is move_away else ["three"])
    assert len(criticals(caplog)) == 1
    file.unlink()
    with pytest.raises(QueueUnavailable):
        enqueue("four")
    assert len(criticals(caplog)) == 2


@pytest.mark.parametrize("what", REPLACED)
def test_b9_mail_goes_into_the_file_that_is_there(file, enqueue, what, caplog):
    """Kind: replaced is deleted and made anew; the connections are dropped."""
    enqueue("one")
    what(file)
    enqueue("two")
    assert recipients(file) == ["two"]
    (said,) = criticals(caplog)
    assert "replaced" in said
    assert "1 unsent mails" in said


def test_b9_a_copy_in_its_place_has_all_mail(file, enqueue):
    """Kind: the same octets are another file, too."""
    enqueue("one")
    copy_itself(file)
    enqueue("two")
    assert recipients(file) == ["one", "two"]


@pytest.mark.parametrize("what", REMOVED)
def test_b9_no_mail_is_lost_with_the_log(file, enqueue, what):
    """Kind: the log is a part of the file, and it can be saved while it is open."""
    enqueue("one")
    what(file)
    enqueue("two")
    assert recipients(file) == ["one", "two"]
    enqueue("three")
    assert recipients(file) == ["one", "two", "three"]


PROGRAM = """
import sys, transaction
from txmail import Mailer, Message, transport_from_url
from txmail.queue.queue import Queue
mailer = Mailer(transport_from_url("memory:"), queue=Queue(sys.argv[1]))
for line in sys.stdin:
    mailer.enqueue(Message("x", [f"{line.strip()}@example.com"], "x", sender="a@example.com"))
    transaction.commit()
    print("done", flush=True)
mailer.close()
"""


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("what", [remove_the_log, remove_both])
def test_b9_no_mail_is_lost_with_the_log_of_several_processes(file, enqueue, what):
    """Kind: each has the log open, and none knows what the others notice."""
    enqueue("one")
    other = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"sqlite:///{file}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )

    def there(name):
        other.stdin.write(f"{name}\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"

    there("two")
    enqueue("three")
    what(file)
    enqueue("four")
    there("five")
    enqueue("six")
    there("seven")
    other.communicate()
    assert other.returncode == 0
    assert recipients(file) == ["one", "two", "three", "four", "five", "six", "seven"]


class Act:
    """A data manager that does something in a phase of the commit."""

    def __init__(self, manager, phase, act, key):
        self.transaction_manager = manager
        self._phase, self._act, self._key = phase, act, key

    def sortKey(self):
        return self._key

    def __getattr__(self, name):
        if name not in ("abort", "tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort"):
            raise AttributeError(name)
        return lambda *args: self._act() if name == self._phase else None


@pytest.mark.parametrize("what", [put_another, unlink])
@pytest.mark.parametrize("phase", ["tpc_begin", "commit", "tpc_vote", "tpc_finish"])
def test_b9_a_file_that_is_lost_during_a_commit_loses_no_mail(
    file, folder, mailer, tm, queue, what, phase
):
    """Kind: rows that were staged in the lost file are written anew, or the commit fails."""
    with tm:
        mailer.enqueue(Message("x", ["one@example.com"], "x", sender="a@example.com"))
    tm.begin()
    tm.get().join(Act(tm, phase, lambda: what(file), "~t"))
    mailer.enqueue(Message("x", ["two@example.com"], "x", sender="a@example.com"))
    try:
        tm.commit()
    except QueueUnavailable:
        tm.abort()
        taken = []
    else:
        taken = ["two"]
    if what is unlink:
        put_another(file)
    assert queue.flush(20)
    assert recipients(file) == taken


def test_b9_a_file_that_is_lost_within_a_transaction_is_noticed_before_its_commit(file, queue):
    """Kind: it is looked at where a transaction ends, too."""
    database = queue.database
    database.prepare()
    with pytest.raises(QueueUnavailable, match="deleted or replaced"), database.write():
        file.unlink()


def test_b9_a_child_makes_no_new_file_either(file, enqueue):
    """Kind: a fork is not a new start."""
    enqueue("one")
    file.unlink()

    def child():
        try:
            enqueue("two")
        except QueueUnavailable:
            return "refused"
        return "taken"

    assert in_child(child) == "refused"
    assert not file.exists()


def test_b9_a_new_process_makes_a_new_file_and_keeps_the_old_log(file, queue, enqueue):
    """Kind: a restart is what ends it."""
    enqueue("one")
    file.unlink()
    with pytest.raises(QueueUnavailable):
        enqueue("two")
    put = [sys.executable, "-c", PROGRAM, f"sqlite:///{file}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(put, input="three\n", text=True, env=environment, capture_output=True)
    assert done.stdout == "done\n", done.stderr
    assert list(file.parent.glob("mail.db-wal.orphan-*"))
    enqueue("four")
    assert recipients(file) == ["three", "four"]


def test_b9_a_new_file_can_be_asked_for(file, queue, enqueue):
    """Kind: a person may say that the old one is given up."""
    enqueue("one")
    file.unlink()
    with pytest.raises(QueueUnavailable):
        enqueue("two")
    assert upgrade.init(queue.database)
    enqueue("three")
    assert recipients(file) == ["three"]


def test_b9_many_threads_notice_it_and_it_is_said_once(file, queue, caplog):
    """Kind: each thread has connections of its own."""
    together = threading.Barrier(4)

    def use(number):
        mine = transaction.TransactionManager(explicit=True)
        mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=mine)
        together.wait(20)
        for turn in range(2):
            mine.begin()
            mailer.enqueue(Message("x", [f"a{number}@example.com"], "x", sender="a@example.com"))
            try:
                mine.commit()
                done = True
            except QueueUnavailable:
                mine.abort()
                done = False
            together.wait(20)
            if turn == 0 and number == 0:
                file.unlink()
            together.wait(20)
        return done

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [False] * 4
    (said,) = criticals(caplog)
    assert "unsent mails" in said


def test_b9_a_worker_drains_the_file_that_is_there(file, queue, enqueue):
    """Kind: who reads, reads what others write."""
    enqueue("one")
    put_another(file)
    other = sqlite3.connect(file)
    other.close()
    enqueue("two")
    assert run_once(queue, transport_from_url("memory:")) == 1
    assert recipients(file, "sent") == ["two"]


# -- closing


def refuse_folder(file):
    file.parent.chmod(0o777)


def refuse_file(file):
    file.write_bytes(b"no database at all" * 1000)


def refuse_version(file):
    database = Database.from_url(f"sqlite:///{file}")
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE txmail_version SET version_num = '9999'")
    database.close()


def refuse_log(file):
    file.touch(0o600)
    Path(f"{file}-wal").write_bytes(b"x" * 1000)


def refuse_path(file):
    file.mkdir()


REFUSALS = (refuse_folder, refuse_file, refuse_version, refuse_log, refuse_path)


@pytest.mark.parametrize("refuse", [*REFUSALS, unlink, put_nonsense])
def test_b12_closing_a_queue_that_was_refused_waits_for_nothing(
    file, mailer, tm, queue, refuse, monkeypatch, enqueue
):
    """Kind: who ends does not wait for what cannot succeed."""
    if refuse not in REFUSALS:
        enqueue("one")
    refuse(file)
    with pytest.raises((ConfigurationError, QueueUnavailable, SchemaError)):
        enqueue("two")
    tm.abort()
    waited = []
    wait = threading.Condition.wait

    def note(self, timeout=None):
        begun = time.monotonic()
        try:
            return wait(self, timeout)
        finally:
            waited.append(time.monotonic() - begun)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Condition, "wait", note)
        mailer.close()
    assert not queue.host.background._tasks or sum(waited) < 5


def test_b12_a_server_that_is_not_there(tm):
    """Kind: what was never written need not be deleted."""
    queue = Queue("postgresql://nobody@127.0.0.1:1/nothing")
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
    tm.begin()
    mailer.enqueue(Message("x", ["a@example.com"], "x", sender="a@example.com"))
    with pytest.raises(QueueUnavailable):
        tm.commit()
    tm.abort()
    assert not queue.host.background._tasks
    mailer.close()


# -- cut before it is opened


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8192])
def test_q9_a_file_that_was_cut_beside_its_log_is_refused_or_complete(file, tmp_path, size):
    """Kind: SQLite takes an empty file for a new one, and deletes its log."""
    database = Database.from_url(f"sqlite:///{file}")
    database.prepare()
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO txmail_control (name, value, actor, changed) VALUES ('a', 'x', 'b', 1)"
        )
    elsewhere = tmp_path / "copy"
    shutil.copytree(file.parent, elsewhere)
    database.close()
    there = elsewhere / "mail.db"
    os.truncate(there, size)
    log = Path(f"{there}-wal").read_bytes()
    assert log
    database = Database.from_url(f"sqlite:///{there}")
    error, found = "", []
    try:
        with database.read() as connection:
            found = connection.exec_driver_sql("SELECT name FROM txmail_control").scalars().all()
    except QueueUnavailable as caught:
        error = str(caught)
    database.close()
    if size < 4096:
        assert "move" in error
        assert "backup" in error
        assert Path(f"{there}-wal").read_bytes() == log
    else:
        assert (error, found) == ("", ["a"])  # the log has all the rest
