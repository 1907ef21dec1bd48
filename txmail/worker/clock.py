"""The clock of leases: it counts while the machine is suspended, where there is such a one."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the machine was started, those in which it was suspended included."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
