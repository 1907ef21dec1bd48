"""The identity of processes, and whether the holder of a batch, lease or slot is still alive.

Nobody may decide about the mail of a live process, however long it is silent: it may be stopped, or
wait for a lock. Processes of the same machine can be looked at: a process id can be used again, but
not with the same start time. Of processes on other machines only the heartbeat is known.

A process that is `Fate.DEAD` holds nothing and sends nothing any more. `Fate.UNKNOWN` is a process
that cannot be looked at from here: it keeps its leases and slots until they end, and its batches as
long as it has a heartbeat.

Linux tells the start time and the pid namespace in ``/proc``. Where there is no ``/proc``, or where
it is that of another pid namespace (as in ``unshare --pid`` without a mount of its own), these are
empty or 0, and the heartbeat decides.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from enum import Enum

from ..common.ascii_text import ascii_strip
from ..common.per_process import PerProcess

#: Seconds without a heartbeat after which a process that cannot be looked at counts as dead.
DEAD_AFTER_S = 300

#: The pid namespace of a machine itself, the same on every Linux; containers have others.
_MACHINE = "pid:[4026531836]"
#: States of a process that runs no more: zombie, and dead.
_ENDED = "ZXx"


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of one process: no other process has or had the same."""

    #: the host name and, after a space, the machine id if there is one
    host: str
    #: the id of the machine's last start; empty if unknown
    boot: str
    #: the pid namespace in which `pid` counts; empty if unknown
    pid_namespace: str
    pid: int
    #: its start time, in clock ticks since the machine's start; 0 if unknown
    started: int

    @classmethod
    def mine(cls) -> Identity:
        """The identity of this process. A forked child has another."""
        return _identity_of_process.get()


def process_id() -> str:
    """A name for this process that no other ever has: 32 hexadecimal digits, new after a fork."""
    return _name_of_process.get()


class Fate(Enum):
    """Whether another process is alive, as far as this process can tell."""

    ALIVE = "alive"
    #: there is provably no such process on this host any more
    DEAD = "dead"
    #: it cannot be looked at from here
    UNKNOWN = "unknown"


def fate(other: Identity, process: str = "") -> Fate:
    """Whether the process `other` is alive, as far as that can be proved from here.

    `process` is its `process_id`, if known: a program that replaces itself by another (``exec``)
    hands its pid and start time on, and only the name tells the two apart.
    """
    mine = Identity.mine()
    if other.boot and mine.boot and other.boot != mine.boot:
        return Fate.DEAD if _restarted(mine, other) else Fate.UNKNOWN
    here = (mine.host, mine.boot, mine.pid_namespace)
    if "" in here or here != (other.host, other.boot, other.pid_namespace):
        return Fate.UNKNOWN
    if other == mine:
        # It is this process, or a program that this process has replaced.
        return Fate.ALIVE if process in ("", process_id()) else Fate.UNKNOWN
    return _fate_here(other)


def alive(other: Identity, heartbeat_ms: int, now_ms: int, process: str = "") -> bool:
    """Whether the process `other` counts as alive; where `fate` does not know, by its heartbeat.

    `heartbeat_ms` is its last one and `now_ms` the time now, both in milliseconds by the clock of
    the store. `process` is as for `fate`.
    """
    found = fate(other, process)
    if found is Fate.UNKNOWN:
        # A heartbeat in the future comes from a clock that was set back: count it as fresh. In a
        # damaged table the heartbeat may be of any type.
        return isinstance(heartbeat_ms, int) and now_ms - heartbeat_ms < DEAD_AFTER_S * 1000
    return found is Fate.ALIVE


def _restarted(mine: Identity, other: Identity) -> bool:
    """Whether `other` ran on this machine before its last start.

    Machines and containers from one image may have the same name, and even the same machine id. So
    only a machine with an id that is no container is recognized.
    """
    return (
        mine.host == other.host
        and " " in mine.host
        and mine.pid_namespace == other.pid_namespace == _MACHINE
    )


def _fate_here(other: Identity) -> Fate:
    """The fate of `other`, which is in this pid namespace."""
    try:
        state, started = _stat(str(other.pid))
    except (OSError, ValueError, IndexError):
        # Processes of other users can be hidden (hidepid), but not from this call.
        try:
            os.kill(other.pid, 0)
        except (ProcessLookupError, OverflowError):
            return Fate.DEAD
        except (OSError, TypeError):
            pass  # another user's, or no pid at all
        return Fate.UNKNOWN
    if state in _ENDED:
        return Fate.DEAD
    if not other.started or not started:
        return Fate.UNKNOWN
    return Fate.ALIVE if started == other.started else Fate.DEAD


def _identity(pid: int) -> Identity:
    host = socket.gethostname()
    machine = _read("/etc/machine-id")
    if machine:
        host = f"{host} {machine}"
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        if os.readlink("/proc/self") != str(pid):
            return Identity(host, boot, "", pid, 0)
        return Identity(host, boot, os.readlink("/proc/self/ns/pid"), pid, _stat("self")[1])
    except (OSError, ValueError, IndexError):
        return Identity(host, boot, "", pid, 0)


def _stat(pid: str) -> tuple[str, int]:
    """State and start time of a process: fields 3 and 22 of ``stat``, proc(5)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name of the program, in parentheses, may hold anything.
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode("ascii"), int(fields[19])


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return ascii_strip(file.read())
    except (OSError, ValueError):
        return ""


_identity_of_process = PerProcess(lambda: _identity(os.getpid()))
_name_of_process = PerProcess(lambda: uuid.uuid4().hex)
