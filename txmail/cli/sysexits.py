"""Exit codes of sysexits.h, for the commands that other programs run to send mail."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from ..outcome import Action, Outcome, Scope, Status


class SysExit(IntEnum):
    """What is used of sysexits.h."""

    OK = 0
    #: wrong arguments
    USAGE = 64
    #: the message or an address in it is not one
    DATAERR = 65
    #: a file to be sent cannot be read
    NOINPUT = 66
    #: the server refused a recipient
    NOUSER = 67
    #: the server refused the message, or will not have us at all
    UNAVAILABLE = 69
    #: the system refused something: a port, memory
    OSERR = 71
    #: in doubt: the message may have been accepted
    IOERR = 74
    #: later
    TEMPFAIL = 75
    #: a URL or a setting
    CONFIG = 78


def code_of(outcomes: Iterable[Outcome]) -> SysExit:
    """The exit code for `outcomes`: of those that fit, the one that forbids most.

    Whoever reads 75 sends everything again: it is said only if nothing was accepted, is in doubt
    or is in the queue.
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
    """True if it was accepted, or if the queue goes on with it."""
    return outcome.status is Status.ACCEPTED or (
        outcome.queued and outcome.status in (Status.UNSENT, Status.DEFERRED)
    )
