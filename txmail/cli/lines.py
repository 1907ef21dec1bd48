"""Lines of output: plain text, with colours on a terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO

from ..common.shown import printable
from ..outcome import Outcome, Status

_STYLES = {
    Status.ACCEPTED: "green",
    Status.DEFERRED: "yellow",
    Status.FAILED: "red",
    Status.IN_DOUBT: "bold magenta",
    Status.UNSENT: "dim",
}


def say_outcome(outcome: Outcome, stream: TextIO) -> None:
    """Write one line about `outcome`, with a coloured status on a terminal if Rich is there."""
    text = printable(str(outcome))
    if not _is_looked_at(stream):
        stream.write(f"{text}\n")
        return
    from rich.console import Console
    from rich.text import Text

    line = Text(text)
    start = len(outcome.recipient) + 1
    line.stylize(_STYLES[outcome.status], start, start + len(outcome.status))
    Console(file=stream, highlight=False, soft_wrap=True).print(line)


def complain(command: str, problem: object) -> None:
    """Write one line to standard error, without characters that steer a terminal."""
    sys.stderr.write(f"txmail {command}: {printable(str(problem))}\n")


def _is_looked_at(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb" and find_spec("rich") is not None


class _Formatter(logging.Formatter):
    """Formats each record as one line, without characters that steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


@contextmanager
def logging_to_stderr(*, quiet: bool = False) -> Iterator[None]:
    """Write the log of ``txmail`` to standard error; with `quiet`, warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("txmail")
    before = logger.level
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep Python from printing log lines: the command reports the same in its own words."""
    handler = logging.NullHandler()
    logger = logging.getLogger("txmail")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
