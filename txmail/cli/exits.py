"""How a command ends: its exit code, or the reason why it cannot run."""

from __future__ import annotations

from enum import IntEnum
from importlib.util import find_spec


class Exit(IntEnum):
    """The exit codes of every subcommand."""

    OK = 0
    #: the command ran, and something failed
    FAILED = 1
    #: wrong arguments, or something is missing: the command did not run
    USAGE = 2
    #: interrupted from the keyboard; the code of shells (128 + SIGINT)
    INTERRUPTED = 130


class CannotRun(Exception):
    """The command cannot run and ends with `Exit.USAGE`; the text says what to do."""


def require(extra: str, *modules: str) -> None:
    """Raise `CannotRun` if one of `modules`, which the extra `extra` installs, is missing."""
    missing = [name for name in modules if not _is_there(name)]
    if missing:
        raise CannotRun(
            f"{' and '.join(missing)} cannot be imported. Install what it needs with\n"
            f"    pip install 'txmail[{extra}]'"
        )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package around the module is missing
        return False
