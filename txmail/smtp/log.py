"""The protocol log: what was said on a connection, without what is nobody's business.

One line for each command and each line of a reply, to the logger ``txmail.smtp`` at level DEBUG.
Content is told by its size, an AUTH exchange by its mechanism and codes. Control characters are
escaped, the server's and ours. Secrets are gone from replies before they come here: see `Protocol`.
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
    """What is written down of one connection."""

    def __init__(self, route: str) -> None:
        self._route = route
        #: False while there is nothing to note
        self.active = False
        self.refresh()

    def refresh(self) -> None:
        """Look again whether somebody wants to read the log: not for every line, it takes time."""
        self.active = log.isEnabledFor(logging.DEBUG)

    def command(self, step: Step, line: bytes) -> None:
        """Note a command, or an answer to a challenge."""
        shown = printable(line.rstrip(b"\r\n").decode("utf-8", "backslashreplace"))
        if step is Step.AUTH:
            words = shown.split(" ")
            shown = " ".join([*words[:2], STARS]) if words[0] == "AUTH" else STARS
        log.debug("%s C: %s", self._route, shown)

    def content(self, octets: int) -> None:
        """Note that content was sent."""
        log.debug("%s C: (content, %d octets)", self._route, octets)

    def reply(self, reply: Reply) -> None:
        """Note `reply`."""
        for line in reply.lines:
            log.debug("%s S: %d %s", self._route, reply.code, printable(line))
