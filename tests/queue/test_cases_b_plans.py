"""What PostgreSQL does for a statement while its statistics say that there is hardly anything."""

from __future__ import annotations

import json

import pytest
from queues import OWN_POSTGRESQL, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import PATIENCE, put_many  # noqa: E402

from txmail.queue import batch, schema  # noqa: E402

#: Messages of one transaction.
COUNT = 50


def nodes(plan):
    """All of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


@pytest.fixture
def plans():
    """How the updates of deliveries in bulk are run."""
    found = []

    def explain(connection, cursor, statement, parameters, context, many):
        if "LIMIT" in statement and statement.lstrip().startswith("UPDATE txmail_delivery"):
            cursor.execute("SAVEPOINT here")
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            plan = cursor.fetchone()[0]
            found.append((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
            cursor.execute("ROLLBACK TO SAVEPOINT here")

    sa.event.listen(sa.Engine, "before_cursor_execute", explain)
    yield found
    sa.event.remove(sa.Engine, "before_cursor_execute", explain)


def emptied(app):
    """Without a vacuum, so that the pages are there."""
    with app.engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            if table is not schema.version:
                connection.execute(table.delete())


def told(app, *statements):
    """Have the database look at what there is."""
    with app.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def never(app):
    """Nobody has looked since the test before, if ever."""


def full(app):
    put_many(app, "full", COUNT)
    told(app, "ANALYZE")


def gone(app):
    put_many(app, "gone", COUNT)
    emptied(app)
    told(app, "ANALYZE")


def gone_since(app):
    put_many(app, "gone", COUNT)
    told(app, "ANALYZE")
    emptied(app)


def one_left(app):
    put_many(app, "gone", COUNT)
    emptied(app)
    put_many(app, "one", 1)
    told(app, "ANALYZE")


def vacuumed(app):
    put_many(app, "gone", COUNT)
    emptied(app)
    told(app, "VACUUM ANALYZE")


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("before", [never, full, gone, gone_since, one_left, vacuumed])
@pytest.mark.parametrize("chunk", [COUNT, COUNT // 2])
@kinds(OWN_POSTGRESQL)
def test_b_what_is_published_is_looked_for_once(
    kind, make_queue, plans, monkeypatch, before, chunk
):
    """Kind: work that is the product of two numbers, where statistics have the wrong ones."""
    app = make_queue(kind)
    before(app)
    monkeypatch.setattr(batch, "CHUNK", chunk)
    plans.clear()
    put_many(app, "new", COUNT)
    assert app.queue.host.background.flush(PATIENCE)
    assert plans
    for plan in plans:
        limits = [node for node in nodes(plan) if node["Node Type"] == "Limit"]
        assert [limit["Actual Loops"] for limit in limits] == [1]
    counts = app.queue.counts()
    assert counts["ready"] >= COUNT
