"""Read private attributes of zope.sqlalchemy. No other file does.

A test compares each of these with the installed version, and the project bounds the version from
above. (`txmail.common.session_managers` reads what core needs, without importing it.)
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session
from zope.sqlalchemy.datamanager import _SESSION_STATE, STATUS_READONLY, SessionDataManager

from ..common.transaction_internals import resources


def is_registered(session: Session) -> bool:
    """True if `session` takes part in a transaction, whichever that is."""
    return _SESSION_STATE.get(session) is not None


def is_read_only(session: Session) -> bool:
    """True if `session` takes part in a transaction, and may not write."""
    return bool(_SESSION_STATE.get(session) == STATUS_READONLY)


def takes_part(session: Session, transaction: Any) -> bool:
    """True if `session` takes part in `transaction`."""
    return any(
        isinstance(manager, SessionDataManager) and manager.session is session
        for manager in resources(transaction)
    )
