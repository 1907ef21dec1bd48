"""The Date header of a message (RFC 5322 section 3.3)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from functools import lru_cache


def new_date() -> str:
    """The value of a Date header for now, in UTC."""
    return _date(int(time.time()))


def date_text(moment: datetime) -> str:
    """The value of a Date header for `moment`, in its own zone.

    A header gives a zone in hours and minutes: a zone that has seconds is rounded down to minutes,
    and the clock time follows it.
    """
    offset = moment.utcoffset()
    if offset is not None and offset % timedelta(minutes=1):
        whole = offset // timedelta(minutes=1) * timedelta(minutes=1)
        moment = moment.astimezone(timezone(whole))
    return format_datetime(moment)


@lru_cache(4)
def _date(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC))
