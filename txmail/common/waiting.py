"""Whether a thread may wait for something that others have, such as a connection.

Within a two-phase commit it must not: databases hold locks then, and who has the connection may
need them. Nor may a thread that has a connection itself.
"""

from __future__ import annotations

import sys

from transaction._transaction import Transaction

_TWO_PHASE = Transaction._commitResources.__code__


def in_two_phase_commit() -> bool:
    """True if this thread is between the `tpc_begin` and the end of any transaction's commit."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _TWO_PHASE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
