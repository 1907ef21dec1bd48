"""What all benchmarks share: servers in processes of their own, interleaved rounds, tables.

Times on a shared machine drift. So every contender runs once in every round, in an order that
turns by one each round, and what is compared is the ratio to the base *of the same round*: the
median of those ratios, with the lowest and the highest beside it. Rates are medians too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Skip(Exception):
    """Something is not installed here; the text says what."""


@dataclass
class Contender:
    """Something that is measured: `run` does its work once and returns units and seconds."""

    name: str
    run: Callable[[], tuple[int, float]]
    #: of each round that counts: units, and units a second
    units: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Do it once and keep the rate."""
        units, seconds = self.run()
        self.units.append(units)
        self.rates.append(units / seconds)

    @property
    def rate(self) -> float:
        """Units a second: the median."""
        return statistics.median(self.rates)

    def ratio_to(self, base: Contender) -> Ratio:
        """How many times as fast as `base`, round by round."""
        ratios = [a / b for a, b in zip(self.rates, base.rates, strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Ratio:
    """Two contenders compared: the median of the rounds, and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        decimals = next((3 - n for n, top in enumerate((0.1, 10, 100)) if self.median < top), 0)
        low, high = (f"{value:.{decimals}f}" for value in (self.low, self.high))
        return f"{self.median:.{decimals}f} ({low} - {high})"


def timed(units: int, function: Callable[[], object]) -> tuple[int, float]:
    """Call `function`; `units` and the seconds it took."""
    started = time.perf_counter()
    function()
    return units, time.perf_counter() - started


def interleave(contenders: Sequence[Contender], rounds: int) -> None:
    """Measure all contenders `rounds` times after a round that does not count."""
    for number in range(rounds + 1):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            contender.measure()
        if number == 0:
            for contender in contenders:
                contender.units.clear()
                contender.rates.clear()


def table(title: str, contenders: Sequence[Contender], bases: Sequence[str], unit: str) -> None:
    """Print the median rate of each, and its ratio to each of `bases` with the range."""
    by_name = {contender.name: contender for contender in contenders}
    bases = [base for base in bases if base in by_name]
    width = max(len(contender.name) for contender in contenders)
    columns = "".join(f"  {'x ' + base:>32}" for base in bases)
    print(f"\n{title}\n{'':{width}}  {unit + '/s':>12}{columns}")
    for contender in contenders:
        cells = "".join(f"  {contender.ratio_to(by_name[base])!s:>32}" for base in bases)
        print(f"{contender.name:{width}}  {contender.rate:>12,.1f}{cells}")
    sys.stdout.flush()


def header(packages: Sequence[str]) -> None:
    """Print what anybody needs who wants to repeat this."""
    print(*circumstances(packages), sep="\n", flush=True)


def circumstances(packages: Sequence[str]) -> tuple[str, str, str]:
    """The command, the machine and the versions, a line each."""
    command = " ".join(["$ python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    versions = [f"{platform.python_implementation()} {platform.python_version()}"]
    versions += [f"{package} {_version(package)}" for package in packages]
    return command, f"{machine}, {os.cpu_count()} CPUs", ", ".join(versions)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree" if is_installed(package) else "not installed"


def is_installed(package: str) -> bool:
    """True if `package` can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package it is in is missing too
        return False


# Servers


@dataclass
class Running:
    """A sink or relay in a process of its own."""

    port: int
    process: subprocess.Popen[str]

    def messages(self) -> int:
        """The number of messages a sink has taken so far."""
        assert self.process.stdout is not None
        self.tell("?")
        return int(self.process.stdout.readline())

    def tell(self, line: str) -> None:
        """Write `line` to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def _program(name: str, *arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / name), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield Running(int(line.removeprefix("listening ")), process)
        finally:
            process.stdin.close()
            process.wait(10)


@contextlib.contextmanager
def sink(*, chunking: bool = False) -> Iterator[Running]:
    """`_sink.py`, on its port."""
    with _program("_sink.py", *(["--chunking"] if chunking else [])) as running:
        yield running


@contextlib.contextmanager
def relay(port: int, round_trip: float) -> Iterator[int]:
    """`_relay.py` in front of `port`; its port. Prints the round trip that was measured.

    The time that the relay and two more wakings take is measured first, and taken off what the
    relay adds, so that it is `round_trip` seconds in all.
    """
    with _program("_relay.py", str(port), "--round-trip", str(round_trip)) as running:
        excess = round_trip_of(running.port, 20) - round_trip
        running.tell(str(round_trip - excess))
        measured = round_trip_of(running.port, 20)
        print(
            f"\nrelay: {round_trip * 1000:.1f} ms round trip asked for, "
            f"{measured * 1000:.2f} ms measured (median of 20 NOOPs)"
        )
        yield running.port


@contextlib.contextmanager
def postfix_sink() -> Iterator[int]:
    """Postfix's ``smtp-sink``, on the port returned. Raises `Skip` where it is missing."""
    program = shutil.which("smtp-sink", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise Skip("smtp-sink (of Postfix) is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        program,
        *(["-u", "nobody"] if os.geteuid() == 0 else []),
        f"127.0.0.1:{port}",
        "256",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            if not _answers(port, process):
                raise Skip("smtp-sink does not start here")
            yield port
        finally:
            process.terminate()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """True when something answers on `port`; False if the process ends, or after 5 seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and process.poll() is None:
        try:
            round_trip_of(port, count=1)
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def round_trip_of(port: int, count: int = 50, host: str = "127.0.0.1") -> float:
    """Seconds from a NOOP to its reply: the median of `count`."""
    with socket.create_connection((host, port), timeout=10) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connected.makefile("rb") as replies:
            replies.readline()
            seconds = []
            for _ in range(count):
                started = time.perf_counter()
                connected.sendall(b"NOOP\r\n")
                replies.readline()
                seconds.append(time.perf_counter() - started)
            connected.sendall(b"QUIT\r\n")
            replies.readline()
    return statistics.median(seconds)
