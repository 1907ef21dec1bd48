"""A worker in a process of its own, for `drain.py`.

``python _worker.py QUEUE_URL SMTP_URL`` prints ``ready``. A line on its standard input then has it
drain the queue, or with ``run`` work until the next line; it answers with the number of deliveries,
the seconds, and by how many kilobytes the process grew beyond what it had when it was ready.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def peak() -> int:
    """The most kilobytes this process has had so far; 0 where ``/proc`` is missing."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    """Wait for lines."""
    from txmail import transport_from_url
    from txmail.queue.queue import Queue
    from txmail.worker import Worker
    from txmail.worker.worker import RunningWorker

    queue, transport = Queue(sys.argv[1]), transport_from_url(sys.argv[2])
    queue.database.prepare()
    Worker(queue, transport).run_once()  # what is made at the first use is made now
    before = peak()
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        worker = Worker(queue, transport)
        if line.strip() == "run":
            running = RunningWorker(worker)
            print("running", flush=True)
            sys.stdin.readline()
            running.stop()
        else:
            worker.run_once()
        seconds = time.perf_counter() - started
        print(worker.written_count, seconds, peak() - before, flush=True)
    queue.close()


if __name__ == "__main__":
    main()
