"""A transaction for one message that is sent now: nobody but our data manager takes part in it."""

from __future__ import annotations

from transaction import TransactionManager


class PrivateTransactionManager(TransactionManager):
    """Neither the application's databases nor their sessions have a part in its transactions.

    A queue writes what it has through a connection of its own. Whoever begins one ends it, so that
    nobody has to be warned of mail that is left in it.
    """

    def __init__(self) -> None:
        super().__init__(explicit=True)  # type: ignore[no-untyped-call]
