"""The connections to one database: its backend, its engine in each process, and its errors.

An error that leaves here is one of ours. Its text has no parameter, content or password in it;
SQLAlchemy's errors repeat them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import exc

from ...common.per_process import PerProcess, ProcessMark, this_process
from ...exceptions import ConfigurationError, QueueUnavailable, SchemaError, TxmailError
from ...secret import raise_alone
from .backend import Backend, StoreChanged
from .backends import backend_of_engine
from .process_state import ProcessState

#: Errors of SQLAlchemy that are about a database, and repeat what was to be written.
_SQLALCHEMY_ERRORS: tuple[type[BaseException], ...] = (exc.StatementError, exc.TimeoutError)

MakeEngine = Callable[[], sa.Engine]


class Connections:
    """The connections to one database. Shared by threads; a forked child makes its own."""

    def __init__(
        self, known: Backend | None, *, owned: bool, make: MakeEngine | None = None
    ) -> None:
        """`owned` engines are ours to close.

        Where the backend is not `known`, `adopt` tells it, or `make` makes an engine when one is
        needed before that.
        """
        self.known = known
        self._owned = owned
        self._make = make
        self._states = PerProcess(self._new_state)

    @property
    def name(self) -> str:
        """Printable, such as ``sqlite:////var/lib/app/mail.db``; without secrets."""
        return "the application's database" if self.known is None else self.known.name

    # -- which database

    def adopt(self, engine: sa.Engine) -> None:
        """See `Database.adopt`."""
        if self.known is not None:
            return
        if engine.dialect.is_async:
            if self._make is not None:
                return
            raise ConfigurationError(
                "its driver works in an event loop only, and the queue has threads of its own: "
                "name the database with another driver, by mail.queue_engine_url or engine=",
                field="engine",
            )
        self.known = backend_of_engine(engine)

    @property
    def backend(self) -> Backend:
        """The backend. Raises `ConfigurationError` as long as only a session could tell."""
        if self.known is None:
            if self._make is None:
                raise ConfigurationError(
                    "the queue is in the database of the first session, and there was no session "
                    "yet: name the database by mail.queue_engine_url or sqlalchemy.url",
                    field="engine",
                )
            # Of two threads that come here at once, one makes an engine that is never used.
            self.known = backend_of_engine(self._make())
            self._owned = True
        return self.known

    def determine(self) -> bool:
        """See `Database.determine`."""
        return (self.known is not None or self._make is not None) and bool(self.backend)

    # -- the state of this process

    @property
    def state(self) -> ProcessState:
        """The state of this process."""
        return self._states.get()

    def _new_state(self) -> ProcessState:
        backend = self.backend  # it decides who owns the engine
        adopts = not self._owned or self._make is None
        state = ProcessState(backend.engine() if adopts else self._make_engine())
        if self._owned:
            # A state that is made after `close` has an engine that nobody else closes.
            mark = this_process()
            weakref.finalize(state, _dispose, state.engine, mark).atexit = False
        return state

    def _make_engine(self) -> sa.Engine:
        assert self._make is not None
        return self._make()

    def abandon(self) -> None:
        """See `Database.abandon`."""
        state = self._states.known()
        if state is not None:
            state.abandon()

    def close(self) -> None:
        """See `Database.close`."""
        state = self._states.forget()
        if state is not None and self._owned:
            state.closed = True
            state.engine.dispose()

    # -- errors

    @property
    def foreign(self) -> tuple[type[BaseException], ...]:
        """The errors of SQLAlchemy and the driver."""
        return _SQLALCHEMY_ERRORS + (() if self.known is None else self.known.errors)

    @property
    def unexpected(self) -> tuple[type[BaseException], ...]:
        """The errors of SQLAlchemy and the driver, and `StoreChanged`."""
        return (StoreChanged, *self.foreign)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """See `Database.errors`."""
        try:
            yield
        except self.foreign as error:
            problem = self._translated(error)
        else:
            return
        raise_alone(problem)

    def translated(self, error: BaseException) -> TxmailError | None:
        """The error of ours for one of SQLAlchemy or the driver; None for all others."""
        return self._translated(error) if isinstance(error, self.foreign) else None

    def _translated(self, error: BaseException) -> TxmailError:
        cause = cause_of(error)
        if self.known is None:
            return QueueUnavailable(f"{self.name}: {type(cause).__name__}")
        problem = self.known.translated(cause)
        state = self._states.known()
        if state is not None and isinstance(problem, SchemaError):
            state.prepared = False  # an administrator may upgrade the tables
        return problem


def cause_of(error: BaseException) -> BaseException:
    """The driver's own error, of which SQLAlchemy has made `error`."""
    if isinstance(error, exc.StatementError) and error.orig is not None:
        return error.orig
    return error


def _dispose(engine: sa.Engine, mark: ProcessMark) -> None:
    if this_process() == mark:  # the connections of an ancestor are not to be closed here
        engine.dispose()
