"""S12, Q11: rows that cannot be, because somebody or something has written to the tables."""

from __future__ import annotations

import logging

import pytest
from queues import OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from dying import killed  # noqa: E402
from workers import another, change, claim, put_many, wait_for, working  # noqa: E402

from txmail.queue import inspect, schema  # noqa: E402
from txmail.worker import dispatcher, run_once  # noqa: E402

#: A time in the year 2100, and others that are none.
LATER = 4_102_444_800_000
NEVER = 2**62

#: By what is wrong: the columns and what stands in them, in both stores or only in SQLite, which
#: takes anything.
BAD = {
    "a priority that is none": {"priority": 7},
    "a priority below all": {"priority": -1},
    "a state that is none": {"state": "bogus"},
    "no state": {"state": ""},
    "a time before all": {"due": -1},
    "a time behind all": {"due": NEVER},
    "no time": {"due": None},
    "put off until never": {"state": "deferred", "due": NEVER},
    "put off, and no time": {"state": "deferred", "due": None},
    "in doubt until never": {"state": "in_doubt", "due": NEVER},
    "changed behind all": {"changed": NEVER},
    "a worker's, and no end": {"state": "sending", "token": 1, "lease": None},
    "a worker's, and nobody knows whose": {"state": "sending", "token": None, "lease": LATER},
}
BAD_IN_SQLITE = {
    "a text for a time": {"due": "abc"},
    "a date for a time": {"due": "2026-01-01"},
    "octets for a time": {"due": b"\0"},
    "a text for the time of a change": {"changed": "abc", "due": LATER},
    "a text for a priority": {"priority": "high"},
    "put off until a text": {"state": "deferred", "due": "abc"},
    "in doubt until a text": {"state": "in_doubt", "due": "abc"},
    "a text for the end": {"expires": "abc"},
    "a text for the tries": {"attempts": "abc"},
    "a text for a lease of nobody": {"state": "sending", "token": None, "lease": "abc"},
    "octets for a state": {"state": b"ready"},
}
CASES = [
    *[(kind, name) for kind in OWN_QUEUES for name in BAD],
    *[(OWN_SQLITE, name) for name in BAD_IN_SQLITE],
]


def spoil(app, recipient, **values):
    """Write `values` into the row of a delivery, as they are; nobody watches its moves."""
    with app.engine.begin() as connection:
        if app.kind == OWN_SQLITE:
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS moved_delivery")
        else:
            connection.exec_driver_sql("ALTER TABLE txmail_delivery DISABLE TRIGGER USER")
        row = schema.delivery.c.recipient == recipient
        for name, value in values.items():
            given = sa.literal(value, type_=sa.types.NullType()) if value is not None else sa.null()
            connection.execute(schema.delivery.update().where(row).values({name: given}))


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(("kind", "what"), CASES)
def test_s12_q11_a_row_that_cannot_be_fails_with_a_reason_and_nothing_else_suffers(
    kind, make_queue, memory, what, caplog
):
    """Kind: one bad column stops the worker, or is passed over for ever and nobody is told."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 3)
    spoil(app, wanted[1], **{**BAD, **BAD_IN_SQLITE}[what])
    with caplog.at_level(logging.ERROR, "txmail"):
        assert run_once(app.queue, memory) == 2
    assert not [record for record in caplog.records if record.exc_info]
    row = app.deliveries()[wanted[1]]
    assert row.state == "failed"
    assert "cannot be" in row.reply
    assert app.queue.counts() == {"sent": 2, "failed": 1}
    inspect.read_health(app.queue.database)
    assert run_once(app.queue, memory) == 0


@kinds(*OWN_QUEUES)
def test_s12_a_worker_at_work_comes_by_it(kind, make_queue, memory, monkeypatch, caplog):
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    app = make_queue(kind)
    with working(app.queue, memory) as worker, caplog.at_level(logging.WARNING, "txmail"):
        worker.wait_rounds()
        wanted = put_many(app, "n", 1, wake=False)
        wait_for(lambda: app.queue.counts() == {"sent": 1}, "it does not work")
        spoil(app, wanted[0], state="deferred", due="abc" if kind == OWN_SQLITE else NEVER)
        wait_for(lambda: app.queue.counts() == {"failed": 1}, "it is passed over")
    assert not [record for record in caplog.records if record.exc_info]


@kinds(OWN_SQLITE)
def test_s12_what_nobody_has_put_right_yet_is_no_matter_for_who_looks(
    kind, make_queue, memory, monkeypatch
):
    app = make_queue(kind)
    wanted = put_many(app, "n", 2)
    for recipient in wanted:
        spoil(app, recipient, due="abc")
    assert inspect.read_health(app.queue.database).oldest_due == 0.0


@kinds(OWN_SQLITE)
def test_s12_rows_of_others_are_no_matter_either(kind, make_queue, memory):
    """What is said of processes, and of slots, can be as wrong."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 4)

    def beat():
        queue = another(app)
        with queue.database.write() as connection:
            queue.store.beat(connection, queue.database.now_ms(connection), "worker")
        queue.close()

    killed(beat)
    process = schema.process
    (found,) = app.read(sa.select(process.c.id).where(process.c.kind == "worker"))
    claim(app, 2)
    d = schema.delivery
    change(app, d.update().where(d.c.state == "sending").values(process=found.id, lease=LATER))
    for name in ("pid", "heartbeat", "started"):
        text = sa.literal("abc", type_=sa.types.NullType())
        change(app, process.update().where(process.c.id == found.id).values({name: text}))
        inspect.read_health(app.queue.database)
        run_once(app.queue, memory)
    assert app.queue.counts()["sent"] >= 2
    assert set(wanted) == set(app.deliveries())


@kinds(*OWN_QUEUES)
def test_s12_looking_for_them_reads_an_index(kind, make_queue):
    from txmail.queue.sql import impossible

    app = make_queue(kind)
    put_many(app, "n", 3)
    with app.engine.begin() as connection:
        if kind == OWN_POSTGRESQL:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        statement = impossible._FOUND.params(limit=1).compile(
            connection, compile_kwargs={"literal_binds": True}
        )
        explain = "EXPLAIN QUERY PLAN " if kind == OWN_SQLITE else "EXPLAIN "
        plan = str(connection.exec_driver_sql(explain + str(statement)).all())
    assert "ix_txmail_delivery_impossible" in plan
