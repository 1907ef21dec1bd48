"""Loggers that never raise: what is told of a mail must not decide about it.

A filter that raises comes out of `logging` where the line was written, and so do some handlers:
a commit would fail after its mail was accepted, or its real error would be hidden.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any


class QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose filters and handlers may raise: that is printed as `logging` does it."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """See `logging.Logger.log`."""
        try:
            # Not this line, but that of who calls.
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            self.logger.log(level, msg, *args, **kwargs)
        except Exception:
            with suppress(Exception):
                if logging.raiseExceptions:
                    traceback.print_exc(file=sys.stderr)


def quiet_logger(name: str) -> QuietLogger:
    """The logger called `name`, for lines that must not fail what they tell of."""
    return QuietLogger(logging.getLogger(name), {})
