"""What the resolver makes of batches whose process is gone, stopped, slow or somewhere else."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from commits import note
from databases import Failure, Recorder, SqlDatabase, ZodbDatabase
from queues_machine import Killed, Life, MortalTransport, Reader
from zope.interface import implementer

from txmail import Mailer, transport_from_url
from txmail.exceptions import IllegalMove, QueueInDoubt, QueueUnavailable
from txmail.integrations.session_queue import session_queue
from txmail.integrations.sqlalchemy import SqlWitness, witness_metadata
from txmail.integrations.zodb import ZodbWitness
from txmail.interfaces import IWitness
from txmail.queue.process_identity import DEAD_AFTER_S, Identity, process_id
from txmail.queue.queue import Queue
from txmail.queue.schema import metadata
from txmail.testing import CLOSE
from txmail.witness_answer import Answer, WitnessAnswer

FAR = DEAD_AFTER_S + 1


class Shop:
    """An application with a queue in a file, whose processes can die."""

    def __init__(self, folder, tm, url) -> None:
        self.folder = folder
        self.tm = tm
        self.url = url
        self.now = 1_800_000_000.0
        self.witnesses: list = []
        self.made: list = []
        self.lives = 0
        self.reader = Reader(sa.create_engine(f"sqlite:///{folder}/mail.db", poolclass=sa.NullPool))
        self.start()

    def start(self, **options) -> None:
        """Another process begins. It does in the background only what it is told to."""
        self.life = Life()
        self.queue = self.another(**options)
        self.queue.counts()
        self.life.attach(self.queue)
        self.mailer = Mailer(
            MortalTransport(transport_from_url(self.url), self.life),
            queue=self.queue,
            transaction_manager=self.tm,
        )
        self.made.append(self.mailer)

    def another(self, **options) -> Queue:
        """The queue as somebody else has it, who knows the same witnesses."""
        options = {"witnesses": self.witnesses, "clock": lambda: self.now, **options}
        queue = Queue(f"sqlite:///{self.folder}/mail.db", **options)
        queue.host.background._round = lambda: None
        self.made.append(queue)
        return queue

    def die(self, **options) -> None:
        """The process is killed, and another one takes its place."""
        self.life.dead = True
        self.tm.abort()
        self.queue.host.background.tasks.clear()
        self.lives += 1
        self.reader.bury(f"dead {self.lives}")
        self.start(**options)

    def move(self, **where) -> None:
        """What this process has written was written by one that is `where`."""
        columns = ", ".join(f"{name} = :{name}" for name in where)
        with self.reader.engine.begin() as connection:
            connection.execute(
                sa.text(f"UPDATE txmail_process SET {columns} WHERE id = :mine"),
                {**where, "mine": process_id()},
            )
            connection.execute(
                sa.text("UPDATE txmail_process SET id = 'elsewhere' WHERE id = :mine"),
                {"mine": process_id()},
            )
            connection.execute(
                sa.text("UPDATE txmail_batch SET process = 'elsewhere' WHERE process = :mine"),
                {"mine": process_id()},
            )

    def commit_until(self, moment: str, key: str = "~~a") -> None:
        """Commit, and be killed in the phase `moment` of somebody who takes part as `key`."""

        def die():
            self.life.dead = True
            raise Killed

        self.tm.get().join(Recorder(key, do={moment: die}))
        with pytest.raises(Killed):
            self.tm.commit()

    @property
    def states(self) -> dict[str, str]:
        return {seen.recipient: seen.state for seen in self.reader.deliveries()}

    @property
    def batch(self):
        """The only one there is."""
        (found,) = self.reader.batches()
        return found

    def close(self) -> None:
        self.tm.abort()
        for made in self.made:
            made.close()
        self.reader.engine.dispose()


@pytest.fixture
def shop(tmp_path, tm, server):
    shop = Shop(tmp_path, tm, server.url)
    yield shop
    shop.close()


@pytest.fixture
def zodb(shop, tmp_path, tm):
    """A ZODB that takes part in the shop's transactions, and is a witness."""
    database = ZodbDatabase(tmp_path, tm)
    database.write("first")
    tm.commit()
    shop.witnesses.append(ZodbWitness(database.db))
    shop.start()
    yield database
    database.close()


@pytest.fixture
def sql(shop, tmp_path, tm):
    """The same with SQLite."""
    url = f"sqlite:///{tmp_path}/items.db"
    database = SqlDatabase(url, tm, connect_args={"timeout": 0.1})
    witness_metadata.create_all(database.engine)
    shop.witnesses.append(SqlWitness(database.session))
    shop.start()
    yield database
    database.close()


def letter(name, *recipients):
    return note(name, recipients=list(recipients) or None)


# -- who is alive


def test_a_slow_transaction_is_left_alone(shop, tm):
    shop.mailer.enqueue(letter("ann"))
    resolved = []

    def wait_for_days():
        shop.now += 10 * 86400
        resolved.extend(shop.another().resolve())

    tm.get().join(Recorder("a database", do={"vote": wait_for_days}))
    tm.commit()
    assert resolved == []
    assert shop.states == {"ann@example.net": "ready"}


def test_the_row_of_a_process_is_there_although_its_first_mail_was_refused(shop, tm):
    shop.start(limit=1)
    shop.mailer.enqueue(letter("ann", "ann@example.net", "bob@example.net"))
    with pytest.raises(QueueUnavailable):
        tm.commit()
    tm.abort()
    shop.queue.flush()
    shop.mailer.enqueue(letter("eve"))
    lives = sa.text("SELECT count(*) FROM txmail_batch b JOIN txmail_process p ON p.id = b.process")

    def look():
        with shop.reader.engine.connect() as connection:
            assert connection.scalar(lives) == 1

    tm.get().join(Recorder("a database", do={"vote": look}))
    tm.commit()
    assert shop.states == {"eve@example.net": "ready"}


SLOW = """
import sys, transaction
from commits import note
from databases import Recorder
from txmail import Mailer, transport_from_url
from txmail.queue.queue import Queue

queue = Queue(sys.argv[1])
mailer = Mailer(transport_from_url("memory:"), queue=queue)
mailer.enqueue(note("slow"))

def wait():
    print("staged", flush=True)
    sys.stdin.readline()

transaction.get().join(Recorder("a database", do={"vote": wait}))
transaction.commit()
print("committed", flush=True)
"""


@pytest.fixture
def slow(shop):
    """Another process, in the middle of a commit."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, f"sqlite:///{shop.folder}/mail.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        assert select.select([child.stdout], [], [], 60)[0]
        assert child.stdout.readline() == "staged\n"
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
        child.kill()
        child.communicate()


def test_a_stopped_process_is_left_alone(shop, slow):
    slow.send_signal(signal.SIGSTOP)
    os.waitpid(slow.pid, os.WUNTRACED)
    shop.now = time.time() + 10 * 86400
    assert shop.queue.resolve() == []
    assert shop.batch.state == "staged"
    slow.send_signal(signal.SIGCONT)
    slow.stdin.write("\n")
    slow.stdin.flush()
    assert slow.stdout.readline() == "committed\n"
    assert shop.states == {"slow@example.net": "ready"}


def test_a_killed_process_is_not(shop, slow):
    shop.now = time.time()
    slow.kill()
    slow.wait()
    (decision,) = shop.queue.resolve()
    assert decision.state == shop.batch.state == "unknown"
    assert "a database" in decision.reason
    assert shop.states == {"slow@example.net": "staged"}


@pytest.mark.parametrize(
    "where",
    [
        pytest.param({"host": "another", "boot": "another"}, id="another machine"),
        pytest.param({"pid_namespace": "pid:[1]"}, id="another container"),
        pytest.param({"host": "another"}, id="a copy of this machine"),
    ],
)
def test_elsewhere_a_process_is_dead_when_it_has_long_said_nothing(shop, tm, where):
    shop.mailer.enqueue(letter("ann"))
    other = shop.another()
    found = []

    def look():
        shop.move(**where)
        found.append(other.resolve())
        shop.now += FAR
        found.append(other.resolve())

    tm.get().join(Recorder("a database", do={"vote": look}))
    tm.commit()
    assert found[0] == []
    assert [decision.state for decision in found[1]] == ["unknown"]
    assert shop.states == {"ann@example.net": "ready"}  # it was alive, and says so


def test_before_the_machine_was_started_anew_nobody_lives(shop):
    mine = Identity.mine()
    if " " not in mine.host or mine.pid_namespace != "pid:[4026531836]":
        pytest.skip("this machine is not known again after its start")
    shop.mailer.enqueue(letter("ann"))
    shop.commit_until("vote")
    shop.move(boot="00000000-0000-0000-0000-000000000000")
    shop.start()
    assert [decision.state for decision in shop.queue.resolve()] == ["unknown"]


def test_what_another_program_has_begun_in_this_process_is_nobodys(shop):
    """After ``exec`` pid and start time are the same, and the one who knew is gone."""
    shop.mailer.enqueue(letter("ann"))
    shop.commit_until("vote")
    with shop.reader.engine.begin() as connection:
        for table, column in (("process", "id"), ("batch", "process")):
            connection.execute(sa.text(f"UPDATE txmail_{table} SET {column} = 'before exec'"))
    shop.now += FAR
    shop.start()
    assert [decision.state for decision in shop.queue.resolve()] == ["unknown"]


# -- a late end


def test_a_late_publish_wins_over_a_discard(shop, zodb, tm):
    shop.mailer.enqueue(letter("ann"))
    zodb.write("sold")
    found = []

    def pass_for_dead():
        shop.move(host="another", boot="another")
        shop.now += FAR
        found.extend(shop.another().resolve())

    # It has voted, and is not there for others before it is told to finish.
    tm.get().join(Recorder("!", do={"finish": pass_for_dead}))
    tm.commit()
    assert [decision.state for decision in found] == ["discarded"]
    assert shop.states == {"ann@example.net": "ready"}
    assert shop.batch.state == "published"


def test_an_sql_database_holds_a_transaction_to_what_was_decided(shop, sql, tm):
    """Once it has answered no, it refuses to commit."""

    class Late(SqlWitness):
        """Its row is written, and the process goes to sleep before its database is locked."""

        def note(self, transaction, transaction_manager, batch):
            with sql.engine.begin() as connection:
                connection.execute(
                    sa.text("INSERT INTO txmail_witness VALUES (:batch, 'aborted', 0)"),
                    {"batch": batch},
                )
            return super().note(transaction, transaction_manager, batch)

    shop.queue.witnesses[:] = [Late(sql.session)]
    shop.mailer.enqueue(letter("ann"))
    with pytest.raises(QueueUnavailable, match="taken for dead"):
        tm.commit()
    tm.abort()
    assert shop.queue.flush()
    assert shop.states == {}


def test_what_was_discarded_too_early_is_in_doubt_if_its_process_dies_while_sending(shop, tm):
    """Nobody else takes part: from its vote on, it has committed, whatever was said before."""
    for name in ("ann", "bob"):
        shop.mailer.send(letter(name))
    decide = shop.queue.store.change_batch
    found = []

    def pass_for_dead(connection, number, state, *arguments):
        if state == "sending":
            connection.rollback()
            shop.move(host="another", boot="another")
            shop.now += FAR
            found.extend(shop.another().resolve())
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        return decide(connection, number, state, *arguments)

    shop.queue.store.change_batch = pass_for_dead
    shop.life.dies_in = 100
    steps = shop.life.step

    def step():
        if found:
            shop.life.dead = shop.life.dead or shop.batch.state == "sending"
        steps()

    shop.life.step = step
    with pytest.raises(Killed):
        tm.commit()
    assert [decision.state for decision in found] == ["discarded"]
    assert shop.batch.state == "sending"
    shop.now += FAR
    shop.die()
    assert [decision.state for decision in shop.queue.resolve()] == ["published"]
    assert set(shop.states.values()) == {"in_doubt"}


# -- what witnesses know


@pytest.mark.parametrize("moment", ["vote", "finish"])
def test_zodb_knows_how_a_transaction_ended(shop, zodb, moment):
    shop.mailer.enqueue(letter("ann"))
    zodb.write("sold")
    shop.commit_until(moment)
    shop.die()
    (decision,) = shop.queue.resolve()
    committed = "sold" in zodb.values()
    assert committed == (moment == "finish")
    assert decision.state == ("published" if committed else "discarded")
    assert shop.states == {"ann@example.net": "ready" if committed else "staged"}
    assert shop.queue.resolve() == []


def test_a_packed_storage_does_not_know_what_it_has_not(shop, zodb):
    shop.mailer.enqueue(letter("ann"))
    zodb.write("sold")
    shop.commit_until("vote")
    shop.die()
    zodb.write("later")
    shop.tm.commit()
    zodb.db.pack(time.time() + 10)
    (decision,) = shop.queue.resolve()
    assert decision.state == "unknown"
    assert "packed" in decision.reason
    assert shop.batch.reason == decision.reason


def test_a_transaction_that_changed_no_object_has_left_no_trace(shop, zodb, tm):
    shop.mailer.enqueue(letter("ann"))
    zodb.connection.root()._p_activate()
    tm.get().join(Recorder("~~~"))
    shop.commit_until("finish")
    shop.die()
    (decision,) = shop.queue.resolve()
    assert decision.state == "unknown"
    assert "~~~" in decision.reason


def test_a_witness_that_is_not_known_here_is_waited_for(shop, zodb):
    shop.mailer.enqueue(letter("ann"))
    zodb.write("sold")
    shop.commit_until("finish")
    shop.die(witnesses=[])
    (decision,) = shop.queue.resolve()
    assert decision.state == "unknown"
    assert "zodb:unnamed is not among the witnesses here" in decision.reason
    assert shop.queue.resolve() == []  # it is not said again
    (decision,) = shop.another().resolve()
    assert decision.state == "published"
    assert shop.states == {"ann@example.net": "ready"}


@implementer(IWitness)
class Says:
    """A witness that always says the same, or raises it."""

    def __init__(self, name, answer) -> None:
        self.name = name
        self.answer = answer

    def begin(self, transaction, batch) -> None:
        """Nothing to do."""

    def note(self, transaction, transaction_manager, batch):
        return {}

    def ask(self, batch, noted):
        if isinstance(self.answer, Exception):
            raise self.answer
        return WitnessAnswer(self.answer, "because")


YES, NO, DUNNO = Answer.YES, Answer.NO, Answer.UNKNOWN


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ([YES], "published"),
        ([NO], "discarded"),
        ([DUNNO], "unknown"),
        ([YES, NO], "published"),
        ([NO, YES], "published"),
        ([NO, DUNNO], "discarded"),
        ([DUNNO, NO], "discarded"),
        ([DUNNO, YES], "published"),
        ([ValueError("broken")], "unknown"),
        ([ValueError("broken"), YES], "published"),
    ],
)
def test_what_several_witnesses_say_is_put_together(shop, answers, state):
    shop.witnesses += [Says(f"w{n}", answer) for n, answer in enumerate(answers)]
    shop.start()
    shop.mailer.enqueue(letter("ann"))
    shop.commit_until("vote")
    shop.die()
    assert [decision.state for decision in shop.queue.resolve()] == [state]
    assert (shop.batch.state, shop.batch.reason is None) == (state, state == "published")


def test_a_batch_that_cannot_be_read_keeps_no_other_from_being_resolved(shop):
    for name in ("ann", "bob"):
        shop.mailer.enqueue(letter(name))
        shop.commit_until("vote")
        if name == "ann":
            with shop.reader.engine.begin() as connection:
                connection.execute(sa.text("UPDATE txmail_batch SET witnesses = 'no JSON'"))
        shop.die()
    assert [decision.state for decision in shop.queue.resolve()] == ["unknown", "unknown"]


# -- a person decides


@pytest.mark.parametrize("committed", [True, False])
def test_a_person_decides_about_what_nobody_knows(shop, committed):
    shop.mailer.enqueue(letter("ann"))
    shop.commit_until("finish")
    shop.die()
    shop.queue.resolve()
    shop.queue.decide(shop.batch.number, committed=committed, actor="mary")
    assert shop.batch.state == ("published" if committed else "discarded")
    assert shop.states == {"ann@example.net": "ready" if committed else "staged"}
    with pytest.raises(IllegalMove):
        shop.queue.decide(shop.batch.number, committed=not committed, actor="mary")
    assert shop.queue.resolve() == []


def test_two_resolvers_at_once_decide_once(shop, zodb):
    for n in range(20):
        shop.mailer.enqueue(letter(f"m{n}"))
        zodb.write(f"sold {n}")
        shop.commit_until("finish")
        shop.die()
    queues = [shop.another() for _ in range(3)]
    ready = threading.Barrier(len(queues))
    made, errors = [], []

    def resolve(queue):
        ready.wait()
        try:
            made.extend(queue.resolve())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=resolve, args=(queue,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {decision.state for decision in made} == {"published"}
    assert len({decision.batch for decision in made}) == 20
    assert set(shop.states.values()) == {"ready"}
    assert {batch.state for batch in shop.reader.batches()} == {"published"}


# -- mail that was being sent


@pytest.mark.parametrize("on_doubt", ["retry", "hold"])
def test_what_was_being_sent_is_in_doubt(shop, tm, on_doubt):
    shop.start(on_doubt=on_doubt)
    for name in ("ann", "bob"):
        shop.mailer.send(letter(name))
    shop.mailer.enqueue(letter("eve"))
    step = shop.life.step

    def die_when_sending():
        if "sending" in {batch.state for batch in shop.reader.batches()}:
            shop.life.dead = True
        step()

    shop.life.step = die_when_sending
    with pytest.raises(Killed):
        tm.commit()
    assert shop.batch.state == "sending"
    shop.die(on_doubt=on_doubt)
    (decision,) = shop.queue.resolve()
    assert decision.reason.endswith("2 in doubt")
    seen = {delivery.recipient: delivery for delivery in shop.reader.deliveries()}
    assert shop.states == {
        "ann@example.net": "in_doubt",
        "bob@example.net": "in_doubt",
        "eve@example.net": "ready",
    }
    for name in ("ann", "bob"):
        assert seen[f"{name}@example.net"].duplicate
        assert (seen[f"{name}@example.net"].due is None) == (on_doubt == "hold")


@pytest.mark.parametrize("on_doubt", ["retry", "hold"])
@pytest.mark.parametrize("committed", [True, False])
def test_if_another_fails_to_finish_the_witness_decides(
    shop, server, zodb, tm, on_doubt, committed
):
    shop.start(on_doubt=on_doubt)
    server.refuse("refused@example.net")
    server.on(".", "451 4.3.0 later", matching="later@", times=None)
    server.on(".", CLOSE, matching="lost@", times=None)
    mailer = Mailer(
        transport_from_url(shop.url), queue=shop.queue, transaction_manager=tm, preflight="never"
    )
    shop.made.append(mailer)
    mailer.send(letter("ann"))
    mailer.send(letter("later"))
    mailer.send(letter("refused"))
    mailer.enqueue(letter("eve"))
    mailer.send(letter("lost"))
    zodb.write("sold")
    tm.get().join(Recorder("~~a" if committed else "!", fails="finish"))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    assert shop.queue.flush()
    assert ("sold" in zodb.values()) is committed
    before = {d.recipient: d for d in shop.reader.deliveries()}
    assert before["ann@example.net"].state == "sent"
    assert not any(d.promised for d in before.values())
    (decision,) = shop.queue.resolve()
    after = {d.recipient.partition("@")[0]: d for d in shop.reader.deliveries()}
    states = {name: d.state for name, d in after.items()}
    if not committed:
        assert decision.state == "discarded"
        assert not any(d.promised for d in after.values())
        return
    assert decision.state == "published"
    assert states == {
        "ann": "sent",
        "later": "ready",
        "refused": "ready",
        "eve": "ready",
        "lost": "in_doubt",
    }
    assert {name for name, d in after.items() if d.duplicate} == {"lost"}
    assert (after["lost"].due is None) == (on_doubt == "hold")


def test_a_manager_that_votes_no_after_us_leaves_it_to_the_witness(shop, zodb, tm):
    shop.mailer.enqueue(letter("ann"))
    zodb.write("sold")
    tm.get().join(Recorder("~~~", fails="vote"))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    shop.queue.flush()
    assert [decision.state for decision in shop.queue.resolve()] == ["discarded"]
    assert shop.states == {"ann@example.net": "staged"}


# -- what only seems to have failed


def cannot_be_asked(shop, monkeypatch) -> None:
    """Whoever wants to know what has become of a COMMIT gets no answer in time."""

    @contextlib.contextmanager
    def read(**options):
        raise QueueUnavailable("the disk is still out")
        yield

    monkeypatch.setattr(shop.queue.database, "read", read)
    shop.mailer._queued.commit_timeout = 0.2


def test_a_publish_that_only_seems_to_fail_has_committed(shop, tm):
    shop.mailer.enqueue(letter("ann"), idempotency_key="order 1")
    shop.life.failures = ["", "after"]
    tm.commit()
    assert shop.states == {"ann@example.net": "ready"}
    assert shop.batch.state == "published"


def test_a_publish_of_which_nobody_can_say_whether_it_failed_is_taken_back(shop, tm, monkeypatch):
    """The commit raises, and so there is no mail, nor a key that other mail would lose to."""
    shop.mailer.enqueue(letter("ann"), idempotency_key="order 1")
    shop.life.failures = ["", "after"]
    with monkeypatch.context() as patch:
        cannot_be_asked(shop, patch)
        with pytest.raises(QueueInDoubt):
            tm.commit()
    tm.abort()
    assert shop.states == {}
    assert shop.reader.batches() == []
    shop.mailer.enqueue(letter("bob"), idempotency_key="order 1")
    tm.commit()
    assert shop.states == {"bob@example.net": "ready"}


def test_what_a_worker_has_begun_with_meanwhile_is_not_taken_back(shop, tm, monkeypatch):
    shop.mailer.enqueue(letter("ann", "ann@example.net", "bob@example.net"))
    discard = shop.queue.store.take_back

    def too_late(connection, number):
        connection.execute(
            sa.text("UPDATE txmail_delivery SET state = 'sending' WHERE recipient LIKE 'ann@%'")
        )
        discard(connection, number)

    shop.queue.store.take_back = too_late
    shop.life.failures = ["", "after"]
    with monkeypatch.context() as patch:
        cannot_be_asked(shop, patch)
        with pytest.raises(QueueInDoubt):
            tm.commit()
    tm.abort()
    assert shop.states == {"ann@example.net": "sending"}
    assert shop.batch.state == "published"


def test_nothing_of_a_mailer_with_a_queue_is_torn_from_that_of_one_without(shop, server, tm):
    """Another mailer sends directly; the process dies then: what it left the queue is there."""
    shop.mailer.enqueue(letter("ann"))
    bare = Mailer(
        MortalTransport(transport_from_url(server.url), shop.life), transaction_manager=tm
    )
    shop.made.append(bare)
    bare.send(letter("bob"))
    step = shop.life.step

    def die_when_sent():
        shop.life.dead = shop.life.dead or bool(server.messages)
        step()

    shop.life.step = die_when_sent
    with pytest.raises(Killed):
        tm.commit()
    assert [m.recipients for m in server.messages] == [("bob@example.net",)]
    shop.die()
    shop.queue.resolve()
    assert shop.states == {"ann@example.net": "ready"}


def test_the_one_message_that_the_queue_has_to_go_on_with_survives(shop, server, tm):
    """It was asked to wait, the commit has returned, and the outcome could not be written."""
    server.on(".", "451 4.3.0 later", times=None)
    shop.mailer.send(letter("ann"))
    shop.life.failures = ["", "", "before"]
    tm.commit()
    assert [o.status for o in shop.mailer.last_outcomes] == ["deferred"]
    shop.die()
    shop.queue.resolve()
    assert shop.states == {"ann@example.net": "in_doubt"}


def test_the_queue_goes_on_with_nothing_that_it_cannot_promise_to(shop, server, tm):
    server.on(".", "451 4.3.0 later", times=None)
    shop.mailer.send(letter("ann"))
    shop.life.failures = ["", "before"]
    with pytest.raises(QueueUnavailable):
        tm.commit()
    tm.abort()
    assert shop.queue.flush()
    assert (shop.states, shop.reader.batches(), server.messages) == ({}, [], [])


@pytest.mark.parametrize("moment", ["", "before"])
def test_what_cannot_be_sent_immediately_survives_too(shop, server, moment):
    server.on(".", "451 4.3.0 later", times=None)
    shop.life.failures = ["", "", moment]
    (outcome,) = shop.mailer.send_immediately(letter("ann"), fail_silently=True)
    assert outcome.queued
    shop.die()
    shop.queue.resolve()
    assert shop.states == {"ann@example.net": "in_doubt" if moment else "deferred"}


def test_mail_in_a_session_that_has_committed_is_there_although_another_voted_no(
    shop, sql, tm, tmp_path
):
    """One-phase SQL commits in its vote; a key is claimed only after that."""
    metadata.create_all(sql.engine)
    queue = session_queue(sql.session)
    shop.made.append(queue)
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
    mailer.enqueue(letter("ann"), idempotency_key="order 1")
    sql.write("sold")
    tm.get().join(Recorder("~~a", fails="vote"))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    assert sql.values() == ["sold"]
    assert queue.flush(20)
    queue.resolve()
    assert queue.counts() == {"ready": 1}
