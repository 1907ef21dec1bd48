"""What a mail adds to a commit: one mail to a local Postfix, against the same commit without.

Postfix runs with ``docs/smarthost/main.cf``, the route that is recommended, and hands every mail on
at once to a sink that stands for the provider: without TLS and a password, of which a commit sees
nothing. The databases are a ZODB FileStorage and SQLite through zope.sqlalchemy, both on the disk
of the system's temporary folder, as is Postfix's queue.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import transaction
from _harness import HERE, Running, Skip, header, is_installed, sink
from peers import RECIPIENT, SENDER, contents

from txmail import Envelope, mailer_from_settings

# How to run a Postfix of one's own is a matter of the tests, too.
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from postfix import AVAILABLE, NEEDS, Postfix, running_postfix, within

MAIN_CF = HERE.parent / "docs" / "smarthost" / "main.cf"
APPENDED = """
queue_directory = {{base}}/queue
data_directory = {{base}}/data
maillog_file = {{base}}/log
maillog_file_prefixes = {{base}}
relayhost = [127.0.0.1]:{port}
smtp_tls_security_level = none
smtp_sasl_auth_enable = no
"""

#: Milliseconds, of a whole transaction and of its commit alone.
Times = tuple[float, float]


@dataclass
class Commits:
    """The transactions of one kind: with a mail or without, in one database."""

    rounds: list[list[Times]] = field(default_factory=list)

    def quantiles(self, which: int, percent: int) -> list[float]:
        """That quantile of each round; `which` is 0 for transactions, 1 for commits."""
        return [quantile([times[which] for times in one], percent) for one in self.rounds]

    def overall(self, which: int, percent: int) -> float:
        """That quantile of all rounds together."""
        return quantile([times[which] for one in self.rounds for times in one], percent)


def quantile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of `values` are."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@contextlib.contextmanager
def file_storage(folder: Path) -> Iterator[Callable[[int], None]]:
    """A write to a FileStorage; raises `Skip` without ZODB."""
    if not is_installed("ZODB"):
        raise Skip("ZODB is not installed")
    import ZODB
    import ZODB.FileStorage

    database = ZODB.DB(ZODB.FileStorage.FileStorage(str(folder / "Data.fs")))
    connection = database.open()

    def write(number: int) -> None:
        connection.root()["number"] = number

    try:
        yield write
    finally:
        transaction.abort()
        connection.close()
        database.close()


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Callable[[int], None]]:
    """A write to SQLite through zope.sqlalchemy; raises `Skip` where that is missing."""
    if not (is_installed("sqlalchemy") and is_installed("zope.sqlalchemy")):
        raise Skip("SQLAlchemy or zope.sqlalchemy is not installed")
    import sqlalchemy as sa
    import zope.sqlalchemy
    from sqlalchemy.orm import Session

    engine = sa.create_engine(f"sqlite:///{folder}/numbers.sqlite")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))
    session = Session(engine)
    zope.sqlalchemy.register(session)

    def write(number: int) -> None:
        session.execute(sa.text("INSERT INTO numbers VALUES (:number)"), {"number": number})
        zope.sqlalchemy.mark_changed(session)

    try:
        yield write
    finally:
        transaction.abort()
        session.close()
        engine.dispose()


DATABASES = {"ZODB FileStorage": file_storage, "SQLite, zope.sqlalchemy": sqlite}


def one(write: Callable[[], None], send: Callable[[], object]) -> Times:
    """A transaction that writes, and calls `send` too: its milliseconds, and the commit's."""
    started = time.perf_counter()
    transaction.begin()
    write()
    send()
    committing = time.perf_counter()
    transaction.commit()
    ended = time.perf_counter()
    return (ended - started) * 1000, (ended - committing) * 1000


def measure(
    write: Callable[[int], None], send: Callable[[], object], rounds: int, count: int
) -> tuple[Commits, Commits]:
    """Commits without and with a mail, in turn, after a round that does not count."""
    without, with_mail = Commits(), Commits()
    kinds = [(without, lambda: None), (with_mail, send)]
    for number in range(rounds + 1):
        for commits, _ in kinds:
            commits.rounds.append([])
        for step in range(count):
            for commits, action in kinds if step % 2 else kinds[::-1]:
                commits.rounds[-1].append(one(lambda step=step: write(step), action))
        if number == 0:
            for commits, _ in kinds:
                commits.rounds.clear()
    return without, with_mail


def report(title: str, without: Commits, with_mail: Commits) -> None:
    """Print a line for each quantile of each clock."""
    print(f"\n{title}\n{'milliseconds':24}{'without':>10}{'one mail':>10}{'more':>10}  ratio")
    for which, clock in ((1, "commit"), (0, "begin to end")):
        for percent in (50, 99):
            a, b = without.overall(which, percent), with_mail.overall(which, percent)
            ratios = [
                y / x
                for x, y in zip(
                    without.quantiles(which, percent),
                    with_mail.quantiles(which, percent),
                    strict=True,
                )
            ]
            print(
                f"{clock + ', p' + str(percent):24}{a:10.2f}{b:10.2f}{b - a:10.2f}"
                f"  {statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
            )
    sys.stdout.flush()


def run(name: str, postfix: Postfix, provider: Running, rounds: int, count: int) -> None:
    """Measure one database; at the end the provider must have every mail, or RuntimeError."""
    mailer = mailer_from_settings({"mail.url": postfix.url, "mail.default_sender": SENDER})
    envelope = Envelope(SENDER, [RECIPIENT], contents(1)[0])
    before = provider.messages()
    with tempfile.TemporaryDirectory() as folder, DATABASES[name](Path(folder)) as write:
        results = measure(write, lambda: mailer.send(envelope), rounds, count)
    mailer.close()
    report(f"{name}; {rounds} rounds of {count} pairs", *results)
    expected = before + (rounds + 1) * count
    within(60, lambda: provider.messages() == expected and not postfix.queue_files())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="A commit with a mail, and one without.")
    parser.add_argument("--quick", action="store_true", help="fewer commits")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, at least 5")
    arguments = parser.parse_args()
    if not 5 <= arguments.rounds <= 100:
        parser.error("--rounds: 5 to 100")
    count = 50 if arguments.quick else 500
    header(("txmail", "transaction", "ZODB", "SQLAlchemy", "zope.sqlalchemy"))
    if not AVAILABLE:
        print(f"skipped: {NEEDS}")
        return
    with sink() as provider:
        main_cf = MAIN_CF.read_text() + APPENDED.format(port=provider.port)
        with running_postfix(main_cf) as postfix:
            for name in DATABASES:
                try:
                    run(name, postfix, provider, arguments.rounds, count)
                except Skip as skip:
                    print(f"\n{name}: skipped: {skip}")


if __name__ == "__main__":
    main()
