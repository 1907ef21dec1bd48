"""Tells workers that there is mail: those of this process at once, others through the database."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from ..common.logs import quiet_logger
from .background import Background
from .database.database import Database
from .database.listener import Listening

log = quiet_logger("txmail.queue")

#: The channel on which a database server tells workers that there is mail.
CHANNEL = "txmail"

#: Called when there is mail, by the thread that has published it: must not block.
Listener = Callable[[], object]


class Notifier:
    """Tells workers that there is mail in the queue of `database`."""

    def __init__(self, database: Database, background: Background) -> None:
        self._database = database
        self._background = background
        self.listeners: list[Listener] = []
        self._listening = Listening(database, CHANNEL, self.wake)

    def subscribe(self, listener: Listener, *, listen: bool) -> None:
        """Call `listener` when there is mail; with `listen`, also for mail of other processes."""
        self.listeners.append(listener)
        if listen:
            self._listening.start()

    def unsubscribe(self, listener: Listener) -> None:
        """The end of `subscribe`."""
        self.listeners.remove(listener)
        if not self.listeners:
            self._listening.stop()

    def wake(self) -> None:
        """Tell the workers of this process. A listener that raises is logged."""
        for listener in list(self.listeners):
            try:
                listener()
            except Exception:
                log.exception("%s: a listener failed", self._database.name)

    def announce(self, connection: sa.Connection) -> None:
        """Tell the workers of other processes when the transaction of `connection` commits."""
        self._database.notify(connection, CHANNEL)

    def announce_later(self) -> None:
        """Tell all workers; the caller does not wait for the database."""
        self.wake()
        if self._database.notifies:
            self._background.do(self._announce)

    def _announce(self) -> None:
        with self._database.write(durable=False) as connection:
            self.announce(connection)
