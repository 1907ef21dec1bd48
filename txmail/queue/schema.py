"""The tables of the queue.

`metadata` is public: an application can have the tables in its own database, made by its own
migrations, or by ``metadata.create_all``. All names begin with ``txmail_``.

Times are whole milliseconds since 1970, UTC. Texts with a structure are JSON; nothing is pickled.
Rows of `message` never change. All changes are made to `delivery`, which is narrow.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from .states import State

#: The version of the tables that this code reads and writes, as Alembic names it.
VERSION = "0003"

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only with INTEGER.
_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _table(name: str, *columns: Any) -> sa.Table:
    return sa.Table(f"txmail_{name}", metadata, *columns, sqlite_autoincrement=True)


def _one_of(column: sa.Column[Any], *values: str) -> sa.ColumnElement[bool]:
    return column.in_([sa.literal_column(f"'{value}'") for value in values])


def _partial(name: str, condition: sa.ColumnElement[bool], *columns: sa.Column[Any]) -> None:
    """An index on the few rows of which `condition` is true, however many others there are.

    SQLite uses it only for a query that has `condition` in it word for word, with these values and
    not with parameters. So each condition has a name, which queries use.
    """
    sa.Index(f"ix_txmail_{name}", *columns, sqlite_where=condition, postgresql_where=condition)


#: which version the tables have; Alembic's version table, with a column more
version = sa.Table(
    "txmail_version",
    metadata,
    sa.Column("version_num", sa.String(32), nullable=False),
    #: the oldest version whose processes may use these tables; null: only `version_num` itself
    sa.Column("min_version", sa.String(32)),
    sa.PrimaryKeyConstraint("version_num", name="txmail_version_pkc"),  # as Alembic calls it
)
sa.event.listen(
    version,
    "after_create",
    # However the tables are made, they say which they are.
    sa.DDL(
        f"INSERT INTO txmail_version (version_num) VALUES ('{VERSION}')"  # noqa: S608
    ),
)

#: a process that has written batches or sends; these columns tell it from any other
process = sa.Table(
    "txmail_process",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    #: application or worker
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    #: of the machine's last start, and of the namespace in which `pid` counts; empty if unknown
    sa.Column("boot", sa.Text, nullable=False),
    sa.Column("pid_namespace", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    #: when the process started, in the clock ticks of its machine; 0 if unknown
    sa.Column("started", sa.BigInteger, nullable=False),
    sa.Column("heartbeat", sa.BigInteger, nullable=False),
)

#: when machines were started, by their clock at the first question: `Database.lease_now_ms`
boot = sa.Table(
    "txmail_boot",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("started", sa.BigInteger, nullable=False),
)

#: one transaction's mail; the id is random and stands in the witnesses' databases, too
batch = sa.Table(
    "txmail_batch",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(12), nullable=False),
    #: the process that decides about it while it is alive; null if it has given the batch up
    sa.Column("process", sa.String(32)),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
    #: JSON: the notes of each witness, and the other data managers that took part
    sa.Column("witnesses", sa.Text, nullable=False),
    #: why it is in its state, where that needs words
    sa.Column("reason", sa.Text),
)
#: Batches that are not finished.
IS_OPEN = _one_of(batch.c.state, "staged", "sending", "publishing", "unknown")
_partial("batch_open", IS_OPEN, batch.c.state, batch.c.id)

#: one message, or the content of a job; never changed, but that its content may be blanked
message = _table(
    "message",
    sa.Column("id", _Id, primary_key=True),
    sa.Column("batch", sa.BigInteger, nullable=False, index=True),
    #: plain or job
    sa.Column("kind", sa.String(5), nullable=False),
    #: of its header, with the angle brackets
    sa.Column("message_id", sa.Text, nullable=False),
    #: the reverse-path, empty for the null sender
    sa.Column("sender", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    #: octets
    sa.Column("size", sa.BigInteger, nullable=False),
    #: empty once it was blanked: it must not be sent then
    sa.Column("content", sa.LargeBinary, nullable=False),
    #: SHA-256 of the content; null if it was blanked, or written before there were digests
    sa.Column("digest", sa.LargeBinary),
    #: when it may be sent first; null if that was never said
    sa.Column("not_before", sa.BigInteger),
)

#: one recipient of a message
delivery = _table(
    "delivery",
    sa.Column("id", _Id, primary_key=True),
    sa.Column("message", sa.BigInteger, nullable=False, index=True),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    #: see `txmail.submission.Priority`
    sa.Column("priority", sa.SmallInteger, nullable=False),
    #: when it may be tried; null: not before a person says so
    sa.Column("due", sa.BigInteger),
    sa.Column("expires", sa.BigInteger),
    sa.Column("attempts", sa.SmallInteger, nullable=False),
    #: 1 if its final dot may have been sent
    sa.Column("begun", sa.SmallInteger, nullable=False),
    #: 1 if it has been in doubt: it may have been sent before
    sa.Column("duplicate", sa.SmallInteger, nullable=False),
    #: the process that may send it, the token of its claim, and the end of its lease
    sa.Column("process", sa.String(32)),
    sa.Column("token", sa.BigInteger),
    sa.Column("lease", sa.BigInteger),
    sa.Column("changed", sa.BigInteger, nullable=False),
    #: the last reply's code, and the reply or another reason for the state
    sa.Column("code", sa.SmallInteger),
    sa.Column("reply", sa.Text),
    #: JSON: the merge fields of a job's delivery
    sa.Column("fields", sa.Text),
    #: the route that had no room for it: who has some, comes for it; null if nobody looked yet
    sa.Column("route", sa.Text),
    #: since when it is due, if `due` was moved because its route failed
    sa.Column("since", sa.BigInteger),
)


_d = delivery.c
#: What a claim reads, in the order of its index.
IS_READY = sa.and_(_d.state == sa.literal_column("'ready'"), _d.route.is_(None))
_partial("delivery_ready", IS_READY, _d.priority, _d.due, _d.id)
#: Of that, what is not urgent at all (`submission.Priority.BULK`), message by message.
IS_BULK = sa.and_(IS_READY, _d.priority == sa.literal_column("2"))
_partial("delivery_bulk", IS_BULK, _d.priority, _d.message, _d.due, _d.id)
#: What waits until its route has room, however much that is: other claims do not come by it.
IS_PARKED = sa.and_(_d.state == sa.literal_column("'ready'"), _d.route.is_not(None))
_partial("delivery_parked", IS_PARKED, _d.route, _d.priority, _d.due, _d.id)
#: What would have been sent by now if its route had not failed.
IS_DELAYED = sa.and_(_d.state == sa.literal_column("'ready'"), _d.since.is_not(None))
_partial("delivery_delayed", IS_DELAYED, _d.since)
#: What becomes ready by itself.
IS_LATER = sa.and_(_one_of(_d.state, "deferred", "in_doubt"), _d.due.is_not(None))
_partial("delivery_later", IS_LATER, _d.due, _d.id)
#: What somebody has a lease on.
IS_LEASED = _d.state == sa.literal_column("'sending'")
_partial("delivery_lease", IS_LEASED, _d.lease)
#: What a person may have to look at.
NEEDS_ATTENTION = _one_of(_d.state, "failed", "in_doubt", "held")
_partial("delivery_attention", NEEDS_ATTENTION, _d.state, _d.id)
#: The last moment that there is, in milliseconds: the end of the year 9999.
LAST_MOMENT = 253_402_300_799_999


def _not_one_of(column: sa.Column[Any], *values: str) -> sa.ColumnElement[bool]:
    return column.not_in([sa.literal_column(value) for value in values])


def _no_moment(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    # SQLite has texts behind all numbers.
    return sa.or_(column < sa.literal_column("0"), column > sa.literal_column(str(LAST_MOMENT)))


#: What cannot be, and would never be sent: see `impossible`.
IS_IMPOSSIBLE = sa.or_(
    _not_one_of(_d.state, *(f"'{state}'" for state in State)),
    sa.and_(
        _one_of(_d.state, "ready", "sending", "deferred", "in_doubt"),
        sa.or_(_not_one_of(_d.priority, "0", "1", "2"), _no_moment(_d.due), _no_moment(_d.changed)),
    ),
    sa.and_(_one_of(_d.state, "ready", "deferred"), _d.due.is_(None)),
    sa.and_(
        _d.state == sa.literal_column("'sending'"), sa.or_(_d.lease.is_(None), _d.token.is_(None))
    ),
)
_partial("delivery_impossible", IS_IMPOSSIBLE, _d.id)

#: the tries of a delivery, except for a success at the first
attempt = _table(
    "attempt",
    sa.Column("id", _Id, primary_key=True),
    sa.Column("delivery", sa.BigInteger, nullable=False, index=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    #: what it came to, a state of a delivery
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("code", sa.SmallInteger),
    sa.Column("reply", sa.Text),
    sa.Column("route", sa.Text),
    sa.Column("process", sa.String(32)),
)

#: the state of a route
route = sa.Table(
    "txmail_route",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("state", sa.String(8), nullable=False),
    #: when it is tried again; null if it waits for a person
    sa.Column("until", sa.BigInteger),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("changed", sa.BigInteger, nullable=False),
    #: of a limited rate: how many messages it might carry at the last count, and the time of it
    sa.Column("allowance", sa.Float),
    sa.Column("refilled", sa.BigInteger),
    #: after its server asked for less: messages a second from `slowed` on; then it grows
    sa.Column("rate", sa.Float),
    sa.Column("slowed", sa.BigInteger),
    #: logins that were refused: an octet of each password (see `txmail.transports.login_limit`)
    sa.Column("logins", sa.Text),
    #: until when one worker with another password tries it alone
    sa.Column("trying", sa.BigInteger),
)

#: the right to one connection of a route that may have so many on all hosts together
slot = sa.Table(
    "txmail_slot",
    metadata,
    sa.Column("route", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    #: the holder, a random number of a worker, and the end of its lease
    sa.Column("holder", sa.BigInteger, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
    #: the process of the holder
    sa.Column("process", sa.String(32)),
)

#: what a person has paused: the queue, a job or a domain
control = sa.Table(
    "txmail_control",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
)

#: a bulk action on all deliveries that match a filter, in steps that survive a crash
operation = _table(
    "operation",
    sa.Column("id", _Id, primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("filter", sa.Text, nullable=False),
    #: deliveries with a higher id came later, and are left alone
    sa.Column("boundary", sa.BigInteger, nullable=False),
    sa.Column("cursor", sa.BigInteger, nullable=False),
    sa.Column("counts", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
)

#: the message of each idempotency key
idempotency = sa.Table(
    "txmail_idempotency",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("message", sa.BigInteger, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)

#: addresses that get no mail
suppression = sa.Table(
    "txmail_suppression",
    metadata,
    sa.Column("address", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)

#: what people have done
audit = _table(
    "audit",
    sa.Column("id", _Id, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
