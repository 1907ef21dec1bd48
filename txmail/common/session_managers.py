"""Read the state of zope.sqlalchemy's data managers. No other file of core does.

Core does not import zope.sqlalchemy. It knows the managers by their sort key, and reads how far
they are from their attribute `state`. A test compares both with the installed version.
"""

from __future__ import annotations

from typing import Any

from .transaction_internals import Status, resources

#: A one-phase session commits its SQL in its vote, before ours.
ONE_PHASE_SORT_KEY = "~sqlalchemy:"
_NO_WORK, _COMMITTED = "no work", "committed"


def with_work(transaction: Any) -> list[Any]:
    """The data managers of `transaction` that may have something to commit.

    A session that has only read is done before the vote.
    """
    return [m for m in resources(transaction) if getattr(m, "state", None) != _NO_WORK]


def committed_early(transaction: Any) -> bool:
    """True if a database may have committed in its vote, before that of `transaction` has ended."""
    return transaction.status is not Status.ACTIVE and any(
        manager.sortKey().startswith(ONE_PHASE_SORT_KEY)
        and getattr(manager, "state", _COMMITTED) == _COMMITTED
        for manager in resources(transaction)
    )
