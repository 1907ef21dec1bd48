"""The subcommand: plays all scenarios and says whether every promise was kept."""

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
    from .scenario import Renderer, Report, Scenario

_DESCRIPTION = """\
Run real transactions against a ZODB, an SQLite database and a local SMTP
server, and compare what was promised with what happened. It takes a few
seconds, needs no network and no configuration, and leaves nothing behind.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``demo`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "demo",
        help="see what is promised, and what happens, on two real databases",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="plain text, as when the output is not a terminal: no colours, no progress",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Exit:
    """Play every scenario; `Exit.FAILED` if a promise was broken. Raises `CannotRun`."""
    require("demo", "ZODB", "sqlalchemy", "zope.sqlalchemy")
    from .scenarios import SCENARIOS

    renderer = _renderer(arguments.plain)
    with _quiet_logging():
        started = time.perf_counter()
        with renderer:
            reports = list(_play_all(SCENARIOS, renderer))
        renderer.closing(reports, time.perf_counter() - started)
    return Exit.OK if all(report.kept for report in reports) else Exit.FAILED


def _renderer(plain: bool) -> Renderer:
    if plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        from .plain import Plain

        return Plain(sys.stdout)
    require("demo", "rich")
    from .terminal import Terminal

    return Terminal()


def _play_all(scenarios: tuple[Scenario, ...], renderer: Renderer) -> Iterator[Report]:
    """Each scenario on a stage of its own, in a folder that is removed at the end."""
    from sqlalchemy.exc import OperationalError

    from .scenario import perform
    from .stage import Stage

    renderer.opening(len(scenarios))
    with _folder() as folder:
        for number, scenario in enumerate(scenarios, 1):
            renderer.begins(number, scenario)
            try:
                stage = Stage(folder / str(number))
            except (OSError, OperationalError) as error:
                problem = str(error).partition("\n")[0]
                raise CannotRun(f"a server or a database cannot be opened: {problem}") from error
            with stage:
                report = perform(scenario, stage)
            renderer.ended(number, report)
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
    """Keep Python from printing the log lines of the failures that are played."""
    handler = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
