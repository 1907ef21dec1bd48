"""A worker of Django's in a process of its own, for `drain.py`.

``python _django_worker.py QUEUE FOLDER PORT``, where QUEUE is ``django-mailer`` or
``django-post_office`` and FOLDER has its database, speaks as `_worker.py` does, and only drains.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from _django_queues import DjangoMailer, PostOffice, django_queues
from _worker import peak


def main() -> None:
    """Wait for lines."""
    name, folder, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    django_queues(folder, None)
    logging.disable(logging.INFO)
    queue = DjangoMailer(name) if name == "django-mailer" else PostOffice(name)
    queue.drain(port)  # what is made at the first use is made now
    before = peak()
    print("ready", flush=True)
    for _ in sys.stdin:
        count, started = queue.count_left(), time.perf_counter()
        queue.drain(port)
        print(
            count - queue.count_left(), time.perf_counter() - started, peak() - before, flush=True
        )


if __name__ == "__main__":
    main()
