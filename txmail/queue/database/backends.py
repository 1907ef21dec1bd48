"""The kinds of database that a queue can be in, and how a URL or an engine chooses one.

Another kind is one file with its `Backend`, and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import exc

from ...exceptions import ConfigurationError
from ...secret import Secret, Unshown
from . import postgresql, shared_sqlite, sqlite
from .backend import Backend
from .questions import Questions

#: The setting that errors name.
FIELD = "queue_url"
#: Pools that give one connection to several users.
_SHARING = (sa.StaticPool, sa.SingletonThreadPool, sa.AssertionPool)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of database."""

    #: SQLAlchemy's name of its dialect
    dialect: str
    #: what a URL may begin with
    schemes: tuple[str, ...]
    #: the queue's own database at a URL; the field is for errors
    of_url: Callable[[sa.URL, str], Backend]
    #: the application's database
    of_engine: Callable[[sa.Engine], Backend]
    #: the application's database where one connection serves everybody, if that is possible
    of_shared: Callable[[sa.Engine], Backend] | None = None
    #: how to ask a database of this kind what became of a transaction
    questions: Questions = field(default_factory=Questions)


KINDS = (
    Kind(
        "sqlite",
        sqlite.SCHEMES,
        lambda url, field: sqlite.Sqlite(sqlite.path_of(url, field)),
        lambda engine: sqlite.Sqlite(engine=engine),
        shared_sqlite.SharedSqlite,
        questions=sqlite.SqliteQuestions(),
    ),
    Kind(
        "postgresql",
        postgresql.SCHEMES,
        lambda url, field: postgresql.Postgresql(url, field=field),
        lambda engine: postgresql.Postgresql(engine=engine),
        questions=postgresql.PostgresqlQuestions(),
    ),
)


def backend_of_url(given: Unshown) -> Backend:
    """The backend of a queue's own database. Raises `ConfigurationError` about ``queue_url``."""
    url = given.get()
    if isinstance(url, Secret):
        url = url.reveal(FIELD)
    if not isinstance(url, str):
        raise ConfigurationError("this is not text: give the URL of a database", field=FIELD)
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None:
        raise ConfigurationError(
            "this is not the URL of a database: write sqlite:////path/of/a/file or postgresql://host/name",
            field=FIELD,
        )
    for kind in KINDS:
        if parsed.drivername in kind.schemes:
            return kind.of_url(parsed, FIELD)
    raise ConfigurationError(
        "the queue cannot be in this kind of database: begin with sqlite:// or postgresql://",
        field=FIELD,
    )


def backend_of_engine(engine: sa.Engine) -> Backend:
    """The backend of the application's database. Raises `ConfigurationError` about ``engine``."""
    kind = _kind_of(engine)
    shared = None if kind is None else kind.of_shared
    if shared is not None and isinstance(engine.pool, sa.StaticPool):
        return shared(engine)
    if isinstance(engine.pool, _SHARING):
        raise ConfigurationError(
            "its pool gives one connection to several users: use a QueuePool or a NullPool, and "
            "for a database of SQLite in memory poolclass=StaticPool",
            field="engine",
        )
    if kind is None:
        raise ConfigurationError(
            "the queue cannot be in this kind of database: use SQLite or PostgreSQL", field="engine"
        )
    return kind.of_engine(engine)


def questions_for(engine: sa.Engine) -> Questions:
    """How to ask the database of `engine`, of whatever kind, what became of a transaction."""
    kind = _kind_of(engine)
    return Questions() if kind is None else kind.questions


def _kind_of(engine: sa.Engine) -> Kind | None:
    return next((kind for kind in KINDS if kind.dialect == engine.dialect.name), None)
