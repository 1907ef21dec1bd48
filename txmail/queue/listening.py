"""Hearing from other processes that there is mail: PostgreSQL tells, SQLite has to be asked.

Who hears nothing looks all the same after a while; this only makes it soon.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..exceptions import TxmailError
from .database import Database

log = logging.getLogger("txmail.queue")

#: Seconds between two looks at whether a SQLite file has changed.
LOOK = 0.1
#: Seconds within which the thread ends, unless its database hangs.
PATIENCE = 10 * LOOK
#: Seconds after which a connection that was lost is tried again.
AGAIN = 5.0


class Listening:
    """A thread that calls `heard` when another process has published mail."""

    def __init__(self, database: Database, channel: str, heard: Callable[[], object]) -> None:
        self._database = database
        self._channel = channel
        self._heard = heard
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen, unless that is being done."""
        alive = self._thread is not None and self._thread.is_alive()
        if alive and not self._stopped.is_set():
            return
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stopped,), name="txmail listening", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Do so no more. Waits for the thread for as long as it should take at most."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                self._database.listen(self._channel, self._heard, stopped.is_set, LOOK)
            except TxmailError as error:
                log.info("%s: cannot listen: %s", self._database.name, error)
            stopped.wait(AGAIN)
