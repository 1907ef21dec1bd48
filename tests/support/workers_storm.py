"""A worker that goes on until it is killed, made by a `killing.Zygote`."""

from __future__ import annotations

from dataclasses import dataclass

from killing import Job, serve

from txmail import transport_from_url
from txmail.queue import retry
from txmail.queue.queue import Queue
from txmail.worker import Worker
from txmail.worker.router import Route

#: Deliveries in a claim, and messages that are on their way at once.
BATCH, WINDOW = 8, 8
#: What one worker can have begun with and not written: on each of its two connections what waits
#: to be sent, what is on its way, and what has been answered since it last wrote.
IN_FLIGHT = 2 * (BATCH + WINDOW + 1 + BATCH)
#: Seconds; what a dead worker had is free for others after it.
LEASE = 5.0
#: Milliseconds after which what is in doubt is tried again.
DOUBT_DELAY_MS = 1000


@dataclass(frozen=True, kw_only=True)
class Storming(Job):
    """A job: to send what is in a queue."""

    queue: str
    server: str


def work(job: Storming) -> None:
    """What the process does."""
    retry.DOUBT_DELAY_MS = DOUBT_DELAY_MS
    route = Route.to("default", transport_from_url(job.server), window=WINDOW)
    Worker(Queue(job.queue), [route], batch=BATCH, lease=LEASE).run()


if __name__ == "__main__":
    serve(Storming, work)
