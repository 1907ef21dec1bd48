"""Loggers that never raise, so that a log line cannot decide about mail.

If a filter or some handlers raise, the exception leaves `logging` at the line that logs. A commit
would fail after the server has accepted its mail, or the exception would hide the real error.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any


class QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that prints exceptions of filters and handlers, as `logging` itself does."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """See `logging.Logger.log`."""
        try:
            # The record names the caller's line, not this one.
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            self.logger.log(level, msg, *args, **kwargs)
        except Exception:
            with suppress(Exception):
                if logging.raiseExceptions:
                    traceback.print_exc(file=sys.stderr)


def quiet_logger(name: str) -> QuietLogger:
    """The logger `name`, for code that a failing log line must not stop."""
    return QuietLogger(logging.getLogger(name), {})
