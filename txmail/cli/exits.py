"""How a command ends: its exit code, or what keeps it from running at all."""

from __future__ import annotations

from enum import IntEnum
from importlib.util import find_spec


class Exit(IntEnum):
    """The exit codes of every subcommand."""

    OK = 0
    #: the command ran, and what it was to do or to show failed
    FAILED = 1
    #: wrong arguments, or something it needs is not there: it did not run
    USAGE = 2
    #: interrupted from the keyboard, as shells have it (128 + SIGINT)
    INTERRUPTED = 130


class CannotRun(Exception):
    """The command cannot run; the text tells the user what to do. It ends with `Exit.USAGE`."""


def require(extra: str, *modules: str) -> None:
    """Raise `CannotRun` if one of `modules`, which come with the extra `extra`, is missing."""
    missing = [name for name in modules if not _is_there(name)]
    if missing:
        raise CannotRun(
            f"{' and '.join(missing)} cannot be imported. Install what it needs with\n"
            f"    pip install 'txmail[{extra}]'"
        )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that would hold it
        return False
