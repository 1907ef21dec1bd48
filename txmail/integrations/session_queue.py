"""zope.sqlalchemy: a queue in the application's own database, written through its session.

``Mailer(transport, queue=session_queue(DBSession))``, or with a session for each request
``mailer.bind(transaction_manager=request.tm, session=request.dbsession)``. The tables are those of
`txmail.queue.schema.metadata`. The session is joined to the transaction of the mailer's transaction
manager, with changes: otherwise zope.sqlalchemy would take the session for read-only and roll back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import zope.sqlalchemy
from sqlalchemy.orm import Session

from ..exceptions import ConfigurationError
from ..queue.retry import DOUBT_RETRIES
from ..queue.session import SessionQueue, Sessions
from .zope_sqlalchemy_internals import is_read_only, is_registered, takes_part


def session_queue(
    session: Sessions | None = None,
    *,
    engine: sa.Engine | Callable[[], sa.Engine] | None = None,
    default_engine: Callable[[], sa.Engine] | None = None,
    keep_session: bool = False,
    on_doubt: str = "retry",
    doubt_retries: int = DOUBT_RETRIES,
    limit: int | None = None,
    clock: Callable[[], float] | None = None,
) -> SessionQueue:
    """A `SessionQueue` with these arguments. Raises `ConfigurationError`."""
    return SessionQueue(
        session,
        mark_changed,
        engine=engine,
        default_engine=default_engine,
        keep_session=keep_session,
        on_doubt=on_doubt,
        doubt_retries=doubt_retries,
        limit=limit,
        clock=clock,
    )


def mark_changed(session: Session, transaction_manager: Any, keep_session: bool) -> None:
    """Make `session` take part in the current transaction, with changes.

    Raises `ConfigurationError` for a read-only session, and for a session that takes part in a
    transaction of another transaction manager: that transaction may end in another way.
    """
    if is_read_only(session):
        raise ConfigurationError("it was registered as read-only", field="session")
    if is_registered(session) and not takes_part(session, transaction_manager.get()):
        raise ConfigurationError(
            "it belongs to another transaction manager than the mailer", field="session"
        )
    zope.sqlalchemy.mark_changed(
        session, transaction_manager=transaction_manager, keep_session=keep_session
    )
