"""The subcommand: runs all scenarios and says whether txmail kept every promise."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exits import CannotRun, Exit, require

if TYPE_CHECKING:
    from .display import Display
    from .scenario import Report, Scenario

_DESCRIPTION = """\
Run real transactions against a ZODB, an SQLite database and a local SMTP
server, and compare what txmail promises with what happens. The demo takes a
few seconds, needs no network and no configuration, and leaves nothing behind.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``demo`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "demo",
        help="show what txmail promises, and what happens",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="write plain text, as to a pipe: no colours, no progress",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Exit:
    """Run every scenario; `Exit.FAILED` if a promise was broken. Raises `CannotRun`."""
    require("demo", "ZODB", "sqlalchemy", "zope.sqlalchemy", "rich")
    from .display import Display
    from .scenarios import SCENARIOS

    plain = arguments.plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    display = Display(sys.stdout, plain=plain)
    with _quiet_logging():
        started = time.perf_counter()
        with display:
            reports = list(_play_all(SCENARIOS, display))
        display.closing(reports, time.perf_counter() - started)
    return Exit.OK if all(report.kept for report in reports) else Exit.FAILED


def _play_all(scenarios: tuple[Scenario, ...], display: Display) -> Iterator[Report]:
    """Run each scenario on a setup of its own, in a folder that is removed at the end."""
    from sqlalchemy.exc import OperationalError

    from .scenario import perform
    from .setup import Setup

    display.opening(len(scenarios))
    with _folder() as folder:
        for number, scenario in enumerate(scenarios, 1):
            display.begins(number, scenario)
            try:
                setup = Setup(folder / str(number))
            except (OSError, OperationalError) as error:
                problem = str(error).partition("\n")[0]
                raise CannotRun(f"a server or a database cannot be opened: {problem}") from error
            with setup:
                report = perform(scenario, setup)
            display.ended(number, report)
            yield report


@contextmanager
def _folder() -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory(prefix="txmail-demo-")
    except OSError as error:
        raise CannotRun(f"there is no folder for the databases: {error}") from error
    with temporary as name:
        yield Path(name)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep Python from printing the log lines of the failures that scenarios cause."""
    handler = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
