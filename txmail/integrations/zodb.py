"""ZODB as a witness: the database shows whether a transaction has committed.

A database that takes part in a transaction writes the extended information of the transaction
beside its own changes. The ids of the transaction's mail stand there, as text, under ``txmail``.
After a crash the witness looks for an id in all transactions since.

If it finds the id, the answer is yes. If not, the answer is no only if the database must have
written something:

- The database had joined the transaction with changes. If a transaction has nothing to store, a
  storage may write nothing, committed or not. If a transaction only reads objects, even by
  `readCurrent`, the database takes no part at all.
- The database keeps history: a `FileStorage`, alone, under a `DemoStorage` or behind ZEO, or a
  history-preserving RelStorage. For other storages (`MappingStorage`, history-free RelStorage) the
  answer is yes or unknown.
- The database was not packed since. The last transaction before the mail is still there, and
  neither it nor a later one has the mark of packing.
- The witness could read the database to its end.

Otherwise the answer is unknown, with the reason in words. A record that a process has voted for but
not finished is no commit: the next process that opens the database cuts it off.

The asking process has to open the database. If another process has the `FileStorage` open, use
``FileStorage(path, read_only=True)``: the question reads the file as it is then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ZODB
from ZODB.blob import Blob
from ZODB.Connection import Connection
from ZODB.DB import TransactionalUndo
from ZODB.utils import z64
from zope.interface import implementer

from ..common.ascii_text import ascii_split
from ..common.shown import name_of, one_line
from ..common.transaction_internals import resources
from ..interfaces import IWitness
from ..witness_answer import Answer, WitnessAnswer

#: The key of the ids in the extended information of a transaction; spaces separate the ids.
KEY = "txmail"


@implementer(IWitness)
class ZodbWitness:
    """See `IWitness`. `db` opens the application's connections.

    The default `name` contains the name of the database: ``zodb:unnamed``. In a multi-database
    each database that transactions change needs a witness and a database name of its own.
    """

    def __init__(self, db: ZODB.DB, name: str | None = None) -> None:
        self.name = f"zodb:{db.database_name}" if name is None else name
        self._db = db

    def begin(self, transaction: Any, batch: int) -> None:
        """See `IWitness`. Does nothing if the database has begun to commit: that is too late."""
        ids = _ids(transaction.extension)
        if str(batch) in ids or any(_begun(transaction, r) for r in self._joined(transaction)):
            return
        transaction.setExtendedInfo(KEY, " ".join([*ids, str(batch)]))

    def note(
        self, transaction: Any, transaction_manager: Any, batch: int
    ) -> Mapping[str, Any] | None:
        """See `IWitness`."""
        joined = self._joined(transaction)
        if not joined:
            return None
        self.begin(transaction, batch)
        return {
            # The transaction is none of those up to this one.
            "tid": _last(self._db, joined).hex(),
            "marked": str(batch) in _ids(transaction.extension),
            "changed": any(_changed(transaction, resource) for resource in joined),
            "history": bool(self._db.supportsUndo()),
        }

    def ask(self, batch: int, noted: Mapping[str, Any]) -> WitnessAnswer:
        """See `IWitness`. Reads the headers of all transactions since; this may take a while."""
        try:
            start = bytes.fromhex(noted["tid"])
            end = self._db.lastTransaction()
            seen = _seen(self._db.storage, str(batch), start)
            if seen.found:
                return WitnessAnswer(Answer.YES, "the database has it")
            doubt = self._doubt(noted, start, end, seen)
        except Exception as error:
            # An unknown answer waits for a person. An error would also stop the questions about all
            # other batches.
            problem = one_line(str(error), 200)
            doubt = f"cannot be read: {name_of(type(error))}: {problem}"
        if doubt:
            return WitnessAnswer(Answer.UNKNOWN, f"the database {doubt}")
        return WitnessAnswer(Answer.NO, "the database does not have it")

    def _doubt(self, noted: Mapping[str, Any], start: bytes, end: bytes, seen: _Seen) -> str:
        """Why a transaction that was not found may still have committed; empty if it cannot."""
        if not noted["marked"]:
            return "had begun to commit before the mail was handed in"
        if not noted["changed"]:
            return "had nothing to store, and so perhaps no trace of the transaction"
        if not noted["history"] or not self._db.supportsUndo():
            return "keeps no history"
        if start == z64:
            return "was empty"
        if seen.packed or not seen.anchored:
            return "has been packed since, or is damaged"
        # Either the last transaction was never finished, or the search did not reach it.
        if seen.last < end and _seen(self._db.storage, None, end).anchored:
            return "is damaged"
        return ""

    def _joined(self, transaction: Any) -> list[Any]:
        """The resources of `transaction` that belong to this database."""
        kinds = (Connection, TransactionalUndo)
        return [r for r in resources(transaction) if isinstance(r, kinds) and r._db is self._db]


def find_witnesses(resources: Sequence[Any], known: Sequence[IWitness]) -> list[IWitness]:
    """Witnesses of the databases with connections among `resources`, without `known` ones."""
    seen = [witness._db for witness in known if isinstance(witness, ZodbWitness)]
    found: list[IWitness] = []
    for resource in resources:
        if isinstance(resource, (Connection, TransactionalUndo)):
            for db in resource._db.databases.values():
                if all(db is not other for other in seen):
                    seen.append(db)
                    found.append(ZodbWitness(db))
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a search has seen from a certain transaction on."""

    #: whether it saw the transaction that it looked for
    found: bool = False
    #: whether it saw the transaction at which it starts
    anchored: bool = False
    #: whether it saw a packed transaction
    packed: bool = False
    #: the id of the last transaction
    last: bytes = z64


def _seen(storage: Any, batch: str | None, start: bytes) -> _Seen:
    """Search from `start` on for `batch`."""
    try:
        return _search(lambda: storage.iterator(start), batch, start)
    except (AttributeError, ValueError):
        # FileStorage looks for the place from both ends. It fails, in small files by an
        # AttributeError, if a killed process has left half a record at the end.
        if not hasattr(storage, "iterator"):
            raise
    return _search(storage.iterator, batch, start)


def _search(iterate: Callable[[], Iterable[Any]], batch: str | None, start: bytes) -> _Seen:
    anchored = packed = False
    last = z64
    with ExitStack() as stack:
        records = iterate()
        if hasattr(records, "close"):
            stack.callback(records.close)
        for record in records:
            if record.tid < start:
                continue
            if batch is not None and _has(record, batch):
                return _Seen(found=True)
            anchored = anchored or record.tid == start
            packed = packed or record.status in ("p", b"p")
            last = max(last, record.tid)
    return _Seen(anchored=anchored, packed=packed, last=last)


def _has(record: Any, batch: str) -> bool:
    # The information is a pickle, which may have any objects: load it only if needed.
    raw = getattr(record, "extension_bytes", None)
    if raw is not None and batch.encode() not in raw:
        return False
    return batch in _ids(record.extension)


def _ids(extension: Mapping[Any, Any] | None) -> list[str]:
    return ascii_split(str((extension or {}).get(KEY, "")))


def _last(db: ZODB.DB, joined: list[Any]) -> bytes:
    for resource in joined:
        if isinstance(resource, Connection):
            # What the connection sees. With RelStorage the database object may be far behind.
            last: bytes = resource._normal_storage.lastTransaction()
            return last
    return bytes(db.lastTransaction())


def _begun(transaction: Any, resource: Any) -> bool:
    """Whether `tpc_begin` of a resource of ZODB was called, which copies the information."""
    try:
        transaction.data(resource)
    except KeyError:
        return False
    return True


def _changed(transaction: Any, resource: Any) -> bool:
    """Whether a resource of ZODB certainly has, or had before its `commit`, something to store."""
    if isinstance(resource, TransactionalUndo):
        return bool(resource._tids)
    if _begun(transaction, resource) and (resource._modified or resource._creating):
        return True
    saved = resource._savepoint_storage
    if saved is not None and len(saved):
        return True
    return any(_stored(resource, object_) for object_ in resource._registered_objects)


def _stored(connection: Any, object_: Any) -> bool:
    """Whether a commit stores an object that is registered as changed."""
    if isinstance(object_, Blob):
        return object_._p_blob_uncommitted is not None
    return object_._p_oid in connection._added or bool(object_._p_changed)
