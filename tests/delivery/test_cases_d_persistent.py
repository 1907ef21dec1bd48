"""A mailer on a persistent object, as each connection of a ZODB loads it."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import persistent.mapping
import pytest
import transaction
import ZODB
import ZODB.FileStorage
import ZODB.MappingStorage
from letters import letter, subjects

from txmail import mailer_from_settings
from txmail.integrations.zodb import ZodbWitness

#: of ZODB
PROTOCOL = 3


def again(mailer):
    return pickle.loads(pickle.dumps(mailer, PROTOCOL))


class Shop:
    """An application whose mailer is in its ZODB."""

    def __init__(self, folder, settings):
        self.folder = folder
        self.settings = settings
        self.db = self.open()
        manager = transaction.TransactionManager()
        connection = self.db.open(transaction_manager=manager)
        connection.root()["mailer"] = mailer_from_settings(settings)
        connection.root()["data"] = persistent.mapping.PersistentMapping()
        manager.commit()
        connection.close()

    def open(self, **options):
        return ZODB.DB(ZODB.FileStorage.FileStorage(str(self.folder / "Data.fs")), **options)

    def load(self, db=None):
        """A connection, and the mailer as it loads it, bound to its transaction manager."""
        manager = transaction.TransactionManager()
        connection = (db or self.db).open(transaction_manager=manager)
        mailer = connection.root()["mailer"]
        return connection, mailer.bind(transaction_manager=connection.transaction_manager)


@pytest.fixture
def shop(tmp_path, server):
    settings = {"mail.url": server.url, "mail.queue_url": f"sqlite:///{tmp_path}/mail.db"}
    shop = Shop(tmp_path, settings)
    yield shop
    shop.load()[1].close()
    shop.db.close()


def test_d5_all_who_load_it_use_one_transport_and_one_queue(shop, server):
    """Kind: something of a process is made once for each copy of what names it."""
    loaded = [shop.load() for _ in range(4)]
    assert len({id(mailer.transport) for _, mailer in loaded}) == 1
    assert len({id(mailer.queue) for _, mailer in loaded}) == 1
    for number in range(5):
        for connection, mailer in loaded:
            with connection.transaction_manager:
                mailer.send(letter(f"{number}"))
    assert len(subjects(server)) == 20
    assert len(server.connections) == 1
    for connection, mailer in loaded:
        mailer.close()
        connection.close()


def test_d5_threads_that_load_it_at_once_get_the_same(shop):
    """Kind: the same; the first of several who look at the same moment."""
    found, barrier = [], threading.Barrier(8)

    def load():
        barrier.wait()
        connection, mailer = shop.load()
        found.append((mailer.transport, mailer.queue))
        connection.close()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(transport) for transport, _ in found}) == 1
    assert len({id(queue) for _, queue in found}) == 1


def test_d5_a_mailer_that_is_loaded_again_keeps_its_connection(shop, server):
    """Kind: the same; a change of another invalidates what was loaded."""
    connection, mailer = shop.load()
    with connection.transaction_manager:
        mailer.send(letter("one"))
    del mailer
    connection.cacheMinimize()
    mailer = connection.root()["mailer"].bind(transaction_manager=connection.transaction_manager)
    with connection.transaction_manager:
        mailer.send(letter("two"))
    assert len(server.connections) == 1
    connection.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"url": "smtp://127.0.0.1:2501"}, {"url": "smtp://127.0.0.1:2502"}),
        ({"url": "smtp://127.0.0.1:2501"}, {"url": "smtp://127.0.0.1:2501?timeout=5"}),
        ({"password_from": "env:TXMAIL_ONE"}, {"password_from": "env:TXMAIL_OTHER"}),
        ({"username": "one"}, {"username": "other"}),
        ({"url": "memory:"}, {"url": "console:"}),
    ],
)
def test_d5_other_settings_are_another_transport(one, other):
    """Kind: what is shared by too little, such as another login."""

    def loaded(given):
        login = {"url": "smtp://mx.example.com", "username": "app", "password_from": "env:X"}
        given = {**({} if "url" in given else login), **given}
        made = mailer_from_settings({f"mail.{name}": value for name, value in given.items()})
        return again(made).transport

    assert loaded(one) is loaded(one)
    assert loaded(one) is not loaded(other)


def test_d5_a_copy_still_has_connections_of_its_own(make_mailer):
    """Kind: what says that it is another one."""
    mailer = again(make_mailer().bind(transaction_manager=transaction.manager))
    assert copy.copy(mailer).transport is not mailer.transport


def test_d5_the_witness_is_found_by_itself(shop):
    """Kind: something that has to be said for each copy, and is forgotten."""
    connection, mailer = shop.load()
    assert mailer.queue.witnesses == []
    for number in range(3):
        with connection.transaction_manager:
            connection.root()["data"][number] = True
            mailer.enqueue(letter(number))
    (witness,) = mailer.queue.witnesses
    assert isinstance(witness, ZodbWitness)
    assert witness.name == "zodb:unnamed"
    connection.close()


def test_d5_a_witness_that_was_named_stays_the_only_one(shop):
    """Kind: the same, where it was not forgotten."""
    connection, mailer = shop.load()
    named = ZodbWitness(shop.db)
    mailer.queue.witnesses.append(named)
    with connection.transaction_manager:
        connection.root()["data"]["x"] = True
        mailer.enqueue(letter("one"))
    assert mailer.queue.witnesses == [named]
    connection.close()


def test_d5_each_database_of_several_has_a_witness(tmp_path, server):
    """Kind: the same, for a multi-database; and one of a name that is taken has none."""
    queue = {"mail.url": server.url, "mail.queue_url": f"sqlite:///{tmp_path}/several.db"}
    databases = {}
    first = ZODB.DB(ZODB.MappingStorage.MappingStorage(), database_name="one", databases=databases)
    ZODB.DB(ZODB.MappingStorage.MappingStorage(), database_name="two", databases=databases)
    manager = transaction.TransactionManager()
    connection = first.open(transaction_manager=manager)
    mailer = mailer_from_settings(queue).bind(transaction_manager=manager)
    with manager:
        connection.get_connection("two").root()["x"] = True
        mailer.enqueue(letter("one"))
    assert sorted(w.name for w in mailer.queue.witnesses) == ["zodb:one", "zodb:two"]
    connection.close()
    mailer.close()
    for db in databases.values():
        db.close()


def test_d5_a_database_that_was_opened_anew_has_the_witness(shop):
    """Kind: what is remembered of something that is gone."""
    connection, mailer = shop.load()
    with connection.transaction_manager:
        connection.root()["data"]["x"] = True
        mailer.enqueue(letter("one"))
    connection.close()
    shop.db.close()
    shop.db = shop.open()
    connection, mailer = shop.load()
    with connection.transaction_manager:
        connection.root()["data"]["y"] = True
        mailer.enqueue(letter("two"))
    (witness,) = mailer.queue.witnesses
    assert witness._db is shop.db
    connection.close()


KILLED = """
import os, sys, pathlib
from test_cases_d_persistent import Shop
from databases import Recorder
from letters import letter

class Dies(Recorder):
    def __getattr__(self, name):
        raise AttributeError(name)
    def tpc_finish(self, transaction):
        os._exit(9)

shop = Shop.__new__(Shop)
shop.folder = pathlib.Path(sys.argv[1])
shop.db = shop.open()
connection, mailer = shop.load()
connection.transaction_manager.begin().join(Dies(sys.argv[2]))
connection.root()["data"]["order"] = True
mailer.enqueue(letter("one"))
connection.transaction_manager.commit()
"""


@pytest.mark.parametrize(
    ("key", "committed"), [("~t", True), pytest.param("!", False, marks=pytest.mark.sweep)]
)
def test_d5_after_a_crash_the_witness_that_was_found_is_asked(shop, server, key, committed):
    """Kind: mail of a process that was killed waits for a person, although it could be known."""
    shop.db.close()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(shop.folder), key],
        timeout=60,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 9
    shop.db = shop.open()
    connection, mailer = shop.load()
    with connection.transaction_manager:
        connection.root()["data"]["next"] = True
        mailer.enqueue(letter("next"))
    mailer.queue.resolve()
    assert ("order" in connection.root()["data"]) is committed
    assert mailer.queue.counts() == {"ready": 2 if committed else 1}
    connection.close()
