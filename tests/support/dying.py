"""Processes of our own that do something to a queue and then die, and ways in which they do."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator

from claiming import claim_and_load
from workers import another, change

from txmail.queue import schema
from txmail.queue.sql import claim

#: Seconds that such a process gets.
PATIENCE = 30.0


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """The pid of a child that has done `work` and waits; it is killed at the end, and reaped."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            work()
            os.write(writing, b"done")
        finally:
            while True:
                signal.pause()
    os.close(writing)
    try:
        assert select.select([reading], [], [], PATIENCE)[0], "the child is stuck"
        assert os.read(reading, 4) == b"done"
        yield pid
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def killed(work: Callable[[], object]) -> int:
    """Have a child do `work` and kill it with SIGKILL; its pid, which is nobody's any more."""
    with forked(work) as pid:
        return pid


def hold(app, *, ready: int = 0, begun: int = 0, lease: float = 300.0) -> Callable[[], None]:
    """What a worker does to so many deliveries: it claims them, and begins some of them."""

    def work() -> None:
        queue = another(app)
        with queue.database.write() as connection:
            now = queue.database.now_ms(connection)
            until = queue.database.lease_now_ms(connection) + int(lease * 1000)
            queue.store.beat(connection, now, "worker")
            for token, limit in ((1, begun), (2, ready)):
                if not limit:
                    continue
                works = claim_and_load(
                    connection,
                    token=token,
                    now_ms=now,
                    lease_ms=until,
                    limit=limit,
                )
                if token == 1:
                    claim.begin(connection, works)
        queue.close()

    return work


def change_process(app, pid: int, **values) -> None:
    """Have the row of a process say something else of it."""
    change(app, schema.process.update().where(schema.process.c.pid == pid).values(**values))
