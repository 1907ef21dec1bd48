"""A machine that does anything in any order, is killed anywhere, and never loses or invents mail.

What must be in the queue and at the server is worked out beside it, in plain Python, from what the
application did, from what its commits came to, and from what its database holds.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
import transaction
from commits import note
from databases import Failure, SqlDatabase, ZodbDatabase
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from queues_machine import (
    Killed,
    Life,
    MortalTransport,
    MortalWitness,
    Reader,
    arrived,
    other,
)
from thin import one_in

from txmail import Envelope, Mailer, transport_from_url
from txmail.datamanager import SORT_KEY
from txmail.exceptions import (
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    QueueUnavailable,
)
from txmail.integrations.session_queue import session_queue
from txmail.integrations.sqlalchemy import SqlWitness, witness_metadata
from txmail.integrations.zodb import ZodbWitness
from txmail.queue import schema
from txmail.queue.process_identity import DEAD_AFTER_S
from txmail.queue.queue import Queue
from txmail.testing import CLOSE, NO_REPLY, ScriptedServer, then

#: how the server takes messages of senders whose address begins with this
ENDS = {
    "later": "451 4.3.0 not now",
    "never": "554 5.6.0 not like this",
    "lost": CLOSE,
    "taken": then(NO_REPLY, CLOSE),
}
#: senders after whose messages the connection is gone
LOSSY = ("lost", "taken")
RECIPIENTS = ("ann@example.net", "bob@example.net")
REFUSALS = {"later@example.net": "450 4.2.0 greylisted", "never@example.net": "550 5.1.1 who?"}
#: sort keys of others: before all databases, between them and us, and behind us
KEYS = ("!", "~~a", "~~~")
PHASES = ("", "begin", "commit", "vote", "finish")

COMMITTED, ABORTED, OPEN, UNKNOWN = "committed", "aborted", "open", "unknown"
#: neither: SQL that commits in its own vote, and an error after it
TORN = "torn"

_SOME = st.sampled_from([RECIPIENTS[:1], RECIPIENTS[1:], RECIPIENTS])
#: what a transaction does: a method of the machine, and its arguments
ACTS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(["", *ENDS]), _SOME),
    st.tuples(st.just("send"), st.just(""), _SOME),
    st.tuples(st.just("enqueue"), _SOME, st.sampled_from([None, "k1", "k2"])),
    st.tuples(st.sampled_from([("savepoint",), ("roll_back", 0), ("roll_back", 1)])).map(
        lambda chosen: chosen[0]
    ),
)
_OTHERS = st.tuples(st.just("join"), st.sampled_from(KEYS), st.sampled_from(PHASES))
_REFUSED = st.sampled_from(list(REFUSALS)).map(lambda r: ("send", "", (RECIPIENTS[0], r)))
_KILLED = st.tuples(st.just("will_be_killed"), st.integers(0, 25))
_FAILURES = st.tuples(
    st.integers(0, 3), st.sampled_from(["before", "after"]), st.sampled_from(["", "before"])
).map(lambda chosen: ("store_will_fail", *[""] * chosen[0], *chosen[1:]))
#: what happens to it: mostly nothing, or one thing
BEFALLS = st.one_of(
    st.just([]),
    st.lists(_OTHERS, min_size=1, max_size=2),
    st.tuples(_REFUSED),
    st.tuples(_KILLED),
    st.tuples(_FAILURES),
    st.tuples(_OTHERS, _KILLED),
    st.just([("server_goes_or_comes",)]),
    st.tuples(st.tuples(st.just("clock_jumps"), st.sampled_from([-86400, -3600, 3600, 86400]))),
    st.just([("abort",)]),
    st.tuples(_FAILURES, _KILLED),
)


@dataclass(eq=False)
class Mail:
    """One call of `send` or `enqueue`."""

    envelope: Envelope
    direct: bool
    end: str
    key: str | None = None

    @property
    def clean(self) -> bool:
        """True if the server takes it."""
        return not self.direct or (
            not self.end and set(self.envelope.recipients).isdisjoint(REFUSALS)
        )


@dataclass(eq=False)
class Work:
    """One transaction, and what became of it."""

    mails: list[Mail] = field(default_factory=list)
    savepoints: list[tuple[object, int]] = field(default_factory=list)
    #: what was rolled back
    undone: list[Mail] = field(default_factory=list)
    #: what it wrote into the application's database
    marker: str | None = None
    #: sort keys of others that take part, and the phase in which they fail
    others: list[tuple[str, str]] = field(default_factory=list)
    #: True if a commit has failed in a hook, and it can be committed again
    again: bool = False
    fate: str = OPEN
    #: True if its process died before all was written
    killed: bool = False
    #: True if the queue's writes have failed meanwhile
    failures: bool = False
    #: True if there is something that its process, or the resolver, has still to do
    settling: bool = False
    error: BaseException | None = None
    outcomes: dict[tuple[str, str], object] = field(default_factory=dict)

    @property
    def lossy(self) -> bool:
        """True if something of it may be in doubt without anybody's having died."""
        return any(mail.end in LOSSY for mail in self.mails if mail.direct)


class Machine(RuleBasedStateMachine):
    """See the subclasses for what takes part."""

    savepoints = True
    always_writes = False

    # -- setting up

    @initialize(
        on_partial=st.sampled_from(["queue", "abort"]),
        on_unavailable=st.sampled_from(["queue", "abort"]),
        on_doubt=st.sampled_from(["retry", "hold"]),
    )
    def start(self, on_partial, on_unavailable, on_doubt):
        if on_partial == on_unavailable == "abort":
            on_partial = "queue"  # else the queue has nothing to do with it
        self.options = {"on_partial": on_partial, "on_unavailable": on_unavailable}
        self.on_doubt = on_doubt
        self.folder = Path(tempfile.mkdtemp(prefix="txm"))
        self.server = ScriptedServer().start()
        for end, action in ENDS.items():
            self.server.on(".", action, matching=f"{end}-", times=None)
        for address, reply in REFUSALS.items():
            self.server.refuse(address, reply)
        self.up = True
        self.now = self.latest = 1_800_000_000.0
        self.tm = transaction.TransactionManager()
        self.count = self.lives = 0
        self.ended: list[Work] = []
        #: which mail has a key
        self.winners: dict[str, str] = {}
        self.open_database()
        self.live()
        self.reader = Reader(self.engine())
        self.work = Work()

    def open_database(self):
        self.database = None

    def engine(self):
        return sa.create_engine(f"sqlite:///{self.folder}/mail.db", poolclass=sa.NullPool)

    def make_queue(self):
        return Queue(
            f"sqlite:///{self.folder}/mail.db",
            witnesses=[MortalWitness(w, self.life) for w in self.witnesses()],
            on_doubt=self.on_doubt,
            clock=lambda: self.now,
        )

    def witnesses(self):
        return []

    def live(self):
        """Begin another life."""
        self.life = Life()
        self.lives += 1
        self.queue = self.make_queue()
        self.queue.counts()
        self.life.attach(self.queue)
        self.mailer = Mailer(
            MortalTransport(transport_from_url(self.server.url), self.life),
            queue=self.queue,
            transaction_manager=self.tm,
            **self.options,
        )

    def die(self):
        """The end of this life, wherever it was."""
        self.life.dead = True
        for work in self.ended:
            work.killed = work.killed or work.settling
            if work.settling and work.fate is ABORTED and work.failures:
                work.fate = OPEN  # it could not take back what it had written
        self.tm.abort()
        self.queue.host.background.tasks.clear()
        self.mailer.close()
        self.reader.bury(f"dead {self.lives}")
        self.live()

    def teardown(self):
        if not hasattr(self, "folder"):
            return
        try:
            self.finish()
        finally:
            self.tm.abort()
            self.mailer.close()
            if self.database is not None:
                self.database.close()
            self.server.stop()
            self.reader.engine.dispose()
            shutil.rmtree(self.folder)

    def finish(self):
        self.abort()
        self.resolve()
        for batch in self.reader.batches():
            assert batch.state in ("published", "discarded", "unknown"), batch
            assert batch.state != "unknown" or batch.reason
        self.mail_is_where_it_belongs()

    # -- what an application does

    def _mail(self, direct, end, recipients, key=None):
        self.count += 1
        name = f"m{self.count}"
        sender = f"{end or 'fine'}-{name}@example.com"
        mail = Mail(note(name, recipients=recipients, sender=sender), direct, end, key)
        self.work.mails.append(mail)
        return mail.envelope

    def send(self, end, recipients):
        self.mailer.send(self._mail(True, end, recipients))

    def enqueue(self, recipients, key):
        envelope = self._mail(False, "", recipients, key)
        self.mailer.enqueue(envelope, idempotency_key=key)

    def savepoint(self):
        if self.savepoints:
            self.work.savepoints.append((self.tm.savepoint(), len(self.work.mails)))

    def roll_back(self, index):
        if not self.work.savepoints:
            return
        index %= len(self.work.savepoints)
        savepoint, length = self.work.savepoints[index]
        savepoint.rollback()
        del self.work.savepoints[index + 1 :]
        self.work.undone += self.work.mails[length:]
        del self.work.mails[length:]

    def join(self, key, fails):
        self.tm.get().join(other(self.life, key, fails))
        self.work.others.append((key, fails))
        self.work.savepoints.clear()  # what joins later is taken out by an older one

    def will_be_killed(self, steps):
        self.life.dies_in = steps

    def store_will_fail(self, *failures):
        self.life.failures = list(failures)

    @rule(does=st.lists(ACTS, min_size=1, max_size=5), befalls=BEFALLS, writes=st.booleans())
    def transact(self, does, befalls, writes):
        """The most usual thing: some mail, and a commit."""
        if self.ended and self.ended[-1].failures:
            self.flush()  # what could not be written may be in the way of what comes
        for name, *arguments in [*does, *befalls]:
            getattr(self, name)(*arguments)
        self.commit(writes)

    @rule(does=st.lists(ACTS, min_size=2, max_size=5), steps=st.integers(3, 20))
    def transact_and_be_killed(self, does, steps):
        """The same, and the process dies in it, or soon after."""
        self.transact(does, [("will_be_killed", steps)], False)

    @precondition(lambda self: self.work.again)
    @rule(writes=st.booleans())
    def commit_again(self, writes):
        self.commit(writes)

    def abort(self):
        self.tm.abort()
        self._ended(ABORTED)

    # -- what befalls it

    @rule()
    def is_killed(self):
        self._killed()

    def clock_jumps(self, seconds):
        self.now += seconds
        self.latest = max(self.latest, self.now)

    def server_goes_or_comes(self):
        if self.up:
            self.server.stop()
        else:
            self.server.start()
        self.up = not self.up

    # -- the end of a transaction

    def commit(self, writes):
        work = self.work
        if (writes or self.always_writes) and self.database is not None and not work.marker:
            self.count += 1
            work.marker = f"t{self.count}"
            self.database.write(work.marker)
        faultless = self.life.dies_in is None and not self.life.failures
        work.failures = work.failures or bool(self.life.failures)
        work.savepoints.clear()
        try:
            self.tm.commit()
        except Killed:
            self._killed()
            return
        except (DeliveryError, Failure) as error:
            work.error = error
            self._failed(error)
        else:
            self._committed(work)
        if faultless:
            self._as_expected(work)

    def _committed(self, work):
        if work.mails:
            found = self.mailer.last_outcomes
            work.outcomes = {(o.message_id, o.recipient): o for o in found}
        self._ended(COMMITTED)

    def _failed(self, error):
        work = self.work
        if self.tm.get().status == "Active":
            work.again = True  # in a hook: as if nothing had been
            return
        outcomes = getattr(error, "outcomes", ())
        work.outcomes = {(o.message_id, o.recipient): o for o in outcomes}
        self.tm.abort()
        behind = isinstance(error, Failure) and str(error) > SORT_KEY
        left = isinstance(error, Failure) and (
            " finish" in str(error) or (behind and " vote" in str(error))
        )
        if behind and " finish" in str(error):
            self._committed(work)  # everybody else had finished
        elif left and work.mails:
            self._ended(OPEN)
        elif work.marker and work.marker in self.database.values():
            assert left or self.may_tear(error), f"raised, and is committed: {error!r}"
            self._ended(TORN)
        else:
            self._ended(ABORTED)

    def may_tear(self, error):
        """Whether the database may have committed in spite of `error`."""
        return False

    def _ended(self, fate):
        work, self.work = self.work, Work()
        work.fate = fate
        work.settling = work.killed or bool(self.queue.host.background.tasks)
        self.ended.append(work)

    def _killed(self):
        if self.work.mails or self.work.undone or self.work.marker:
            self.work.killed = True
            self._ended(OPEN)
        else:
            self.work = Work()
        self.die()

    def _as_expected(self, work):
        """A transaction of which nothing outside of the model has disturbed the commit."""
        failing = any(fails for _, fails in work.others)
        direct = [mail for mail in work.mails if mail.direct]
        clean = all(mail.clean for mail in direct)
        if failing:
            assert work.fate is not COMMITTED or work.error is not None
        elif not direct or (clean and self.up):
            assert work.fate is COMMITTED, work.error
            for outcome in work.outcomes.values():
                assert outcome.permits_commit
            for mail in direct:
                for recipient in mail.envelope.recipients:
                    assert work.outcomes[mail.envelope.message_id, recipient].status == "accepted"
        elif any("never@" in r for mail in direct for r in mail.envelope.recipients) and self.up:
            assert type(work.error) is DeliveryRefused
        elif not self.up and self.options["on_unavailable"] == "abort":
            assert type(work.error) is DeliveryUnavailable
        elif not self.up or set(self.options.values()) == {"queue"}:
            # What is refused for good is an error, as long as nothing is out.
            assert work.fate is COMMITTED or type(work.error) is DeliveryRefused, work.error

    # -- what is done about it

    @rule()
    def flush(self):
        try:
            self.queue.flush()
        except Killed:
            self._killed()
        else:
            for work in self.ended:
                work.settling = work.killed and work.settling

    @precondition(lambda self: not self.work.again)
    @rule()
    def resolve(self):
        self.life.dies_in, self.life.failures = None, []
        self.queue.flush()
        # Who has never come to say that it lives is waited for.
        self.now = self.latest = self.latest + DEAD_AFTER_S
        self.queue.resolve()
        batches = {message: b for b in self.reader.batches() for message in b.messages}
        for work in self.ended:
            if work.fate in (OPEN, UNKNOWN):
                self._resolved(work, batches)
            work.settling = False
        for batch in self.reader.batches():
            assert batch.state not in ("staged", "sending", "publishing"), batch

    def _resolved(self, work, batches):
        found = {batches.get(mail.envelope.message_id) for mail in work.mails}
        if work.again:
            found.discard(None)  # what was to be staged when it was killed
        assert len(found) <= 1, f"one transaction, several batches: {found}"
        batch = found.pop() if found else None
        state = batch.state if batch is not None else "discarded"
        if state == "unknown":
            assert batch.reason
            assert work.again or (work.others and not work.marker), batch.reason
            work.fate = UNKNOWN
        elif work.marker:
            committed = work.marker in self.database.values()
            assert (state == "published") == (committed and bool(work.mails)), batch
            work.fate = COMMITTED if committed else ABORTED
        else:
            work.fate = COMMITTED if state == "published" else ABORTED
            count = sum(len(mail.envelope.recipients) for mail in work.mails)
            if work.fate is ABORTED and count > 1 and not (work.others or work.error):
                there = arrived(self.server.messages)
                contents = {content for content, _ in there}
                assert contents.isdisjoint(mail.envelope.content for mail in work.mails), "torn"

    @precondition(lambda self: any(work.fate is UNKNOWN for work in self.ended))
    @rule(committed=st.booleans())
    def decide(self, committed):
        work = next(work for work in self.ended if work.fate is UNKNOWN)
        mine = {mail.envelope.message_id for mail in work.mails}
        batch = next(b for b in self.reader.batches() if b.messages & mine)
        self.life.dies_in, self.life.failures = None, []
        self.queue.decide(batch.number, committed=committed, actor="ann")
        work.fate = COMMITTED if committed else ABORTED

    # -- what must be true at any time

    @invariant()
    def mail_is_where_it_belongs(self):
        if not hasattr(self, "reader"):
            return
        rows: dict[tuple[str, str], list] = {}
        for row in self.reader.deliveries():
            rows.setdefault((row.message, row.recipient), []).append(row)
        for address, found in rows.items():
            assert len(found) == 1, f"{address} is there {len(found)} times"
        there = arrived(self.server.messages)
        assert set(there.values()) <= {1}, "something has arrived twice"
        self._check_keys(rows)
        everything = list(rows.values())
        for work in self.ended:
            self._check(work, rows, there, everything)
        for work in [*self.ended, self.work]:
            for mail in work.undone:
                for recipient in mail.envelope.recipients:
                    assert (mail.envelope.message_id, recipient) not in rows
                    assert (mail.envelope.content, recipient) not in there
        for mail in self.work.mails:
            for recipient in mail.envelope.recipients:
                row = rows.pop((mail.envelope.message_id, recipient), [None])[0]
                assert row is None or row.state == "staged"
                assert (mail.envelope.content, recipient) not in there
        assert not rows, f"nobody's: {rows}"
        assert not there, f"nobody's: {there}"

    def _check_keys(self, rows):
        """Of all mail with one key, one is sent: always the same."""
        for work in self.ended:
            for mail in work.mails if work.fate is COMMITTED and not work.settling else ():
                if mail.key:
                    message = mail.envelope.message_id
                    row = rows[message, mail.envelope.recipients[0]][0]
                    if row.state != "cancelled":
                        assert self.winners.setdefault(mail.key, message) == message

    def _check(self, work, rows, there, everything):
        for mail in work.mails:
            for recipient in mail.envelope.recipients:
                row = rows.pop((mail.envelope.message_id, recipient), [None])[0]
                out = bool(there.pop((mail.envelope.content, recipient), 0))
                if row is not None:
                    assert row.content == mail.envelope.content
                    self._check_row(work, mail, row, out)
                if work.settling:
                    continue
                if work.fate is COMMITTED:
                    assert row is not None, f"lost: {mail}"
                    self._check_committed(work, mail, row, out, everything)
                elif work.fate is not TORN:
                    self._check_not_committed(work, mail, row, out)

    def _check_row(self, work, mail, row, out):
        """What is true of any row, however its transaction has ended."""
        if row.state == "sent":
            assert out
        if row.state in ("ready", "deferred", "failed", "sending"):
            assert not out, f"would be sent again: {row}"
        if row.state == "failed":
            assert mail.end == "never" or "never@" in row.recipient
        if row.state == "in_doubt":
            assert row.duplicate
            assert work.lossy or work.killed or work.fate is not COMMITTED
            if self.on_doubt == "hold":
                assert row.due is None
        else:
            assert not row.duplicate

    def _check_committed(self, work, mail, row, out, everything):
        if row.state == "cancelled":
            assert mail.key
            said, _, number = row.reply.rpartition(" ")
            assert said == "duplicate of message"
            (winner,) = {r.message for found in everything for r in found if r.id == int(number)}
            assert winner != row.message
            return
        outcome = work.outcomes.get((row.message, row.recipient))
        if not mail.direct:
            assert row.state == "ready"
        elif work.killed or outcome is None:
            assert row.promised or row.state in ("sent", "failed", "in_doubt"), row
        else:
            expected = {"accepted": ("sent",), "unsent": ("ready",)}
            assert row.state in expected.get(outcome.status, (outcome.status,))

    def _check_not_committed(self, work, mail, row, out):
        if row is not None and row.promised:
            # One-phase SQL has committed, and another manager has failed after it.
            known = work.fate is OPEN and work.marker in self.database.values()
            assert known, f"would be sent, and did not commit: {row}"
        elif row is not None:
            allowed = ("sent", "in_doubt", "cancelled")
            if work.fate is not ABORTED or work.killed or isinstance(work.error, Failure):
                allowed += ("staged",)
            assert row.state in allowed, row
        if out and work.fate is ABORTED and not work.killed:
            outcome = work.outcomes.get((mail.envelope.message_id, mail.envelope.recipients[0]))
            assert isinstance(work.error, (PartialDelivery, Failure)), f"{work.error!r}"
            if isinstance(work.error, PartialDelivery):
                assert outcome.status in ("accepted", "in_doubt")
                assert row.state in ("sent", "in_doubt")


class Alone(Machine):
    """Nobody but us takes part, except for those who know nothing later."""


class WithZodb(Machine):
    """A ZODB takes part in some transactions."""

    def open_database(self):
        self.database = ZodbDatabase(self.folder, self.tm)
        self.database.write("first")
        self.tm.commit()

    def witnesses(self):
        return [ZodbWitness(self.database.db)]


class WithSql(Machine):
    """An SQLite database of the application takes part in all transactions."""

    savepoints = False
    always_writes = True

    def open_database(self):
        url = f"sqlite:///{self.folder}/items.db"
        self.database = SqlDatabase(url, self.tm, connect_args={"timeout": 1})
        witness_metadata.create_all(self.database.engine)

    def witnesses(self):
        return [SqlWitness(self.database.session)]

    def may_tear(self, error):
        if isinstance(error, DeliveryError):
            return error.databases_may_be_committed or isinstance(error, QueueUnavailable)
        return "vote" in str(error) and str(error) > "~sqlalchemy"


class InSession(WithSql):
    """The queue is in the application's database."""

    def open_database(self):
        super().open_database()
        schema.metadata.create_all(self.database.engine)

    def engine(self):
        return sa.create_engine(f"sqlite:///{self.folder}/items.db", poolclass=sa.NullPool)

    def make_queue(self):
        return session_queue(self.database.session, on_doubt=self.on_doubt, clock=lambda: self.now)


MACHINES = {"alone": Alone, "zodb": WithZodb, "sql": WithSql, "session": InSession}


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("kind", MACHINES)
def test_mail_is_there_if_and_only_if_it_was_committed(kind):
    run_state_machine_as_test(
        MACHINES[kind],
        settings=settings(
            max_examples=30 // one_in(3),
            stateful_step_count=25,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # making a failure small takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
