"""Whether a process is alive: real processes, stopped, killed, forked, in other namespaces."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from forking import in_child

from txmail.queue.process_identity import DEAD_AFTER_S, Identity, alive, process_id

NOW = 1_800_000_000_000
#: heartbeats: one that is young enough, and one that is not
FRESH = NOW - DEAD_AFTER_S * 1000 + 1
STALE = NOW - DEAD_AFTER_S * 1000

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
SAY_WHO = """
import dataclasses, json, sys
from txmail.queue.process_identity import Identity, process_id
print(json.dumps([dataclasses.astuple(Identity.mine()), process_id()]), flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/ns/pid"), reason="without /proc only heartbeats are known"
)


class Child:
    """A process that says who it is and then waits until its input ends."""

    def __init__(self, *wrapper: str) -> None:
        self.popen = subprocess.Popen(
            [*wrapper, sys.executable, "-c", SAY_WHO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert select.select([self.popen.stdout], [], [], 30)[0]
        said, self.name = json.loads(self.popen.stdout.readline())
        self.identity = Identity(*said)

    def end(self) -> None:
        """Kill it, as far as that is still needed, and wait for it."""
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def child():
    child = Child()
    yield child
    child.end()


@pytest.fixture
def nobody():
    """The identity of a process that was here and is no more."""
    child = Child()
    child.end()
    return child.identity


def changed(identity, **changes):
    return dataclasses.replace(identity, **changes)


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_a_process_knows_itself():
    mine = Identity.mine()
    assert mine is Identity.mine()
    assert mine.pid == os.getpid()
    assert mine.boot
    assert mine.pid_namespace.startswith("pid:[")
    assert mine.started > 0
    assert alive(mine, STALE, NOW)
    assert alive(mine, STALE, NOW, process_id())


def test_all_threads_of_a_process_have_one_name():
    def names():
        said = []
        start = threading.Barrier(8)

        def ask():
            start.wait()
            said.append(process_id())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(set(said)), len(said)

    assert in_child(names) == "(1, 8)"


def test_a_forked_child_is_another():
    mine, name = Identity.mine(), process_id()

    def compare():
        theirs = Identity.mine()
        return (
            theirs.pid == os.getpid() != mine.pid
            and theirs.pid_namespace == mine.pid_namespace
            and process_id() == process_id() != name
            and alive(mine, STALE, NOW)
        )

    assert in_child(compare) == "True"
    assert (mine, name) == (Identity.mine(), process_id())
    assert len(name) == 32


def test_a_live_process_is_alive_however_long_it_has_been_silent(child):
    assert child.identity.pid == child.popen.pid
    assert child.name != process_id()
    assert alive(child.identity, STALE, NOW, child.name)


def test_a_stopped_process_is_alive(child):
    os.kill(child.popen.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.popen.pid, os.WSTOPPED)
    assert state(child.popen.pid) == "T"
    assert alive(child.identity, STALE, NOW)


def test_a_killed_process_is_dead_while_its_heartbeat_is_fresh(child):
    child.end()
    assert not alive(child.identity, FRESH, NOW)
    assert not alive(child.identity, NOW, NOW)


def test_a_zombie_is_dead(child):
    os.kill(child.popen.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.popen.pid, os.WEXITED | os.WNOWAIT)
    assert state(child.popen.pid) == "Z"
    assert not alive(child.identity, FRESH, NOW)


def test_who_has_the_pid_of_a_dead_process_is_not_taken_for_it(child):
    before = changed(child.identity, started=child.identity.started - 1)
    assert not alive(before, FRESH, NOW)
    assert not alive(changed(Identity.mine(), started=1), FRESH, NOW)


def test_the_name_of_a_program_may_look_like_a_state(tmp_path):
    program = tmp_path / "a) Z 1"
    program.symlink_to(shutil.which("sleep"))
    popen = subprocess.Popen([program, "60"])
    try:
        with open(f"/proc/{popen.pid}/stat") as stat:
            started = int(stat.read().rpartition(")")[2].split()[19])
        identity = changed(Identity.mine(), pid=popen.pid, started=started)
        assert alive(identity, STALE, NOW)
        assert not alive(changed(identity, started=started + 1), FRESH, NOW)
    finally:
        popen.kill()
        popen.wait()


@pytest.mark.parametrize("where", ["host", "pid_namespace"])
def test_elsewhere_the_heartbeat_decides(nobody, where):
    other = changed(nobody, **{where: "elsewhere"})
    assert alive(other, FRESH, NOW)
    assert not alive(other, STALE, NOW)


@pytest.mark.parametrize("unknown", [{"boot": ""}, {"pid_namespace": "", "started": 0}])
def test_where_little_is_known_the_heartbeat_decides(nobody, unknown):
    other = changed(nobody, **unknown)
    assert alive(other, FRESH, NOW)
    assert not alive(other, STALE, NOW)


def test_a_heartbeat_of_the_future_is_fresh(nobody):
    assert alive(changed(nobody, host="elsewhere"), NOW + 10**9, NOW)


def test_a_process_whose_start_is_unknown_is_judged_by_its_heartbeat(child):
    other = changed(child.identity, started=0)
    assert alive(other, FRESH, NOW)
    assert not alive(other, STALE, NOW)
    child.end()
    assert not alive(other, FRESH, NOW)


def test_after_a_restart_of_the_machine_all_who_were_there_are_dead(monkeypatch):
    machine = changed(Identity.mine(), host="web 0123", pid_namespace="pid:[4026531836]")
    monkeypatch.setattr(Identity, "mine", lambda: machine)
    before = changed(machine, boot="the one before")
    assert not alive(before, FRESH, NOW)
    # A name alone, and a container, may be on another machine.
    for like in ({"host": "web"}, {"pid_namespace": "pid:[4026532000]"}):
        mine = changed(machine, **like)
        monkeypatch.setattr(Identity, "mine", lambda mine=mine: mine)
        assert alive(changed(before, **like), FRESH, NOW)
        assert not alive(changed(before, **like), STALE, NOW)


def test_what_ran_in_this_process_before_is_judged_by_its_heartbeat():
    mine = Identity.mine()
    assert alive(mine, FRESH, NOW, "0" * 32)
    assert not alive(mine, STALE, NOW, "0" * 32)


def test_a_program_that_starts_another_in_its_place_leaves_it_all_but_its_name(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from txmail.queue.process_identity import Identity, process_id\n"
        "said = [repr(Identity.mine()), process_id()]\n"
        "if len(sys.argv) == 1:\n"
        "    os.execv(sys.executable, [sys.executable, __file__, *said])\n"
        "print([mine == before for mine, before in zip(said, sys.argv[1:], strict=True)])\n"
    )
    said = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert said.stdout == "[True, False]\n", said.stderr


def test_a_process_of_another_user_that_cannot_be_seen_is_judged_by_its_heartbeat(
    child, monkeypatch
):
    def hidden(pid):
        raise FileNotFoundError(pid)

    def forbidden(pid, number):
        raise PermissionError(pid)

    monkeypatch.setattr("txmail.queue.process_identity._stat", hidden)
    assert alive(child.identity, FRESH, NOW)
    monkeypatch.setattr("os.kill", forbidden)
    assert alive(child.identity, FRESH, NOW)
    assert not alive(child.identity, STALE, NOW)


@pytest.fixture
def unshare():
    """A command that runs another in a pid namespace of its own."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("namespaces need root and unshare")
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    tried = subprocess.run([*command, "--mount-proc", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("namespaces are not allowed here")
    return command


def test_of_a_process_in_another_pid_namespace_the_heartbeat_is_known(unshare):
    child = Child(*unshare, "--mount-proc")
    try:
        assert child.identity.pid == 1
        assert child.identity.boot == Identity.mine().boot
        assert child.identity.pid_namespace not in ("", Identity.mine().pid_namespace)
        assert alive(child.identity, FRESH, NOW)
        assert not alive(child.identity, STALE, NOW)
    finally:
        child.end()


def test_another_namespace_without_a_proc_of_its_own_is_not_mistaken_for_this_one(unshare):
    # There /proc/1 is the init of this machine, which does not die.
    child = Child(*unshare)
    try:
        assert child.identity == changed(Identity.mine(), pid=1, started=0, pid_namespace="")
        assert not alive(child.identity, STALE, NOW)
    finally:
        child.end()
