"""How long other databases are locked: from tpc_begin to tpc_finish, with 50 mails in the commit.

ZODB holds its commit lock for so long, and SQL its row locks. Whatever can be done before
`tpc_begin` is done in txmail's before-commit hook and not counted; the base is what smtplib takes
to send the same mails over one connection that is open. Told in round trips too, because they do
not depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import peers
import transaction
import txmail_clients
from _harness import Contender, Skip, header, interleave, relay, round_trip_of, sink, table

from txmail import mailer_from_settings

SMTPLIB = "smtplib, one connection"


class Lock:
    """A data manager that is first in everything and notes when it is locked and released."""

    def __init__(self) -> None:
        self.locked = self.seconds = 0.0

    def sortKey(self) -> str:
        """Before all others."""
        return ""

    def tpc_begin(self, _: Any) -> None:
        """The commit lock is taken."""
        self.locked = time.perf_counter()

    def commit(self, _: Any) -> None:
        """Nothing to store."""

    tpc_vote = abort = tpc_abort = commit

    def tpc_finish(self, _: Any) -> None:
        """The commit lock is released: whoever sends in tpc_finish comes later, and torn."""
        self.seconds = time.perf_counter() - self.locked


def under_lock(port: int, count: int, options: str = "") -> tuple[int, float]:
    """Commit `count` mails in one transaction."""
    lock = Lock()
    prepared = txmail_clients.envelopes(count)
    query = options and f"?{options}"
    mailer = mailer_from_settings({"mail.url": f"smtp://127.0.0.1:{port}{query}"})
    try:
        transaction.begin().join(lock)
        for envelope in prepared:
            mailer.send(envelope)
        transaction.commit()
    finally:
        mailer.close()
    return count, lock.seconds


def main() -> None:
    """Measure, and say it in round trips."""
    parser = argparse.ArgumentParser(description="Time under lock of a commit with 50 mails.")
    parser.add_argument("--quick", action="store_true", help="smtplib sends fewer")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 5")
    parser.add_argument("--round-trip", type=float, default=0.010, help="of the relay, in seconds")
    parser.add_argument("--count", type=int, default=50, help="mails in one transaction")
    arguments = parser.parse_args()
    header(("txmail", "transaction"))
    few = 5 if arguments.quick else arguments.count
    with sink(chunking=True) as running, relay(running.port, arguments.round_trip) as port:
        clients = {
            "txmail, window=64": partial(under_lock, port, arguments.count, "window=64"),
            "txmail, as it comes": partial(under_lock, port, arguments.count),
            "txmail, chunking=no": partial(under_lock, port, arguments.count, "chunking=no"),
            SMTPLIB: partial(peers.smtplib_one_connection, port, few),
        }
        contenders = [Contender(name, client) for name, client in clients.items()]
        interleave(contenders, arguments.rounds)
        table(f"{arguments.count} mails in one transaction, tpc_begin to tpc_finish;"
              f" {arguments.rounds} rounds", contenders, (SMTPLIB,), "mails")  # fmt: skip
        trip = round_trip_of(port)
        print(f"\nin round trips of {trip * 1000:.2f} ms:")
        for contender in contenders:
            trips = [arguments.count / rate / trip for rate in contender.rates]
            print(f"{contender.name:28}{statistics.median(trips):8.1f}"
                  f" ({min(trips):.1f} - {max(trips):.1f})")  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except Skip as skip:
        print(f"skipped: {skip}")
