"""kill -9 of the committing process, wherever it writes or sends: see `queues_kill`.

``TXMAIL_FULL_SWEEP=1`` has it killed everywhere in all kinds of application. Otherwise the many
writes of one kind and thread are sampled, except with ZODB and a queue of its own.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial

import killing
import pytest
import queues_kill
from killing import MAIN, UPKEEP, CannotTrace, Zygote, calls, can_trace
from queues_kill import (
    ALONE,
    KINDS,
    POSTGRESQL_KINDS,
    SQLITE_SESSION,
    TWO_PHASE,
    TWO_PHASE_SESSION,
    ZODB_KIND,
    Application,
    Bench,
    Committed,
)
from thin import one_in

from txmail.testing import ScriptedServer

FULL = bool(os.environ.get("TXMAIL_FULL_SWEEP"))
#: Of calls that there are many of, one in so many.
STRIDE = 1 if FULL else 12

pytestmark = pytest.mark.timeout(900 if FULL else 120)
needs_strace = pytest.mark.skipif(not can_trace(), reason="strace is not installed")


@pytest.fixture(scope="module")
def zygote():
    zygote = Zygote(queues_kill.__file__, Committed)
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def bench_of(request, zygote):
    """Benches by their kind."""
    with ExitStack() as end:
        made = {}

        def bench_of(kind):
            if kind not in made:
                url = ""
                if kind in POSTGRESQL_KINDS:
                    url = request.getfixturevalue("postgresql_url")
                server = end.enter_context(ScriptedServer())
                made[kind] = Bench(zygote, server, kind, url)
                end.callback(made[kind].close)
            return made[kind]

        yield bench_of


def counted(bench, thread, **options):
    """How often `thread` makes each of the calls, if nobody stops it."""
    try:
        ended = bench.run(thread=thread, **options)
    except CannotTrace:
        pytest.skip("strace may not trace here")
    assert ended.status == 0
    bench.check(ended)
    return calls(ended)


def sweep(bench, thread, part=0, parts=1, stride=STRIDE, **options):
    """Kill `thread` at each point in turn, and check what is left."""
    counts = counted(bench, thread, **options)
    killing.sweep(
        partial(bench.run, thread=thread, **options),
        lambda ended, number: bench.check(ended, commit=bool(number % 2)),
        counts,
        stride,
        part,
        parts,
    )


@pytest.mark.sweep
@needs_strace
@pytest.mark.parametrize("part", range(4))
def test_a_process_that_commits_with_zodb_can_be_killed_anywhere(bench_of, part):
    sweep(bench_of(ZODB_KIND), MAIN, part, 4, stride=1)


@pytest.mark.sweep
@needs_strace
def test_the_thread_behind_it_can_be_killed_anywhere(bench_of):
    sweep(bench_of(ZODB_KIND), UPKEEP, stride=1)


@pytest.mark.representative(every=12)
@needs_strace
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != ZODB_KIND])
@pytest.mark.parametrize("thread", [MAIN, UPKEEP])
def test_so_can_one_that_commits_with(bench_of, kind, thread):
    sweep(bench_of(kind), thread, parts=one_in(4))


@pytest.mark.sweep
@needs_strace
@pytest.mark.parametrize("kind", [ALONE, ZODB_KIND])
def test_so_can_one_that_makes_the_queue(bench_of, kind):
    stride = 1 if FULL else 24
    sweep(bench_of(kind), MAIN, stride=stride, transactions=("mixed",), fresh=True)


@pytest.mark.representative(every=7)
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_can_be_killed_at_every_step_that_python_sees(bench_of, kind):
    bench = bench_of(kind)
    ended = bench.run(step=0)
    bench.check(ended)
    steps = range(1, ended.steps + 1, 1 if FULL or not can_trace() else 24 * one_in(2))
    killed = 0
    for step in steps:
        ended = bench.run(step=step)
        bench.check(ended, commit=bool(step % 2))
        killed += ended.killed
    assert killed >= len(steps) * 0.5


@pytest.mark.representative(every=4)
@needs_strace
@pytest.mark.parametrize("commit", [True, False], ids=["committed", "rolled back"])
@pytest.mark.parametrize("kind", [TWO_PHASE, TWO_PHASE_SESSION])
def test_mail_waits_for_the_coordinator_of_a_two_phase_transaction(bench_of, kind, commit):
    bench = bench_of(kind)
    waited = 0
    counts = counted(bench, MAIN, transactions=("sent",))
    for number in range(1, counts["sendmsg"] + 1):
        ended = bench.run(
            thread=MAIN,
            trace=("sendmsg",),
            inject=f"sendmsg:signal=KILL:when={number}",
            transactions=("sent",),
        )
        bench.settle()
        application = Application(ended.job)
        try:
            if application.prepared():
                waited += 1
                for decision in application.queue.resolve():
                    assert decision.state == "unknown"
                    assert "pg_prepared_xacts" in decision.reason
                assert set(application.queue.counts()) <= {"staged"}
        finally:
            application.close()
        left = bench.check(ended, commit=commit)
        if waited:
            assert left.committed("sent") == commit
            break
    assert waited


def test_what_is_left_is_looked_at_for_faults(bench_of):
    """The check itself sees what it is there for."""
    bench = bench_of(SQLITE_SESSION)
    ended = bench.run()
    ended.lines.append("acknowledged: refused")
    with pytest.raises(AssertionError, match="refused was acknowledged and is gone"):
        bench.check(ended)
    ended = bench.run()
    application = Application(ended.job)
    with application.queue.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM txmail_delivery WHERE recipient LIKE 'a1%%'")
        connection.exec_driver_sql("UPDATE txmail_delivery SET state = 'ready'")
        connection.exec_driver_sql("UPDATE txmail_batch SET state = 'sending', process = NULL")
    application.close()
    with pytest.raises(AssertionError, match=r"a of queued is there for .* only") as caught:
        bench.check(ended)
    assert "state='ready'" in str(caught.value)
    assert "recipient='c0@example.net'" in str(caught.value)
