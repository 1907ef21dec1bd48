"""Sending a message now: in a transaction of its own, in which nobody else takes part."""

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
    """Send `submission`; its outcomes. Raises what a commit raises.

    `listener` gets the outcomes before anybody else is told, also if an error ends it. Neither the
    current transaction nor its databases have a part in it, wherever this is called.
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
