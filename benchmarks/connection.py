"""One connection: messages a second, and what many small transactions cost.

Part ``a``: prepared messages over one open connection, on loopback and at a round trip of 10 ms,
beside clients that open one for each message. Part ``b``: 50 transactions of one mail each.
``README.rst`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial

import peers
import txmail_clients
from _harness import (
    Contender,
    Running,
    Skip,
    header,
    interleave,
    postfix_sink,
    relay,
    sink,
    table,
)

BARE = "bare pipelined loop"
SMTPLIB = "smtplib, one connection"
SMTPLIB_EACH = "smtplib, a connection each"
PACKAGES = ("txmail", "transaction", "repoze.sendmail", "zope.sendmail", "aiosmtplib")

Client = Callable[[int, int], tuple[int, float]]

#: Clients that send all messages over one connection.
ONE_CONNECTION: dict[str, Client] = {
    "txmail, a session": txmail_clients.session,
    BARE: peers.bare_loop,
    SMTPLIB: peers.smtplib_one_connection,
    "aiosmtplib, one connection": peers.aiosmtplib_one_connection,
}
#: Clients that open one for each.
CONNECTION_EACH: dict[str, Client] = {
    SMTPLIB_EACH: peers.smtplib_connection_each,
    "repoze.sendmail": peers.repoze_sendmail,
    "zope.sendmail": peers.zope_sendmail,
}


def present(clients: dict[str, Client]) -> dict[str, Client]:
    """The clients whose packages are installed; says which are not."""
    found = {}
    with sink() as running:
        for name, client in clients.items():
            try:
                client(running.port, 1)
            except Skip as skip:
                print(f"skipped: {name} ({skip})")
            else:
                found[name] = client
    return found


def counted(counter: Running | None, client: Client, port: int, count: int) -> tuple[int, float]:
    """Run `client`, and see to it that every message has arrived."""
    before = counter.messages() if counter else 0
    result = client(port, count)
    if counter is not None and counter.messages() - before != count:
        raise RuntimeError(f"{counter.messages() - before} of {count} messages have arrived")
    return result


def measure_connections(
    title: str, port: int, counter: Running | None, many: int, few: int, rounds: int
) -> None:
    """Part a: `many` messages for clients with one connection, `few` for the others."""
    contenders = [
        Contender(name, partial(counted, counter, client, port, count))
        for clients, count in ((ONE_CONNECTION, many), (CONNECTION_EACH, few))
        for name, client in present(clients).items()
    ]
    interleave(contenders, rounds)
    table(f"{title}; {many} messages, {few} of clients with a connection each; {rounds} rounds",
          contenders, (SMTPLIB, BARE), "messages")  # fmt: skip


def measure_transactions(title: str, port: int, counter: Running, count: int, rounds: int) -> None:
    """Part b: `count` transactions of one mail each."""
    clients: dict[str, Client] = {
        "txmail": txmail_clients.transactions,
        "txmail, all in one transaction": txmail_clients.one_transaction,
        **CONNECTION_EACH,
    }
    contenders = [
        Contender(name, partial(counted, counter, client, port, count))
        for name, client in present(clients).items()
    ]
    interleave(contenders, rounds)
    table(f"{title}; {count} transactions of one mail; {rounds} rounds", contenders,
          (SMTPLIB_EACH, "repoze.sendmail"), "mails")  # fmt: skip


def part_a(arguments: argparse.Namespace) -> None:
    """Throughput over one connection."""
    many, few = (300, 50) if arguments.quick else (1500, 150)
    slow_many, slow_few = (20, 3) if arguments.quick else (50, 5)
    rounds = arguments.rounds
    with sink() as running:
        measure_connections("loopback, our sink", running.port, running, many, few, rounds)
        with relay(running.port, arguments.round_trip) as port:
            title = f"{arguments.round_trip * 1000:.0f} ms round trip, our sink"
            measure_connections(title, port, running, slow_many, slow_few, rounds)
    try:
        with postfix_sink() as port:
            measure_connections("loopback, smtp-sink of Postfix", port, None, many, few, rounds)
    except Skip as skip:
        print(f"\nskipped: {skip}")


def part_b(arguments: argparse.Namespace) -> None:
    """Many small transactions."""
    count = 10 if arguments.quick else 50
    with sink() as running:
        measure_transactions("loopback", running.port, running, count, arguments.rounds)
        with relay(running.port, arguments.round_trip) as port:
            title = f"{arguments.round_trip * 1000:.0f} ms round trip"
            measure_transactions(title, port, running, count, arguments.rounds)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description="Messages a second, and small transactions.")
    parser.add_argument("--quick", action="store_true", help="fewer messages; ends in seconds")
    parser.add_argument("--part", choices=("a", "b", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 5")
    parser.add_argument("--round-trip", type=float, default=0.010, help="of the relay, in seconds")
    arguments = parser.parse_args()
    if not 5 <= arguments.rounds <= 100:
        parser.error("--rounds: 5 to 100")
    logging.basicConfig(level=logging.WARNING)  # a peer logs the mail it has lost
    header(PACKAGES)
    if arguments.part in ("a", "all"):
        part_a(arguments)
    if arguments.part in ("b", "all"):
        part_b(arguments)


if __name__ == "__main__":
    main()
