"""Exit codes of sysexits.h, for commands with which other programs send mail."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from ..outcome import Action, Outcome, Scope, Status


class SysExit(IntEnum):
    """The codes of sysexits.h that txmail uses."""

    OK = 0
    #: wrong arguments
    USAGE = 64
    #: the message or an address in it is malformed
    DATAERR = 65
    #: a file cannot be read
    NOINPUT = 66
    #: the server refused a recipient
    NOUSER = 67
    #: the server refused the message, or the client
    UNAVAILABLE = 69
    #: the system refused something: a port, memory
    OSERR = 71
    #: in doubt: the server may have accepted the message
    IOERR = 74
    #: try again later
    TEMPFAIL = 75
    #: a URL or a setting is wrong
    CONFIG = 78


def code_of(outcomes: Iterable[Outcome]) -> SysExit:
    """The exit code for `outcomes`; if several fit, the one that forbids most.

    A program that reads 75 sends everything again. So the code is 75 only if nothing was accepted,
    is in doubt or is in the queue.
    """
    outcomes = list(outcomes)
    bad = [o for o in outcomes if not _is_taken_care_of(o)]
    if not bad:
        return SysExit.OK
    if any(o.status is Status.IN_DOUBT for o in bad):
        return SysExit.IOERR
    failed = [o for o in bad if o.status is Status.FAILED]
    if failed:
        nobody = all(o.scope is Scope.RECIPIENT for o in failed)
        return SysExit.NOUSER if nobody else SysExit.UNAVAILABLE
    if len(bad) < len(outcomes) or any(o.action is Action.STOP_ROUTE for o in bad):
        return SysExit.UNAVAILABLE
    return SysExit.TEMPFAIL


def _is_taken_care_of(outcome: Outcome) -> bool:
    """Whether the server has accepted the mail, or the queue will send it."""
    return outcome.status is Status.ACCEPTED or (
        outcome.queued and outcome.status in (Status.UNSENT, Status.DEFERRED)
    )
