"""The wire: messages a second over round trips of 0, 1, 10 and 50 ms, beside everybody else.

Every client sends 1, 10, 100 and 1000 messages over connections that are open, in five rounds of
which each client has its turn; then the same to a real Postfix. It ends with the rows where txmail
loses, and with what it wants to reach. ``README.rst`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import peers
import txmail_clients
from _harness import (
    HERE,
    Contender,
    Skip,
    circumstances,
    header,
    interleave,
    postfix_sink,
    relay,
    round_trip_of,
    sink,
)
from _plot import Series, plot

# How to run a Postfix of one's own is a matter of the tests, too.
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from postfix import AVAILABLE, MAIN_CF, NEEDS, running_postfix

PACKAGES = ("txmail", "aiosmtplib", "python-slimta", "gevent")

SMTPLIB, BARE, FLOOR = "smtplib", "bare pipelined loop", "raw TCP floor"
PIPELINING, PIPELINING_10 = "txmail, pipelining", "txmail, pipelining, 10 connections"
WINDOW = "txmail, window {}"
WINDOW_10 = "txmail, window 64, 10 connections"

#: Seconds that one client may take in one round, with connecting: five rounds stay below 5.
SHARE, QUICK_SHARE = 0.75, 0.2
#: The ratio below which a client is called slower.
SLOWER = 0.995
#: Round trips of connecting and of QUIT.
CEREMONY = 5
LOOPBACK, SINK, SMTP_SINK, POSTFIX = "127.0.0.1", "our sink", "smtp-sink", "Postfix"
#: Nothing is delivered: what one client has sent must not be a load for the next.
HOLD_CF = MAIN_CF + "smtpd_client_restrictions = static:hold\n"


@dataclass(frozen=True)
class Client:
    """Who sends, and where that makes sense."""

    name: str
    run: Callable[..., tuple[int, float]]
    sessions: int = 1
    #: the fewest messages at which it is measured
    fewest: int = 1
    #: it makes use of CHUNKING
    chunking: bool = False

    @property
    def ours(self) -> bool:
        """True for txmail."""
        return self.name.startswith("txmail")


def _txmail(name: str, options: str, sessions: int = 1, fewest: int = 1) -> Client:
    run = partial(txmail_clients.session, options=options, connections=sessions)
    return Client(name, run, sessions, fewest, chunking="chunking=no" not in options)


CLIENTS = (
    *(_txmail(WINDOW.format(window), f"window={window}") for window in (1, 16, 64, 256)),
    _txmail(PIPELINING, "chunking=no"),
    _txmail(WINDOW_10, "window=64", 10, 10),
    _txmail(PIPELINING_10, "chunking=no", 10, 10),
    Client(SMTPLIB, peers.smtplib_one_connection),
    Client("aiosmtplib", peers.aiosmtplib_one_connection),
    Client("python-slimta", peers.slimta_one_connection),
    # Its start would be most of the time that a few messages take.
    Client("smtp-source -s1", peers.smtp_source, fewest=100),
    Client("smtp-source -s10", partial(peers.smtp_source, sessions=10), 10, fewest=100),
    Client(BARE, peers.bare_loop),
    Client(FLOOR, peers.raw_floor, chunking=True),
)
BY_NAME = {client.name: client for client in CLIENTS}


@dataclass(frozen=True)
class Block:
    """What is compared: one server, one round trip, one number of messages."""

    server: str
    #: seconds; what was asked for, and what a NOOP took
    round_trip: float
    measured: float
    count: int
    contenders: Sequence[Contender]

    @property
    def title(self) -> str:
        """In words."""
        asked, measured = round(self.round_trip * 1000, 1), self.measured * 1000
        return f"{self.server}, {asked:g} ms ({measured:.2f} ms measured), N = {self.count}"

    def find(self, name: str) -> Contender | None:
        """The contender of that name."""
        return next((c for c in self.contenders if c.name == name), None)

    def show(self) -> None:
        """Print it."""
        bases = [base for base in (self.find(SMTPLIB), self.find(FLOOR)) if base]
        columns = "".join(f"  {'x ' + base.name:>26}" for base in bases)
        print(f"\n{self.title}\n{'':36}{'sent':>6}{'messages/s':>13}{columns}")
        for one in self.contenders:
            ratios = "".join(f"  {one.ratio_to(base)!s:>26}" for base in bases)
            print(f"{one.name:36}{statistics.median(one.units):>6.0f}{one.rate:>13,.1f}{ratios}")
        sys.stdout.flush()


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    clients: Sequence[Client]
    round_trips: Sequence[float]
    counts: Sequence[int]
    #: the same for Postfix
    real_counts: Sequence[int]
    rounds: int
    share: float

    def block(
        self,
        server: str,
        port: int,
        round_trip: float,
        count: int,
        arrived: Callable[[], int] | None = None,
        host: str = LOOPBACK,
    ) -> Block:
        """Measure it. `arrived` is the number of messages that the server has."""
        measured = round_trip_of(port, 10, host)
        limit = max(0.1, self.share - CEREMONY * measured)
        contenders = [
            Contender(client.name, partial(_counted, client, arrived, port, count, limit, host))
            for client in self.clients
            if count >= client.fewest
            and not (client.chunking and server == SMTP_SINK)
            and not (client.name == FLOOR and server == POSTFIX)
        ]
        interleave(contenders, self.rounds)
        block = Block(server, round_trip, measured, count, contenders)
        block.show()
        return block


def _counted(
    client: Client, arrived: Callable[[], int] | None, port: int, count: int, limit: float,
    host: str,
) -> tuple[int, float]:  # fmt: skip
    """Run `client`, and see to it that every message has arrived."""
    before = arrived() if arrived else 0
    sent, seconds = client.run(port, count, limit, host)
    if arrived and client.name != FLOOR and arrived() - before < sent:
        raise RuntimeError(f"{client.name}: {arrived() - before} of {sent} messages have arrived")
    return sent, seconds


@contextlib.contextmanager
def line(port: int, round_trip: float) -> Iterator[int]:
    """A port that is `round_trip` seconds away from `port`."""
    if not round_trip:
        yield port
    else:
        with relay(port, round_trip) as away:
            yield away


def our_sink(plan: Plan) -> Iterator[Block]:
    """The grid: our sink, at all round trips."""
    with sink(chunking=True) as running:
        for round_trip in plan.round_trips:
            with line(running.port, round_trip) as port:
                for count in plan.counts:
                    yield plan.block(SINK, port, round_trip, count, running.messages)


def real_servers(plan: Plan) -> Iterator[Block]:
    """Postfix's sink on loopback, and Postfix itself at round trips up to 10 ms."""
    try:
        with postfix_sink() as port:
            yield plan.block(SMTP_SINK, port, 0, max(plan.counts))
    except Skip as skip:
        print(f"\nskipped: {skip}")
    if not AVAILABLE:
        print(f"\nskipped: Postfix ({NEEDS})")
        return
    print(f"\nPostfix, its queue in {tempfile.gettempdir()}")
    with running_postfix(HOLD_CF) as postfix:
        for round_trip in plan.round_trips:
            if round_trip in (0, 0.010):
                with line(postfix.port, round_trip) as port:
                    for count in plan.real_counts:
                        yield plan.block(POSTFIX, port, round_trip, count)


def far_server(plan: Plan, host: str, port: int) -> Iterator[Block]:
    """A sink of ours that somebody has started somewhere, as far away as it is."""
    away = round_trip_of(port, 20, host)
    with socket.create_connection((host, port), timeout=60) as asking:
        answers = asking.makefile("rb")
        answers.readline()

        def arrived() -> int:
            asking.sendall(b"XSTAT\r\n")
            return int(answers.readline().split()[1])

        for count in plan.counts:
            yield plan.block(SINK, port, away, count, arrived, host)


def present(clients: Sequence[Client]) -> list[Client]:
    """The clients that are installed; says which are not."""
    found = []
    with sink(chunking=True) as running:
        for client in clients:
            try:
                client.run(running.port, 1)
            except Skip as skip:
                print(f"skipped: {client.name} ({skip})")
            else:
                found.append(client)
    return found


# What comes out of it


def losses(blocks: Sequence[Block]) -> Iterator[str]:
    """The rows where txmail is slower than somebody with as many connections."""
    for block in blocks:
        for one in block.contenders:
            client = BY_NAME[one.name]
            for other in block.contenders:
                rival = BY_NAME[other.name]
                comparable = client.ours and not rival.ours and client.sessions == rival.sessions
                ratio = one.ratio_to(other)
                if comparable and rival.name != FLOOR and ratio.median < SLOWER:
                    yield f"{block.title}: {one.name} {ratio} of {other.name}"


@dataclass(frozen=True)
class Target:
    """So many times as fast as somebody; None is any, of which the slowest must reach it."""

    server: str
    round_trip: float
    count: int | None
    client: str | None
    base: str
    least: float
    #: it speaks of TCP with its congestion window, which the relay has not
    tcp: bool = False

    def judged(self, blocks: Sequence[Block], tcp: bool) -> str:
        """A line about it; `tcp` if there was no relay."""
        who = self.client or "txmail, one connection, the slowest"
        count = f"N = {self.count}" if self.count else "any N"
        said = f"{self.server}, {self.round_trip * 1000:g} ms, {count}: {who}"
        said = f"{said:62}  {self.least:>6g} x {self.base:20}"
        found = [
            one.ratio_to(base)
            for block in blocks
            if self._is_about(block) and (base := block.find(self.base))
            for one in block.contenders
            if one.name == self.client or (self.client is None and _alone(BY_NAME[one.name]))
        ]
        if not found:
            return f"{said} not measured"
        worst = min(found, key=lambda ratio: ratio.median)
        if self.tcp and not tcp:
            return f"{said} {worst} with a relay; the target is for --server"
        return f"{said} {'reached' if worst.median >= self.least else 'NOT REACHED'}: {worst}"

    def _is_about(self, block: Block) -> bool:
        near = abs(block.measured - self.round_trip) < max(0.0005, self.round_trip / 10)
        return block.server == self.server and near and self.count in (None, block.count)


def _alone(client: Client) -> bool:
    return client.ours and client.sessions == 1


TARGETS = (
    Target(SINK, 0.010, 1000, WINDOW.format(64), SMTPLIB, 150),
    Target(SINK, 0.010, 1000, WINDOW.format(256), SMTPLIB, 280),
    Target(SINK, 0.010, 1000, WINDOW.format(256), FLOOR, 0.9, tcp=True),
    Target(SINK, 0.010, 100, WINDOW.format(64), SMTPLIB, 40),
    Target(SINK, 0.010, 10, WINDOW.format(64), SMTPLIB, 8),
    Target(SINK, 0.010, 1, WINDOW.format(64), SMTPLIB, 1.5),
    Target(SINK, 0.010, 1000, PIPELINING, SMTPLIB, 3.8),
    Target(SINK, 0.010, 1000, PIPELINING_10, SMTPLIB, 30),
    Target(SMTP_SINK, 0, 1000, PIPELINING, BARE, 0.8),
    Target(SINK, 0, 1000, PIPELINING, BARE, 0.8),
    Target(SINK, 0, 1000, WINDOW.format(64), SMTPLIB, 90),
    Target(POSTFIX, 0.010, 1000, WINDOW.format(64), SMTPLIB, 35),
    Target(POSTFIX, 0, None, None, SMTPLIB, 0.95),
)


def drawing(blocks: Sequence[Block], plan: Plan) -> str:
    """The plot: messages a second over the round trip, for the largest number of messages."""
    count = max(block.count for block in blocks)
    shown = [block for block in blocks if block.server == SINK and block.count == count]
    lines = []
    for client in plan.clients:
        found = [(block.measured * 1000, block.find(client.name)) for block in shown]
        points = [(away, one.rate) for away, one in found if one]
        if points:
            lines.append(Series(client.name, points, client.ours))
    notes = (
        *circumstances(PACKAGES),
        f"{count} messages of 1 KB, medians of {plan.rounds} rounds, our sink behind a relay that "
        "delays; on the left loopback without a relay.",
        "A window is the number of messages in flight on a connection. Who is too slow to send "
        "all in its time sends fewer.",
        "The bare loop checks nothing; the floor has no dialogue, and the relay no congestion "
        "window, which TCP has.",
    )
    title = "One sender: messages a second over the round trip"
    return plot(title, "round trip, ms", "messages/s", lines, notes)


def memory(messages: int) -> None:
    """Stream from a generator and see that memory stays where it was. Exits if it does not."""
    with sink(chunking=True) as running:
        seconds, grown = txmail_clients.streamed(running.port, messages, "window=64")
        assert running.messages() == messages
    print(f"\n{messages} messages streamed, window 64: {messages / seconds:,.0f} a second")
    print(f"most memory: {grown / 1024:.1f} MB more than before the first")
    if grown > txmail_clients.GROWTH:
        raise SystemExit(f"that is more than {txmail_clients.GROWTH / 1024:.0f} MB")


def numbers(text: str) -> list[float]:
    """Of ``1,10``."""
    return [float(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Messages a second over round trips.")
    parser.add_argument("--quick", action="store_true", help="a small grid; ends in two minutes")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 5")
    parser.add_argument("--round-trips", type=numbers, help="in milliseconds, such as 0,10")
    parser.add_argument("--counts", type=numbers, help="of messages, such as 1,1000")
    parser.add_argument("--clients", help="those whose names have one of these words, as a,b")
    parser.add_argument("--only-our-sink", action="store_true", help="no Postfix")
    parser.add_argument("--server", metavar="HOST:PORT", help="a sink elsewhere, instead of all")
    parser.add_argument("--plot", type=Path, help="write a plot (SVG) to this file")
    parser.add_argument("--memory", action="store_true", help="stream 200,000 messages instead")
    parser.add_argument("--messages", type=int, default=200_000, help="for --memory")
    given = parser.parse_args()
    if not 5 <= given.rounds <= 100:
        parser.error("--rounds: 5 to 100")
    return given


def planned(given: argparse.Namespace) -> Plan:
    """The plan for what was asked for."""
    words = (given.clients or "").split(",")
    wanted = [c for c in CLIENTS if c.name == SMTPLIB or any(word in c.name for word in words)]
    counts = [int(n) for n in given.counts or ((10, 1000) if given.quick else (1, 10, 100, 1000))]
    return Plan(
        present(wanted),
        [trip / 1000 for trip in given.round_trips or ((0, 10) if given.quick else (0, 1, 10, 50))],
        counts,
        counts[-1:] if given.quick else counts,
        given.rounds,
        QUICK_SHARE if given.quick else SHARE,
    )


def main() -> None:
    """Run it."""
    given = arguments()
    header(PACKAGES)
    if given.memory:
        memory(given.messages)
        return
    started = time.monotonic()
    plan = planned(given)
    if given.server:
        host, _, port = given.server.rpartition(":")
        blocks = list(far_server(plan, host, int(port)))
    else:
        blocks = list(our_sink(plan))
        if not given.only_our_sink:
            blocks += real_servers(plan)
    print("\nWhere txmail is slower than somebody with as many connections")
    rows = list(losses(blocks))
    print(*rows or ["nowhere"], sep="\n")
    print("\nWhat it is to reach")
    print(*(target.judged(blocks, bool(given.server)) for target in TARGETS), sep="\n")
    if given.plot:
        given.plot.write_text(drawing(blocks, plan))
        print(f"\nplot: {given.plot}")
    print(f"\n{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    main()
