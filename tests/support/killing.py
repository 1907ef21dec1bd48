"""Processes that are killed where one chooses: by strace at a certain system call of one of their
threads, or by themselves at a certain step that Python sees.

A program with everything imported calls `serve`, and `Zygote` has it fork a process for each `Job`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

#: The calls by which something leaves the process; those that a machine does not have are ignored.
CALLS = (
    *("write", "pwrite64", "writev", "sendto", "sendmsg"),
    *("fsync", "fdatasync", "ftruncate", "rename", "unlink"),
)
#: Names of threads begin with these; the first is where the work begins.
MAIN, UPKEEP = "main", "txmail upkeep"

#: Where fsync costs nothing: the kernel outlives the process, and what it has is not lost.
MEMORY = next((path for path in ("/dev/shm",) if os.access(path, os.W_OK)), None)
#: Seconds that anything here may take.
PATIENCE = 30.0
#: By which PostgreSQL knows the connections of a process that was killed.
PROGRAM = "txmail-killed"
#: Calls of one name that are few enough not to be sampled.
FEW = 16
#: How many more there may be in another run, where none is left out: what the threads do varies.
SLACK = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is to do, in which folder, and where it is waited for."""

    folder: str
    #: how the name of the thread begins that waits for strace; empty for none
    thread: str = ""
    #: which of several threads of that name, in the order in which they were started
    which: int = 0
    #: the step at which it kills itself, 0 to only count them, None for neither
    step: int | None = None

    @property
    def run(self) -> str:
        """Different for each job."""
        return Path(self.folder).name

    @property
    def said(self) -> Path:
        """To this file the process adds lines, for `Ended`."""
        return Path(self.folder, "said")

    def say(self, line: str) -> None:
        """Add one."""
        said = os.open(self.said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(said, f"{line}\n".encode())
        os.close(said)


@dataclass
class Ended:
    """How a process ended."""

    job: Job
    #: 0, or the negative number of a signal
    status: int
    lines: list[str]
    #: what strace wrote
    log: str = ""

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def steps(self) -> int:
        return int(self.said("steps: ")[0])

    def said(self, prefix: str) -> list[str]:
        """The rest of each line that begins with `prefix`."""
        return [line.removeprefix(prefix) for line in self.lines if line.startswith(prefix)]


# -- the process


class Steps:
    """Counts what is written and sent, as far as Python sees it, and dies at one of them."""

    CALLS = frozenset(
        {"execute", "executemany", "commit", "rollback", "send", "sendall", "sendmsg"}
        | {"write", "flush", "fsync", "fdatasync", "unlink", "rename", "truncate"}
    )

    def __init__(self, last: int) -> None:
        self.last = last
        self.count = 0

    def watch(self) -> None:
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    def _see(self, frame, event: str, called) -> None:
        if event == "c_call":
            name = called.__name__
        elif event == "call" and "psycopg" in frame.f_code.co_filename:
            name = frame.f_code.co_name
        else:
            return
        if name in self.CALLS:
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def _gate(folder: str) -> None:
    """Tell the parent which thread this is, and wait until it is being traced."""
    with open(f"{folder}/at", "wb", buffering=0) as at:
        at.write(b"%d\n" % threading.get_native_id())
    with open(f"{folder}/go", "rb", buffering=0) as go:
        go.read(1)


def _is_wanted(job: Job) -> bool:
    """Whether this is the thread that strace is to trace."""
    mine = threading.current_thread()
    alike = [t for t in threading.enumerate() if t.name.startswith(job.thread)]
    return alike[job.which : job.which + 1] == [mine]


def _child(job: Job, work: Callable[[Job], object]) -> None:
    """Set things up for whoever is to end this process, and work."""
    steps = None
    if job.thread == MAIN:
        _gate(job.folder)
    elif job.thread:

        def arrive(frame, event, called):
            sys.setprofile(None)
            if _is_wanted(job):
                _gate(job.folder)

        threading.setprofile(arrive)
    elif job.step is not None:
        steps = Steps(job.step)
        steps.watch()
    work(job)
    if steps is not None:
        job.say(f"steps: {steps.count}")


def serve(made: type[Job], work: Callable[[Job], object]) -> None:
    """Fork a process that does `work` for each job that is read; say its pid, and how it ended."""
    while line := sys.stdin.readline():
        job = made(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _trace_me()
                _child(job, work)
                status = 0
            except BaseException:
                Path(job.folder, "trouble").write_text(traceback.format_exc())
            os._exit(status)
        os.write(1, b"%d\n" % pid)
        _, ended = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(ended))


def _trace_me() -> None:
    """Let any process of this user trace this one, where that is not so anyway (Yama)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)


# -- from the outside


class CannotTrace(Exception):
    """There is no strace, or it may not be used."""


def can_trace() -> bool:
    return shutil.which("strace") is not None


class Zygote:
    """Has processes made by `program`, a file that calls `serve`. They end as `ended`.

    PostgreSQL knows them by `name`.
    """

    def __init__(self, program: str, ended: type[Ended] = Ended, name: str = PROGRAM) -> None:
        path = os.pathsep.join([p for p in sys.path if p])
        environment = {**os.environ, "PYTHONPATH": path, "PGAPPNAME": name}
        self._ended = ended
        #: the process that runs
        self.pid: int | None = None
        self._job: Job | None = None
        self._process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-B", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )

    def close(self) -> None:
        """End it, and what it has made."""
        self._kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def start(self, job: Job) -> int:
        """Have a process begin with `job`; its pid. There can be one at a time."""
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._job = job
        self.pid = int(self._line())
        return self.pid

    def wait(self) -> int:
        """Until it has ended; 0, or the negative number of a signal. Its own error is told."""
        assert self._job is not None
        status = int(self._line())
        trouble = Path(self._job.folder, "trouble")
        self.pid = self._job = None
        assert status in (0, -signal.SIGKILL), trouble.read_text() if trouble.exists() else status
        return status

    def kill(self) -> int:
        """Kill it now; what `wait` returns."""
        self._kill()
        return self.wait()

    def _kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(self.pid, signal.SIGKILL)

    def run(self, job: Job, trace: tuple[str, ...] = CALLS, inject: str = "") -> Ended:
        """Run `job` to its end. With `job.thread`, under strace, which may `inject` something.

        Raises `CannotTrace`.
        """
        at = go = -1
        log = Path(job.folder, "log")
        strace = None
        with contextlib.ExitStack() as end:
            if job.thread:
                for name in ("at", "go"):
                    os.mkfifo(Path(job.folder, name))
                at = os.open(Path(job.folder, "at"), os.O_RDONLY | os.O_NONBLOCK)
                end.callback(os.close, at)
                go = os.open(Path(job.folder, "go"), os.O_RDWR)
                end.callback(os.close, go)
            self.start(job)
            if job.thread:
                try:
                    strace = _attach(self._arrived(at), log, trace, inject)
                except BaseException:
                    self.kill()
                    raise
                os.write(go, b".")
            status = self.wait()
            if strace is not None:
                strace.communicate(timeout=PATIENCE)
        lines = job.said.read_text().splitlines() if job.said.exists() else []
        return self._ended(job, status, lines, log.read_text() if log.exists() else "")

    def _line(self) -> str:
        out = self._process.stdout
        assert select.select([out], [], [], PATIENCE * 2)[0], "the process is stuck"
        return out.readline()

    def _arrived(self, at: int) -> int:
        """The thread that waits at the gate."""
        ready = select.select([at, self._process.stdout], [], [], PATIENCE)[0]
        assert ready == [at], f"it has not come to the gate: {ready}"
        return int(os.read(at, 20))


def _attach(thread: int, log: Path, trace: tuple[str, ...], inject: str) -> subprocess.Popen[str]:
    calls = ",".join(f"?{name}" for name in trace)
    command = ["strace", "-y", "-s", "200", "-o", str(log), "-p", str(thread)]
    command += ["-e", f"trace={calls}", "-e", "signal=none"]
    if inject:
        command += ["-e", f"inject={inject}"]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    told = strace.stderr.readline()
    if "attached" not in told:
        told += strace.communicate()[1]
        if "not permitted" in told:
            raise CannotTrace(told)
        raise AssertionError(told)
    return strace


def wait_forgotten(engine: sa.Engine, name: str = PROGRAM) -> None:
    """Until the PostgreSQL of `engine` does nothing any more for a process that has ended."""
    deadline = time.monotonic() + PATIENCE
    ask = sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(ask, {"name": name}):
            assert time.monotonic() < deadline, "the server still serves a dead process"


def wait_idle(engine: sa.Engine, name: str) -> None:
    """Until the PostgreSQL of `engine` has done what a process that is stopped has asked it."""
    deadline = time.monotonic() + PATIENCE
    ask = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"
        " AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Lock'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.scalar(ask, {"name": name}):
            assert time.monotonic() < deadline, "the server works for a process that is stopped"


def stop(pid: int) -> None:
    """Stop all threads of a process with SIGSTOP, and wait until they are."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while not all(_is_stopped(path) for path in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline, "the process goes on"


def _is_stopped(stat: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # of a thread that has ended
        return stat.read_text().rpartition(")")[2].split()[0] in "TtZX"
    return True


# -- sweeps


def calls(ended: Ended) -> Counter[str]:
    """How often the thread that was traced has made each of the calls."""
    return Counter(re.findall(r"^(\w+)\(", ended.log, re.MULTILINE))


def points(
    counts: Counter[str], stride: int, part: int = 0, parts: int = 1
) -> Iterator[tuple[str, int]]:
    """Calls and their numbers: those of one part of all."""
    for call, count in sorted(counts.items()):
        step = stride if count > FEW else 1
        slack = SLACK if stride == 1 else 0
        for number in range(1, count + slack + 1, step):
            if number // step % parts == part:
                yield call, number


def sweep(
    run: Callable[..., Any],
    check: Callable[[Any, int], object],
    counts: Counter[str],
    stride: int,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Kill what `run` runs at each of `points` in turn, and `check` what is left; how many died.

    What `run` returns says whether it was ``killed``. `counts` are the calls of a run that nobody
    has killed. Another may make some more, and with a `stride` of 1 none of them is left out; or
    some less, but that more than half of the points are never reached is no variation.
    """
    killed = tried = 0
    died: dict[str, int] = {}

    def kill(call: str, number: int) -> bool:
        ended = run(trace=(call,), inject=f"{call}:signal=KILL:when={number}")
        check(ended, number)
        return ended.killed

    for call, number in points(counts, stride, part, parts):
        if kill(call, number):
            killed += 1
            died[call] = number
        tried += number <= counts[call]
    for call, last in died.items():
        number = last + 1
        while stride == 1 and number > counts[call] + SLACK and kill(call, number):
            killed += 1
            number += 1
    assert killed >= tried * 0.5
    return killed
