"""Logs the dialogue with a server, without content and secrets.

The logger ``txmail.smtp`` gets a line at level DEBUG for each command and each line of a reply. Of
a content the log shows the size, of an AUTH exchange the mechanism and the codes. Control
characters are escaped. `Protocol` takes secrets out of replies before they come here.
"""

from __future__ import annotations

import logging

from ..common.logs import quiet_logger
from ..common.shown import printable
from ..reply import Reply
from ..secret import STARS
from .failure_policy import Step

log = quiet_logger("txmail.smtp")


class ProtocolLog:
    """Writes the log of one connection."""

    def __init__(self, route: str) -> None:
        self._route = route
        #: False while the logger drops all lines
        self.active = False
        self.refresh()

    def refresh(self) -> None:
        """Ask the logger again whether it is on. It takes too long to ask for every line."""
        self.active = log.isEnabledFor(logging.DEBUG)

    def command(self, step: Step, line: bytes) -> None:
        """Log a command, or an answer to a challenge."""
        shown = printable(line.rstrip(b"\r\n").decode("utf-8", "backslashreplace"))
        if step is Step.AUTH:
            words = shown.split(" ")
            shown = " ".join([*words[:2], STARS]) if words[0] == "AUTH" else STARS
        log.debug("%s C: %s", self._route, shown)

    def content(self, octets: int) -> None:
        """Log that content was sent."""
        log.debug("%s C: (content, %d octets)", self._route, octets)

    def reply(self, reply: Reply) -> None:
        """Log `reply`."""
        for line in reply.lines:
            log.debug("%s S: %d %s", self._route, reply.code, printable(line))
