"""Q1: what a dead process held. Real processes, killed with SIGKILL, in both stores."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing

import pytest
from commits import note
from letters import letter
from queues import IN_POSTGRESQL, IN_SQLITE, IN_TWO_PHASE, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from clocks import Clock  # noqa: E402
from dying import change_process, forked, hold, killed  # noqa: E402
from workers import another, change, put_many, wait_for, working  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.queue import inspect, schema  # noqa: E402
from txmail.queue.own_batch import OwnBatch  # noqa: E402
from txmail.queue.process_identity import Identity  # noqa: E402
from txmail.queue.session import SessionBatch  # noqa: E402
from txmail.testing import Callback  # noqa: E402
from txmail.worker import Worker, run_once  # noqa: E402

#: Milliseconds within which what a dead process had begun is due again.
SOON = 30_000

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/ns/pid"), reason="without /proc only heartbeats are known"
)


def sent(memory) -> list[str]:
    return sorted(r for envelope in memory.envelopes for r in envelope.recipients)


def states(app) -> dict[str, int]:
    return app.queue.counts()


# -- leases


@kinds(*OWN_QUEUES)
def test_q1_what_a_killed_worker_had_is_decided_at_once_by_whoever_is_there(
    kind, make_queue, memory
):
    """Kind: a lease outlives its holder although everybody could know that the holder is dead."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 8)
    killed(hold(app, begun=3, ready=5))
    assert states(app) == {"sending": 8}
    assert inspect.read_health(app.queue.database).held_by_dead == 8
    assert run_once(app.queue, memory) == 5
    assert sent(memory) == wanted[3:]
    assert states(app) == {"sent": 5, "in_doubt": 3}
    for recipient in wanted[:3]:
        row = app.deliveries()[recipient]
        assert (row.duplicate, row.attempts) == (1, 1)
        assert 0 <= row.due - row.changed <= SOON
        assert [a.state for a in app.attempts(recipient)] == ["in_doubt"]
    assert inspect.read_health(app.queue.database).held_by_dead == 0


@kinds(*OWN_QUEUES)
def test_q1_a_worker_that_is_at_work_hears_of_it_between_two_rounds(
    kind, make_queue, memory, monkeypatch
):
    monkeypatch.setattr("txmail.worker.dispatcher.ROUND", 0.05)
    app = make_queue(kind)
    with working(app.queue, memory) as worker:
        worker.wait_rounds()
        wanted = put_many(app, "n", 4, not_before=None, wake=False)
        killed(hold(app, ready=4))
        wait_for(lambda: states(app) == {"sent": 4}, "nobody takes over what the dead held")
    assert sent(memory) == wanted


@kinds(OWN_SQLITE)
def test_q1_an_application_without_a_worker_decides_too(kind, make_queue):
    app = make_queue(kind)
    put_many(app, "n", 4)
    killed(hold(app, begun=2, ready=2))
    assert app.queue.resolve() == []
    assert states(app) == {"ready": 2, "in_doubt": 2}


@kinds(OWN_SQLITE)
def test_q1_what_a_person_has_to_decide_waits_for_one(kind, make_queue, memory):
    app = make_queue(kind, on_doubt="hold")
    put_many(app, "n", 2)
    killed(hold(app, begun=2))
    run_once(app.queue, memory)
    assert {row.due for row in app.deliveries().values()} == {None}
    assert states(app) == {"in_doubt": 2}


@pytest.mark.parametrize(
    "how",
    ["a zombie", "its pid is another's now", "before the machine was started anew"],
)
@kinds(OWN_SQLITE)
def test_q1_however_it_is_known_that_it_is_dead(kind, make_queue, memory, how, monkeypatch):
    app = make_queue(kind)
    put_many(app, "n", 3)
    with forked(hold(app, ready=3)) as pid:
        if how == "a zombie":
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        elif how == "its pid is another's now":
            change_process(app, pid, started=schema.process.c.started - 1)
        else:
            machine = Identity("web 0123", "now", "pid:[4026531836]", os.getpid(), 1)
            monkeypatch.setattr(Identity, "mine", lambda: machine)
            namespace = machine.pid_namespace
            change_process(app, pid, host=machine.host, boot="before", pid_namespace=namespace)
        assert run_once(app.queue, memory) == 3


@pytest.mark.parametrize(
    "how",
    [
        "it is stopped",
        "another host",
        "another pid namespace",
        "another boot of who knows which machine",
        "its start is unknown",
        "it has said nothing of itself",
    ],
)
@kinds(OWN_SQLITE)
def test_q1_who_may_live_keeps_what_is_his_until_his_lease_ends(kind, make_queue, memory, how):
    clock = Clock()
    app = make_queue(kind, clock=clock)
    put_many(app, "n", 3)
    with forked(hold(app, ready=3)) as pid:
        if how == "it is stopped":
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED)
        elif how == "another host":
            change_process(app, pid, host="elsewhere")
        elif how == "another pid namespace":
            change_process(app, pid, pid_namespace="pid:[1]")
        elif how == "another boot of who knows which machine":
            change_process(app, pid, boot="before", pid_namespace="pid:[2]")
        elif how == "its start is unknown":
            change_process(app, pid, started=0)
        else:
            change(app, schema.process.delete().where(schema.process.c.pid == pid))
        assert run_once(app.queue, memory) == 0
        assert inspect.read_health(app.queue.database).held_by_dead == 0
        clock.advance(299.0)
        assert run_once(app.queue, memory) == 0
        clock.advance(2.0)
        assert run_once(app.queue, memory) == 3


@kinds(*OWN_QUEUES)
def test_q1_a_real_worker_killed_while_the_server_has_a_message(kind, make_queue, server, memory):
    """What waits behind the one on the wire goes on; the one on the wire is in doubt."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 3)
    reached, opened = threading.Event(), threading.Event()
    server.on(".", Callback(lambda: (reached.set(), opened.wait(30))), times=None)

    def work():
        worker = Worker(another(app), transport_from_url(server.url), batch=1)
        threading.Thread(target=worker.run, daemon=True).start()

    with forked(work):
        assert reached.wait(30)
    opened.set()
    assert states(app)["sending"] >= 1
    run_once(app.queue, memory)
    found = states(app)
    assert set(found) <= {"sent", "in_doubt"}
    assert found["in_doubt"] >= 1
    assert set(wanted) == set(app.deliveries())


def test_q1_doctor_says_that_somebody_dead_has_mail(make_queue, capsys):
    from txmail.cli import main

    app = make_queue(OWN_SQLITE)
    put_many(app, "n", 3)
    killed(hold(app, ready=3))
    url = app.engine.url.render_as_string(hide_password=False)
    assert main(["doctor", "--health", "--workers", "0", "--queue-url", url]) == 1
    assert "3 delivery(s) are held by a process that has died" in capsys.readouterr().out
    app.queue.resolve()
    assert main(["doctor", "--health", "--workers", "0", "--queue-url", url]) == 0


# -- batches


def commit_and_die(app, *, key=None):
    """Commit mail in the application's session; die behind the COMMIT and before all else."""

    def work():
        app.database.engine.dispose(close=False)
        tm = app._tm
        mailer = app.mailer("memory:", queue=app.queue)
        tm.begin()
        app.database.write("order")
        mailer.enqueue(letter("one", "one@example.com"), idempotency_key=key)
        app.queue.host.background.do = app.queue.host.background._start = lambda *_: None
        SessionBatch.finish = lambda *_: None
        tm.commit()

    return work


@kinds(IN_SQLITE, IN_POSTGRESQL, IN_TWO_PHASE)
def test_q1_keyed_mail_of_a_session_whose_process_died_after_its_commit(kind, make_queue):
    """Kind: a batch waits for the heartbeat of a process that never had the time for one."""
    app = make_queue(kind)
    killed(commit_and_die(app, key="k"))
    assert app.batches() == ["publishing"]
    assert [d.state for d in app.queue.resolve()] == ["published"]
    assert app.ready() == ["one@example.com"]


@kinds(IN_SQLITE, IN_POSTGRESQL)
def test_q1_a_worker_has_the_batches_of_the_dead_decided_before_its_next_round(
    kind, make_queue, memory, monkeypatch
):
    monkeypatch.setattr("txmail.worker.dispatcher.ROUND", 0.05)
    app = make_queue(kind)
    with working(app.queue, memory) as worker:
        worker.wait_rounds()
        app.queue.flush(20)
        killed(commit_and_die(app, key="k"))
        wait_for(lambda: states(app) == {"sent": 1}, "the batch waits for its process")


@kinds(IN_SQLITE, IN_POSTGRESQL, *OWN_QUEUES)
def test_q1_what_a_dead_process_was_sending_itself_is_due_again_soon(kind, make_queue, server):
    app = make_queue(kind)

    def work():
        mailer = app.mailer()
        app._tm.begin()
        for name in ("a", "b"):
            mailer.send(note(name))
        app.queue.host.background.do = lambda *_: None
        # It dies behind its vote, and before the queue hears of it.
        OwnBatch.finish = SessionBatch.finish = lambda *_: None
        app._tm.commit()

    killed(work)
    app.queue.resolve()
    rows = app.deliveries().values()
    assert {(row.state, row.duplicate) for row in rows} == {("in_doubt", 1)}
    assert all(0 <= row.due - row.changed <= SOON for row in rows)


@kinds(IN_SQLITE)
def test_q1_a_batch_of_a_living_process_is_its_own_whatever_others_are_asked(kind, make_queue):
    app = make_queue(kind)
    with forked(commit_and_die(app, key="k")):
        assert app.queue.resolve() == []
        assert app.batches() == ["publishing"]


@pytest.mark.parametrize("witnesses", ["{}", "[]", '{"owner": 1}', '{"owner": [1,2,3,4,5]}', "x"])
@kinds(IN_SQLITE)
def test_q1_a_batch_that_says_nothing_of_its_process_waits_for_a_heartbeat(
    kind, make_queue, witnesses
):
    clock = Clock()
    app = make_queue(kind, clock=clock)
    killed(commit_and_die(app, key="k"))
    change(app, schema.batch.update().values(witnesses=witnesses))
    assert app.queue.resolve() == []
    clock.advance(301.0)
    assert [d.state for d in app.queue.resolve()] == ["published"]
    with closing(app.queue):
        assert app.ready() == ["one@example.com"]
