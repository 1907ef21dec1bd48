"""Hearing from other processes that there is mail: PostgreSQL tells, SQLite has to be asked.

A worker looks for mail from time to time in any case; this only makes it look sooner.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

from ...common.logs import quiet_logger
from ...common.per_process import this_process
from ...exceptions import TxmailError
from .backend import CannotListen
from .database import Database

log = quiet_logger("txmail.queue")

#: Seconds between two looks at whether a SQLite file has changed.
LOOK = 0.1
#: Seconds within which the thread ends, unless its database hangs.
PATIENCE = 10 * LOOK
#: Seconds after which a connection that was lost is tried again.
AGAIN = 5.0


class Bell:
    """Wakes one thread that also waits for something else."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._inside, self._outside = socket.socketpair()
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Wake the thread; it never waits again."""
        self._rung.set()
        with self._lock, contextlib.suppress(OSError):
            self._outside.send(b".")

    @property
    def rung(self) -> bool:
        """True if it was rung."""
        return self._rung.is_set()

    def wait(self, descriptor: int | None = None, seconds: float = LOOK) -> None:
        """Until it is rung, something can be read from `descriptor`, or `seconds` are over."""
        poll = select.poll()
        poll.register(self._inside, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)

    def close(self) -> None:
        """Close the bell, once the thread has ended."""
        with self._lock:
            self._inside.close()
            self._outside.close()


class Listening:
    """A thread that calls `heard` when another process has published mail."""

    def __init__(self, database: Database, channel: str, heard: Callable[[], object]) -> None:
        self._database = database
        self._channel = channel
        self._heard = heard
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        self._given_up = False
        #: the process of the thread: a forked child has none, and leaves its parent's alone
        self._process = this_process()

    def start(self) -> None:
        """Begin to listen, unless a thread listens already, or this database cannot tell."""
        if self._given_up:
            return
        if self._process != this_process():
            self._bell = self._thread = None
            self._process = this_process()
        alive = self._thread is not None and self._thread.is_alive()
        if alive and self._bell is not None and not self._bell.rung:
            return
        self._bell = Bell()
        self._thread = threading.Thread(
            target=self._run, args=(self._bell,), name="txmail listening", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the thread, which ends at once unless its database hangs."""
        if self._process != this_process():
            return
        if self._bell is not None:
            self._bell.ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    def _run(self, bell: Bell) -> None:
        try:
            while not bell.rung:
                self._listen(bell)
                if self._given_up:
                    return
                bell.wait(None, AGAIN)
        finally:
            bell.close()

    def _listen(self, bell: Bell) -> None:
        """Listen as long as that is possible. Never raises: workers find mail by looking, too."""
        name = self._database.name
        try:
            self._database.listen(self._channel, self._heard, bell)
        except CannotListen as error:
            self._given_up = True
            log.warning("%s: %s: workers look for mail from time to time", name, error)
        except TxmailError as error:
            log.info("%s: cannot listen: %s", name, error)
        except Exception as error:
            # Its traceback may have a password in it.
            log.error("%s: cannot listen: %s; trying again", name, type(error).__name__)
