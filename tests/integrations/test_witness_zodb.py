"""What a ZODB can say of a transaction after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import transaction
import ZODB
from databases import Failure, Recorder
from forking import in_child
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError, ReadConflictError
from ZODB.utils import z64
from zope.interface.verify import verifyObject

from txmail.integrations.zodb import KEY, ZodbWitness
from txmail.interfaces import IWitness

BATCH = 5_577_006_791_947_779_410


class Application:
    """A database, a connection to it, and the witness."""

    def __init__(self, storage, tm, **options) -> None:
        self.tm = tm
        self.db = ZODB.DB(storage, **options)
        self.connection = self.db.open(transaction_manager=tm)
        self.witness = ZodbWitness(self.db)

    @property
    def root(self):
        return self.connection.root()

    def commit(self, **values) -> None:
        self.root.update(values)
        self.tm.commit()

    def begin(self, batch: int = BATCH):
        self.witness.begin(self.tm.get(), batch)

    def note(self, batch: int = BATCH):
        noted = self.witness.note(self.tm.get(), self.tm, batch)
        # It is remembered in a database.
        return json.loads(json.dumps(noted))

    def ask(self, noted, batch: int = BATCH) -> str:
        verdict = self.witness.ask(batch, noted)
        assert verdict.reason.isprintable()
        return verdict.answer.value

    def reason(self, noted, batch: int = BATCH) -> str:
        verdict = self.witness.ask(batch, noted)
        assert verdict.answer == "unknown"
        return verdict.reason

    def fail_at_last(self) -> None:
        """Have the transaction aborted when the database has voted already."""
        self.tm.get().join(Recorder("~~~", fails="vote"))

    def close(self) -> None:
        self.tm.abort()
        self.connection.close()
        self.db.close()


@pytest.fixture
def make(tm):
    with contextlib.ExitStack() as stack:

        def make(storage, **options):
            application = Application(storage, tm, **options)
            stack.callback(application.close)
            return application

        yield make


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "Data.fs")


@pytest.fixture
def app(make, path, tmp_path):
    """One with a FileStorage, and something in it."""
    app = make(FileStorage(path, blob_dir=str(tmp_path / "blobs")))
    app.commit(folder=PersistentMapping(), before=1)
    app.commit(before=2)
    return app


def change_an_object(app):
    app.root["changed"] = True


def add_an_object(app):
    app.connection.add(PersistentMapping())


def add_and_change(app):
    app.root["added"] = PersistentMapping()


def change_before_a_savepoint(app):
    app.root["changed"] = True
    app.tm.savepoint()


def change_after_a_savepoint_that_was_rolled_back(app):
    app.root["first"] = True
    savepoint = app.tm.savepoint()
    app.root["second"] = True
    savepoint.rollback()


def change_only_after_a_savepoint(app):
    app.tm.savepoint()
    app.root["folder"]["changed"] = True


def undo(app):
    app.db.undo(app.db.undoLog(0, 1)[0]["id"], app.tm.get())


def write_a_blob(app):
    app.root["blob"] = Blob(b"octets")


def write_another_connection(app):
    other = app.db.open(transaction_manager=app.tm)
    other.root()["changed"] = True


CHANGES = [
    change_an_object,
    add_an_object,
    add_and_change,
    change_before_a_savepoint,
    change_after_a_savepoint_that_was_rolled_back,
    change_only_after_a_savepoint,
    undo,
    write_a_blob,
    write_another_connection,
]


def test_it_is_a_witness(app):
    assert verifyObject(IWitness, app.witness)
    assert app.witness.name == "zodb:unnamed"
    assert ZodbWitness(app.db, "catalog").name == "catalog"


@pytest.mark.parametrize("change", CHANGES)
def test_a_transaction_that_committed_is_found(app, change):
    app.begin()
    change(app)
    noted = app.note()
    assert noted["changed"]
    app.tm.commit()
    assert app.ask(noted) == "yes"
    app.commit(later=1)
    assert app.ask(noted) == "yes"


@pytest.mark.parametrize("change", CHANGES)
def test_a_transaction_that_was_aborted_is_not_found(app, change):
    app.begin()
    change(app)
    noted = app.note()
    app.fail_at_last()
    with pytest.raises(Failure):
        app.tm.commit()
    app.tm.abort()
    assert app.ask(noted) == "no"
    app.commit(later=1)
    assert app.ask(noted) == "no"


def test_a_transaction_with_a_conflict_is_not_found(app, tm):
    app.begin()
    app.root["mine"] = True
    noted = app.note()
    other = transaction.TransactionManager()
    connection = app.db.open(transaction_manager=other)
    connection.root()["theirs"] = True
    other.commit()
    connection.close()
    with pytest.raises(ConflictError):
        tm.commit()
    tm.abort()
    assert app.ask(noted) == "no"


def test_a_transaction_that_read_what_is_not_current_any_more_is_not_found(app, tm):
    app.begin()
    folder = app.root["folder"]
    assert len(folder) == 0
    app.connection.readCurrent(folder)
    app.root["mine"] = True
    noted = app.note()
    other = transaction.TransactionManager()
    connection = app.db.open(transaction_manager=other)
    connection.root()["folder"]["theirs"] = True
    other.commit()
    connection.close()
    with pytest.raises(ReadConflictError):
        tm.commit()
    tm.abort()
    assert app.ask(noted) == "no"


def test_while_it_is_voted_for_but_not_finished_nothing_is_found(app):
    asked = []
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.get().join(Recorder("~~~", do={"vote": lambda: asked.append(app.ask(noted))}))
    app.tm.commit()
    assert asked == ["no"]
    assert app.ask(noted) == "yes"


def test_a_database_that_was_only_read_takes_no_part(app):
    app.begin()
    assert app.note() is None
    assert app.root["before"] == 2
    app.connection.readCurrent(app.root["folder"])
    assert app.note() is None


def test_a_database_that_joins_later_takes_no_part_yet(app):
    app.begin()
    assert app.note() is None
    app.root["changed"] = True
    noted = app.note()
    app.tm.commit()
    assert app.ask(noted) == "yes"


def forget_the_change(app):
    app.root["changed"] = True
    app.root._p_changed = False


def roll_back_to_a_savepoint_after_joining(app):
    app.connection._register()
    savepoint = app.tm.savepoint()
    app.root["changed"] = True
    savepoint.rollback()


def open_a_blob_for_nothing(app):
    app.connection.root()["old blob"]._p_changed = True


@pytest.mark.parametrize(
    "nothing", [forget_the_change, roll_back_to_a_savepoint_after_joining, open_a_blob_for_nothing]
)
def test_of_a_transaction_in_which_no_object_changed_a_trace_is_not_certain(app, nothing):
    app.commit(**{"old blob": Blob(b"octets")})
    app.begin()
    nothing(app)
    noted = app.note()
    assert not noted["changed"]
    app.tm.abort()
    assert "nothing to store" in app.reason(noted)
    app.begin()
    nothing(app)
    noted = app.note()
    app.tm.commit()
    assert app.ask(noted) == "yes"  # as FileStorage happens to be


def test_a_database_that_left_with_a_savepoint_takes_no_part(app):
    app.begin()
    savepoint = app.tm.savepoint()
    app.root["changed"] = True
    savepoint.rollback()
    assert app.note() is None


@pytest.mark.parametrize("change", CHANGES)
def test_it_sees_what_is_stored_also_when_the_commit_is_under_way(app, change):
    noted = []
    app.begin()
    change(app)
    app.tm.get().join(Recorder("~~~", do={"commit": lambda: noted.append(app.note())}))
    app.tm.commit()
    assert noted[0]["changed"]
    assert app.ask(noted[0]) == "yes"


def test_that_nothing_is_stored_is_seen_also_when_the_commit_is_under_way(app):
    noted = []
    app.commit(before=3)
    app.begin()
    forget_the_change(app)
    app.tm.get().join(Recorder("~~~", do={"commit": lambda: noted.append(app.note())}))
    app.tm.commit()
    assert not noted[0]["changed"]


def test_of_mail_that_came_after_the_database_had_begun_nobody_knows(app):
    noted = []

    def late():
        app.begin()
        noted.append(app.note())

    app.root["changed"] = True
    app.tm.get().join(Recorder("~~~", do={"begin": late}))
    app.tm.commit()
    assert app.root["changed"]
    assert "before the mail" in app.reason(noted[0])


def test_mail_that_came_before_the_database_has_begun_is_in_time(app):
    app.root["changed"] = True
    app.tm.get().join(Recorder("", do={"begin": app.begin}))
    noted = []
    app.tm.get().join(Recorder("~~~", do={"commit": lambda: noted.append(app.note())}))
    app.tm.commit()
    assert app.ask(noted[0]) == "yes"


def test_ids_of_several_batches_stand_beside_what_the_application_notes(app):
    txn = app.tm.get()
    txn.setExtendedInfo("request", "GET /")
    for batch in (7, 77, 7):
        app.begin(batch)
    app.root["changed"] = True
    noted = [app.note(batch) for batch in (7, 77)]
    app.tm.commit()
    record = list(app.db.storage.iterator())[-1]
    assert record.extension == {"request": "GET /", KEY: "7 77"}
    assert [app.ask(noted[0], batch) for batch in (7, 77, 777)] == ["yes", "yes", "no"]


def test_an_application_may_set_all_of_the_extended_information(app):
    app.begin()
    app.tm.get().extension = {"mine": 1}
    app.root["changed"] = True
    noted = app.note()
    app.tm.commit()
    assert app.ask(noted) == "yes"


class Vanishing:
    """Something whose class is not there when the information is read."""


def test_information_of_others_that_cannot_be_read_is_no_hindrance(app, monkeypatch):
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.abort()
    app.tm.get().setExtendedInfo("object", Vanishing())
    app.commit(other=1)
    with monkeypatch.context() as patch:
        patch.delattr(sys.modules[__name__], "Vanishing")
        assert app.ask(noted) == "no"


def pack(app):
    app.db.pack(time.time() + 1)


def test_after_a_pack_nobody_knows_what_was_not_there(app):
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.abort()
    pack(app)
    assert "packed" in app.reason(noted)
    app.commit(later=1)
    assert "packed" in app.reason(noted)


def test_what_a_pack_has_left_is_found(app):
    app.begin()
    app.root["folder"]["changed"] = True
    noted = app.note()
    app.tm.commit()
    app.commit(later=1)
    pack(app)
    assert app.ask(noted) == "yes"


def test_of_what_a_pack_has_taken_nobody_knows(app):
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.commit()
    app.commit(changed=2)
    pack(app)
    assert "packed" in app.reason(noted)


def test_a_pack_before_is_no_hindrance(app):
    pack(app)
    # What the pack has not touched.
    app.commit(later=1)
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.abort()
    assert app.ask(noted) == "no"


class HistoryFree(FileStorage):
    def supportsUndo(self):
        return False


@pytest.mark.parametrize("kind", ["history-free", "mapping", "demo", "demo in memory"])
@pytest.mark.parametrize("committed", [True, False])
def test_only_a_storage_with_history_says_no(make, path, tmp_path, kind, committed):
    base = FileStorage(str(tmp_path / "base.fs"))
    ZODB.DB(base).close()
    app = make(
        {
            "history-free": lambda: HistoryFree(path),
            "mapping": MappingStorage,
            "demo": lambda: DemoStorage(
                base=FileStorage(base._file_name), changes=FileStorage(path)
            ),
            "demo in memory": lambda: DemoStorage(base=FileStorage(base._file_name)),
        }[kind]()
    )
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    if committed:
        app.tm.commit()
        assert app.ask(noted) == "yes"
    elif kind == "demo":
        app.tm.abort()
        assert app.ask(noted) == "no"
    else:
        app.tm.abort()
        assert "keeps no history" in app.reason(noted)


def test_a_pack_of_what_lies_over_a_base_is_noticed(make, path, tmp_path):
    base = FileStorage(str(tmp_path / "base.fs"))
    ZODB.DB(base).close()
    changes = FileStorage(path)
    app = make(DemoStorage(base=FileStorage(base._file_name), changes=changes))
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.commit()
    app.commit(changed=2)
    changes.pack(time.time() + 1, app.db._mvcc_storage.references, gc=False)
    # The transaction is gone, and the last one before it is in the base, where nothing was packed.
    assert "packed" in app.reason(noted)


def test_databases_that_belong_together_are_asked_apart(make, tmp_path, tm):
    databases = {}
    first = make(FileStorage(str(tmp_path / "1.fs")), databases=databases, database_name="first")
    make(FileStorage(str(tmp_path / "2.fs")), databases=databases, database_name="second")
    second = ZodbWitness(databases["second"])
    assert (first.witness.name, second.name) == ("zodb:first", "zodb:second")
    for witness in (first.witness, second):
        witness.begin(tm.get(), BATCH)
    first.root["changed"] = True
    assert second.note(tm.get(), tm, BATCH) is None
    first.connection.get_connection("second").root()["changed"] = True
    noted = [witness.note(tm.get(), tm, BATCH) for witness in (first.witness, second)]
    tm.commit()
    assert noted[0]["tid"] != noted[1]["tid"]
    assert first.ask(noted[0]) == "yes"
    assert second.ask(BATCH, noted[1]).answer == "yes"


def test_a_database_that_was_empty_says_no_no(app):
    noted = {"tid": z64.hex(), "marked": True, "changed": True, "history": True}
    assert "empty" in app.reason(noted)


def test_a_file_that_is_damaged_in_the_middle_says_no_no(app, path):
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.tm.commit()
    size = os.path.getsize(path)
    app.commit(later=1)
    with open(path, "r+b") as file:
        file.seek(size - 8)  # the length of the transaction, for the second time
        file.write(b"\0" * 8)
    assert "damaged" in app.reason(noted)


@pytest.mark.parametrize("noted", [{}, {"tid": "x"}, {"tid": None}])
def test_it_raises_nothing(app, noted):
    assert "cannot be read" in app.reason(noted)


def test_a_database_that_is_closed_knows_nothing(path, tm):
    app = Application(FileStorage(path), tm)
    app.begin()
    app.root["changed"] = True
    noted = app.note()
    app.close()
    os.remove(path)
    assert "cannot be read" in app.reason(noted)


def test_another_process_reads_what_is_there_now(app, path):
    # Opened before anything has happened, as by a worker that runs for long.
    reader = ZODB.DB(FileStorage(path, read_only=True))
    witness = ZodbWitness(reader)
    noted = []
    for batch, ending in ((1, app.tm.commit), (2, app.tm.abort)):
        app.begin(batch)
        app.root["changed"] = batch
        noted.append(app.note(batch))
        ending()

    def answers():
        return [witness.ask(n + 1, noted[n]).answer.value for n in (0, 1)]

    assert in_child(answers) == "['yes', 'no']"
    pack(app)
    assert in_child(answers) == "['yes', 'unknown']"
    reader.close()


def zeo(folder, stack):
    client = pytest.importorskip("ZEO.ClientStorage")
    import ZEO

    address, stop = ZEO.server(str(folder / "served.fs"))
    stack.callback(stop)
    return lambda: client.ClientStorage(address)


def relstorage(folder, stack, keep_history=True):
    sqlite = pytest.importorskip("relstorage.adapters.sqlite.adapter")
    from relstorage.options import Options
    from relstorage.storage import RelStorage

    options = Options(keep_history=keep_history)
    return lambda: RelStorage(
        sqlite.Sqlite3Adapter(str(folder / "rel"), {}, options=options), options=options
    )


def relstorage_without_history(folder, stack):
    return relstorage(folder, stack, keep_history=False)


# ZEO's server leaves files of iterators to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("serve", [zeo, relstorage, relstorage_without_history])
def test_another_process_may_ask_a_database_server(tmp_path, serve):
    with contextlib.ExitStack() as stack:
        storage = serve(tmp_path, stack)
        app = Application(storage(), transaction.TransactionManager())
        stack.callback(app.close)
        reader = ZODB.DB(storage())
        stack.callback(reader.close)
        witness = ZodbWitness(reader)
        app.commit(before=1)
        noted = []
        for batch, ending in ((1, app.tm.commit), (2, app.tm.abort)):
            app.begin(batch)
            app.root["changed"] = batch
            noted.append(app.note(batch))
            ending()
        verdicts = [witness.ask(n + 1, noted[n]) for n in (0, 1)]
        if serve is relstorage_without_history:
            assert {v.answer for v in verdicts} == {"unknown"}
            assert all("keeps no history" in v.reason for v in verdicts)
            return
        assert [v.answer for v in verdicts] == ["yes", "no"]
        pack(app)
        assert "packed" in witness.ask(2, noted[1]).reason


KILLED = """
import json, os, signal, sys
import transaction, ZODB
from databases import Recorder
from txmail.integrations.zodb import ZodbWitness
path, batch, phase, filling = sys.argv[1:]
db = ZODB.DB(path)
tm = transaction.TransactionManager()
root = db.open(transaction_manager=tm).root()
root["filling"] = os.urandom(int(filling))
tm.commit()
witness = ZodbWitness(db)
witness.begin(tm.get(), int(batch))
root["changed"] = True
noted = witness.note(tm.get(), tm, int(batch))
print(json.dumps([noted, os.path.getsize(path)]), flush=True)
tm.get().join(Recorder("~~~", do={phase: lambda: os.kill(os.getpid(), signal.SIGKILL)}))
tm.commit()
"""


def killed_in(phase: str, path: str, filling: int = 0):
    """What was noted by a process that was killed after the database had done its `phase`.

    Returns that, and how large the file was before, `filling` octets of objects at least.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, str(BATCH), phase, str(filling)],
        stdout=subprocess.PIPE,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    return json.loads(done.stdout)


@pytest.mark.representative(every=8)
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize(
    ("phase", "answer"), [("begin", "no"), ("commit", "no"), ("vote", "no"), ("finish", "yes")]
)
def test_what_a_process_that_was_killed_has_committed_is_known(path, phase, answer, read_only):
    noted, _ = killed_in(phase, path)
    db = ZODB.DB(FileStorage(path, read_only=read_only))
    assert ZodbWitness(db).ask(BATCH, noted).answer == answer
    db.close()


# FileStorage leaves a file open when it does not find the end.
@pytest.mark.representative(every=6)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("filling", [0, 2_000_000])
@pytest.mark.parametrize(("left", "answer"), [(10, "unknown"), (30, "no"), (100, "no")])
def test_a_record_that_was_cut_off_is_no_commit(path, left, answer, filling):
    noted, size = killed_in("vote", path, filling)
    assert os.path.getsize(path) > size + left
    os.truncate(path, size + left)
    db = ZODB.DB(FileStorage(path, read_only=True))
    assert ZodbWitness(db).ask(BATCH, noted).answer == answer
    db.close()
    # Whoever writes to the database cuts off the rest.
    db = ZODB.DB(FileStorage(path))
    assert ZodbWitness(db).ask(BATCH, noted).answer == "no"
    db.close()
