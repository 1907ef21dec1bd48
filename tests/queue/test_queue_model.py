"""States move as the table says, and in no other way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import sqlalchemy as sa
from letters import letter
from queues import OWN_POSTGRESQL, OWN_SQLITE

import txmail
from txmail import Outcome
from txmail.exceptions import IllegalMove
from txmail.outcome import Scope, Status
from txmail.queue import schema
from txmail.queue.sql import statements
from txmail.queue.states import (
    BATCH_MOVES,
    MOVES,
    BatchState,
    State,
    batch_before,
    check_move,
)

PAIRS = [(source, target) for source in State for target in State]
BATCH_PAIRS = [(source, target) for source in BatchState for target in BatchState]
ONE = "one@example.com"

#: from where a transaction's own process may take a delivery
OPEN = {State.STAGED, State.IN_DOUBT}


def allowed(source, target):
    return target in MOVES[source]


# -- the tables


def test_every_state_has_its_moves_and_none_to_itself():
    assert set(MOVES) == set(State)
    assert set(BATCH_MOVES) == set(BatchState)
    assert not any(state in targets for state, targets in MOVES.items())
    assert not any(state in targets for state, targets in BATCH_MOVES.items())


@pytest.mark.parametrize(
    ("moves", "first", "ends"),
    [
        (MOVES, State.STAGED, {State.SENT, State.CANCELLED}),
        (BATCH_MOVES, BatchState.STAGED, {BatchState.PUBLISHED}),
    ],
    ids=["deliveries", "batches"],
)
def test_all_states_are_reached_and_only_the_last_are_left_by_nothing(moves, first, ends):
    reached, new = {first}, {first}
    while new:
        new = {target for state in new for target in moves[state]} - reached
        reached |= new
    assert reached == set(moves)
    assert {state for state, targets in moves.items() if not targets} == ends
    # Nothing comes back to where only its transaction puts it.
    assert not any(first in targets for targets in moves.values())


def test_what_is_before_a_state_is_what_may_become_it():
    assert {(s, t) for t in BatchState for s in batch_before(t)} == {
        (s, t) for s, t in BATCH_PAIRS if t in BATCH_MOVES[s]
    }


def test_only_a_lease_leads_to_what_is_sent_by_a_worker():
    assert [state for state in State if allowed(state, State.SENDING)] == [State.READY]
    assert State.SENT not in MOVES[State.READY]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_statement_for_a_forbidden_move_cannot_be_made(source, target):
    if allowed(source, target):
        check_move(source, target)
        statements.move(target, source)
        return
    with pytest.raises(IllegalMove, match=f"{source} cannot become {target}"):
        check_move(source, target)
    with pytest.raises(IllegalMove):
        statements.move(target, State.STAGED, source)


def changers(node: ast.AST) -> list[ast.Call]:
    """Calls of ``values(state=...)``, or of anything with SQL text that sets a state."""
    found = []
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        named = isinstance(call.func, ast.Attribute) and call.func.attr == "values"
        texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
        if (named and any(k.arg == "state" for k in call.keywords)) or any(
            isinstance(text, str) and "SET state" in text for text in texts
        ):
            found.append(call)
    return found


def test_nobody_changes_the_state_of_a_delivery_past_the_table():
    """Every statement that does is made by `statements.move`."""
    found = []
    for path in Path(txmail.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for call in changers(function):
                    names = {n.id for n in ast.walk(call) if isinstance(n, ast.Name)}
                    if "batch" not in names and "route" not in names:
                        found.append((path.name, function.name))
    assert found == [("statements.py", "move")]


# -- the store


@pytest.fixture
def app(make_queue, tm):
    """A queue with one delivery, to ``one@example.com``."""
    application = make_queue(OWN_SQLITE)
    with tm:
        application.mailer().enqueue(letter("one", ONE))
    assert application.queue.flush(10)
    with application.engine.begin() as connection:
        for trigger in ("moved_delivery", "moved_batch"):
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
    return application


class Row:
    """The only delivery of `app`, put into a state by force."""

    def __init__(self, app, state, begun=0):
        self.app = app
        (row,) = app.deliveries().values()
        self.id = row.id
        (self.batch,) = app.read(sa.select(schema.batch.c.id))[0]
        self._set(schema.delivery, state=state, begun=begun)

    def _set(self, table, **values):
        with self.app.engine.begin() as connection:
            connection.execute(table.update().values(**values))

    def of_batch(self, state):
        self._set(schema.batch, state=state)
        return self

    @property
    def state(self):
        return self.app.deliveries()[ONE].state

    @property
    def batch_state(self):
        (state,) = self.app.batches()
        return state

    def do(self, work, *args, **options):
        """Call `work` of the store, in a transaction; its result."""
        with self.app.queue.database.write() as connection:
            return getattr(self.app.queue.store, work)(connection, *args, **options)


OUTCOMES = {
    Status.ACCEPTED: State.SENT,
    Status.DEFERRED: State.DEFERRED,
    Status.FAILED: State.FAILED,
    Status.IN_DOUBT: State.IN_DOUBT,
    Status.UNSENT: State.READY,
}


@pytest.mark.parametrize("status", OUTCOMES)
def test_an_outcome_is_written_only_of_what_its_transaction_was_sending(app, status):
    for source in State:
        row = Row(app, source, begun=1)
        row.do("settle", [(row.id, Outcome(ONE, status, Scope.RECIPIENT))], 1_000)
        moves = source in OPEN and allowed(source, OUTCOMES[status])
        assert row.state == (OUTCOMES[status] if moves else source)


@pytest.mark.parametrize("begun", [0, 1])
@pytest.mark.parametrize(
    ("work", "args", "target", "of"),
    [
        ("publish", (1_000,), State.READY, 0),
        ("promote", (1_000,), State.READY, 0),
        ("doubt", (1_000, 2_000), State.IN_DOUBT, 1),
        ("cancel_rest", (1_000, "why"), State.CANCELLED, None),
    ],
    ids=lambda value: value if isinstance(value, str) and value.islower() else "",
)
def test_what_ends_a_batch_touches_only_what_is_staged(app, work, args, target, of, begun):
    for source in State:
        row = Row(app, source, begun).of_batch(BatchState.PUBLISHING)
        row.do(work, row.batch, *args)
        moves = source is State.STAGED and of in (None, begun)
        assert row.state == (target if moves else source)


@pytest.mark.parametrize("source", State)
def test_only_what_is_staged_is_thrown_away(app, source):
    row = Row(app, source)
    row.do("discard", row.batch)
    rows = app.read(sa.select(schema.delivery.c.state))
    assert [r.state for r in rows] == ([] if source is State.STAGED else [source])


@pytest.mark.parametrize("target", BatchState)
def test_a_batch_moves_as_the_table_says(app, target):
    for source in BatchState:
        row = Row(app, State.STAGED).of_batch(source)
        legal = target in BATCH_MOVES[source]
        assert row.do("change_batch", row.batch, target, 1_000) is legal
        assert row.batch_state == (target if legal else source)


@pytest.mark.parametrize("committed", [True, False])
def test_a_person_decides_only_about_what_is_unknown(app, committed):
    for source in BatchState:
        row = Row(app, State.STAGED).of_batch(source)
        if source is not BatchState.UNKNOWN:
            with pytest.raises(IllegalMove):
                app.queue.decide(row.batch, committed=committed, actor="ann")
            assert (row.state, row.batch_state) == (State.STAGED, source)
        else:
            app.queue.decide(row.batch, committed=committed, actor="ann")
            assert row.state == (State.READY if committed else State.STAGED)
            assert row.batch_state == ("published" if committed else "discarded")


# -- the guard of these tests


@pytest.mark.parametrize("kind", [OWN_SQLITE, OWN_POSTGRESQL])
def test_the_guard_sees_what_is_not_allowed(make_queue, tm, kind):
    application = make_queue(kind)
    with tm:
        application.mailer().enqueue(letter("one", ONE))
    assert application.ready() == [ONE]
    assert application.illegal_moves() == []
    with application.engine.begin() as connection:
        for state in (State.SENDING, State.SENT, State.READY):
            connection.execute(schema.delivery.update().values(state=state))
        connection.execute(schema.batch.update().values(state=BatchState.STAGED))
    assert application.illegal_moves() == ["delivery sent>ready", "batch published>staged"]
    with application.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM illegal")
