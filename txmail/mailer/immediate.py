"""Send a message now, in a private transaction without databases."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from transaction.interfaces import NoTransaction

from ..datamanager import join
from ..delivery.private_transaction import PrivateTransactionManager
from ..interfaces import IDeliveryMethod
from ..outcome import Outcome
from ..submission import Listener, Submission


def send_now(
    method: IDeliveryMethod, submission: Submission, listener: Listener
) -> tuple[Outcome, ...]:
    """Send `submission` and return its outcomes. Raises what a commit raises.

    `listener` gets the outcomes first, also if the commit fails. The current transaction and its
    databases take no part.
    """
    told: list[tuple[Outcome, ...]] = []

    def listen(outcomes: tuple[Outcome, ...]) -> None:
        told.append(outcomes)
        listener(outcomes)

    private: Any = PrivateTransactionManager()
    private.begin()
    try:
        join(private).add(method, submission, listen)
        private.commit()
    except BaseException:
        with suppress(NoTransaction):  # it is over
            private.abort()
        raise
    return told[-1]
