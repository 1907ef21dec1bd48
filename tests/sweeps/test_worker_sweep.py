"""kill -9 of a worker, wherever it writes or sends: see `workers_kill`.

``TXMAIL_FULL_SWEEP=1`` has it killed everywhere, with both stores and whatever the server offers.
Otherwise of the keeper's many writes there are samples, most of them with SQLite; of all else that
writes or sends, everything.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import ExitStack
from functools import partial

import pytest
from thin import one_in

pytest.importorskip("sqlalchemy")

import killing
import workers_kill
from killing import MAIN, UPKEEP, CannotTrace, Zygote, calls, can_trace
from queues import OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds, postgresql_database
from workers_kill import OFFERS, Bench

log = logging.getLogger(__name__)

FULL = bool(os.environ.get("TXMAIL_FULL_SWEEP"))
#: Kinds of queues, what the server offers, and the stride: of calls that there are many of, one in
#: so many is taken.
BENCHES = [(OWN_SQLITE, "stream", 8), (OWN_SQLITE, "pipeline", 32), (OWN_POSTGRESQL, "stream", 32)]
if FULL:
    BENCHES = [(kind, offer, 1) for kind in OWN_QUEUES for offer in OFFERS]
#: Of the steps that Python sees, one in so many.
STEP = 1 if FULL else 24 if can_trace() else 6

KEEPER = (MAIN, 0)
#: Those that send, each over a connection of its own: the second is kept free for high priority.
SENDING = (("txmail default", 0), ("txmail default", 1))
#: And those that would like to.
LANES = (*SENDING, ("txmail other", 0), ("txmail other", 1))
OTHERS = ((UPKEEP, 0), ("txmail listening", 0))

pytestmark = pytest.mark.timeout(3600 if FULL else 180)
needs_strace = pytest.mark.skipif(not can_trace(), reason="strace is not installed")
benches = pytest.mark.parametrize(("kind", "offer", "stride"), BENCHES)


@pytest.fixture(scope="module")
def bench_of(request):
    """Benches by the kind of their queue and what their server offers."""
    with ExitStack() as end:
        zygote = Zygote(workers_kill.__file__)
        end.callback(zygote.close)
        made = {}

        def bench_of(kind, offer):
            if (kind, offer) not in made:
                url = ""
                if kind == OWN_POSTGRESQL:
                    server = request.getfixturevalue("postgresql_url")
                    url = postgresql_database(server, f"sweep_{offer}")
                made[kind, offer] = Bench(zygote, offer, url)
                end.callback(made[kind, offer].close)
            return made[kind, offer]

        yield bench_of


def counted(bench, thread, which):
    """How often a thread makes each of the calls, if nobody stops it."""
    try:
        left = bench.run(thread=thread, which=which)
    except CannotTrace:
        pytest.skip("strace may not trace here")
    assert left.ended.status == 0
    assert not left.begun
    return calls(left.ended)


def sweep(bench, thread, which, stride=1):
    """Kill a thread at each point in turn; its calls, and how often something was in doubt."""
    begun = Counter()

    def check(left, number):
        begun[bool(left.begun)] += 1
        assert left.killed or not left.begun

    counts = counted(bench, thread, which)
    run = partial(bench.run, thread=thread, which=which)
    killed = killing.sweep(run, check, counts, stride)
    words = "%s %d: %s; killed %d times, %d of them with something in doubt"
    log.info(words, thread, which, dict(counts), killed, begun[True])
    return counts, begun


@pytest.mark.sweep
@needs_strace
@benches
def test_a_worker_can_be_killed_wherever_it_writes(bench_of, kind, offer, stride):
    _, begun = sweep(bench_of(kind, offer), *KEEPER, stride)
    assert begun[True]
    assert begun[False]


@pytest.mark.sweep
@needs_strace
@benches
@pytest.mark.parametrize(("thread", "which"), LANES)
def test_a_worker_can_be_killed_wherever_it_sends(bench_of, kind, offer, stride, thread, which):
    counts, begun = sweep(bench_of(kind, offer), thread, which)
    if (thread, which) in SENDING:
        assert counts["sendmsg"] > 1
        assert begun[True]


@pytest.mark.sweep
@needs_strace
@kinds(*OWN_QUEUES)
@pytest.mark.parametrize(("thread", "which"), OTHERS)
def test_nothing_that_is_done_beside_it_changes_that(bench_of, kind, thread, which):
    sweep(bench_of(kind, "stream"), thread, which)


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_a_worker_can_be_killed_at_every_step_that_python_sees(bench_of, kind):
    bench = bench_of(kind, "stream")
    steps = range(1, bench.run(step=0).ended.steps + 1, STEP * one_in(3))
    killed = sum(bench.run(step=step).killed for step in steps)
    assert killed >= len(steps) * 0.5
