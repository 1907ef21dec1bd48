"""What is acknowledged is on the disk: the order of writes and fsyncs, and a disk that fails.

The process and what has to be true afterwards are in `queues_kill`.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import queues_kill
from killing import MAIN, UPKEEP, CannotTrace, Zygote, can_trace
from queues_kill import (
    ALONE,
    REFUSED,
    SQLITE,
    SQLITE_SESSION,
    TRANSACTIONS,
    ZODB_KIND,
    Bench,
    Committed,
)
from thin import one_in

from txmail.testing import ScriptedServer

pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is not installed")

KINDS = (ALONE, ZODB_KIND, SQLITE, SQLITE_SESSION)
SYNCS = ("fsync", "fdatasync")
#: Where the queue is, and all files of databases: no folders, locks and logs of ours.
QUEUES = {"mail.db-wal", "items.db"}
FILES = ("mail.db", "mail.db-wal", "items.db", "items.db-journal", "Data.fs")


@pytest.fixture(scope="module")
def bench_of():
    """Benches by their kind."""
    with ExitStack() as end:
        zygote = Zygote(queues_kill.__file__, Committed)
        end.callback(zygote.close)
        made = {}

        def bench_of(kind):
            if kind not in made:
                made[kind] = Bench(zygote, end.enter_context(ScriptedServer()), kind)
                end.callback(made[kind].close)
            return made[kind]

        yield bench_of


def run(bench, **options):
    try:
        return bench.run(**options)
    except CannotTrace:
        pytest.skip("strace may not trace here")


@dataclass(frozen=True)
class Call:
    """One line of strace's."""

    name: str
    #: of the folder, without its path; empty for others
    file: str
    text: str

    @property
    def said(self) -> str:
        """The transaction that is acknowledged or failed by it."""
        found = re.search(r'"(?:acknowledged|failed): (\w[\w ]*)', self.text)
        return found[1] if found and self.file == "said" else ""

    @property
    def is_content(self) -> bool:
        """Whether a message goes out with it."""
        return self.name.startswith("send") and "From: " in self.text


def calls(log):
    for line in log.splitlines():
        found = re.match(r"(\w+)\((?:\d+<[^>]*/([^/>]+)>)?", line)
        if found:
            yield Call(found[1], found[2] or "", line)


def out_of_order(log):
    """What went out, or was said, before what it rests on was on the disk."""
    faults = []
    dirty = set()
    for call in calls(log):
        if call.name in SYNCS:
            dirty.discard(call.file)
        elif call.is_content and dirty & QUEUES:
            faults.append(f"a message was sent before {sorted(dirty & QUEUES)}")
        elif call.said:
            # The outcomes of what was sent may be lost: then it is in doubt.
            queued = any(mail.queued for mail in TRANSACTIONS[call.said])
            unsafe = dirty if queued else dirty - QUEUES
            if unsafe and "acknowledged" in call.text:
                faults.append(f"{call.said} was acknowledged before {sorted(unsafe)}")
        elif call.file == "Data.fs" and "mail.db-wal" in dirty:
            faults.append("the database committed before the queue had the mail")
        if call.name.startswith(("write", "pwrite")) and call.file in FILES:
            dirty.add(call.file)
    return faults


def syncs(log):
    """Which calls there are that wait for the disk, with their numbers among those of a name."""
    count = dict.fromkeys(SYNCS, 0)
    for call in calls(log):
        if call.name in SYNCS:
            count[call.name] += 1
            yield call.name, count[call.name]


def struck(log):
    """The transaction in which the disk failed, if nothing of it was irrevocable before."""
    failed = irrevocable = False
    for call in calls(log):
        failed = failed or ("INJECTED" in call.text and call.file in FILES and not irrevocable)
        committed = call.name == "unlink" and "items.db-journal" in call.text
        irrevocable = irrevocable or call.is_content or call.file == "Data.fs" or committed
        if call.said:
            if failed:
                return call.said
            irrevocable = False
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_an_fsync_lies_between_the_row_and_the_acknowledgement(bench_of, kind):
    bench = bench_of(kind)
    ended = run(bench, thread=MAIN)
    bench.check(ended)
    assert sum(call.said in ended.acknowledged for call in calls(ended.log)) == 5
    assert sum(call.is_content for call in calls(ended.log)) == 4
    assert out_of_order(ended.log) == []


@pytest.mark.parametrize("how", ["NORMAL", "OFF"])
def test_where_there_is_none_it_is_missed(bench_of, how):
    """The check itself sees what it is there for."""
    bench = bench_of(ZODB_KIND)
    ended = run(bench, thread=MAIN, synchronous=how)
    bench.check(ended)
    faults = out_of_order(ended.log)
    assert "the database committed before the queue had the mail" in faults
    assert any(fault.endswith("was acknowledged before ['mail.db-wal']") for fault in faults)


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_does_not_reach_the_disk_is_never_acknowledged(bench_of, kind):
    bench = bench_of(kind)
    for name in TRANSACTIONS:
        counted = run(bench, thread=MAIN, transactions=(name,))
        bench.check(counted)
        raised = 0
        for call, number in list(syncs(counted.log))[:: one_in(3)]:
            inject = f"{call}:error=EIO:when={number}"
            ended = run(bench, thread=MAIN, inject=inject, transactions=(name,))
            bench.check(ended)
            if struck(ended.log):
                assert ended.failed == [name]
                raised += 1
        # This one has nothing to write before somebody refuses.
        assert raised or (kind == SQLITE_SESSION and name == REFUSED)


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_for_good_lets_nothing_be_acknowledged_any_more(bench_of, kind):
    bench = bench_of(kind)
    counted = run(bench, thread=MAIN)
    bench.check(counted)
    numbers = [number for call, number in syncs(counted.log) if call == "fdatasync"]
    for number in numbers[::4]:
        ended = run(bench, thread=MAIN, inject=f"fdatasync:error=EIO:when={number}+")
        bench.check(ended)
        name = struck(ended.log)
        if name is not None:
            later = list(TRANSACTIONS)[list(TRANSACTIONS).index(name) :]
            assert ended.failed == ["refused"] * (name not in ("queued", "sent", "refused")) + later


@pytest.mark.parametrize("kind", [ZODB_KIND, SQLITE_SESSION])
def test_what_fails_in_the_background_is_done_again(bench_of, kind):
    bench = bench_of(kind)
    counted = run(bench, thread=UPKEEP)
    bench.check(counted)
    found = list(syncs(counted.log))
    assert found
    for call, number in found[:: one_in(2)]:
        ended = run(bench, thread=UPKEEP, inject=f"{call}:error=EIO:when={number}")
        left = bench.check(ended)
        assert ended.failed == ["refused"]
        assert {mail for mail in ("e", "f") if mail in left.rows} == set()
