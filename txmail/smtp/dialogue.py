"""The protocol log: what was said on a connection, without what is nobody's business.

One line for each command and each line of a reply, to the logger ``txmail.smtp`` at level DEBUG.
Content is told by its size, an AUTH exchange by its mechanism and codes. Whatever a server says is
escaped, and searched for our secret: a server that echoes it gets it into no log and no error.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from urllib.parse import quote

from ..reply import Reply, printable
from ..secret import STARS
from .trouble import Stage

log = logging.getLogger("txmail.smtp")


class Dialogue:
    """What is written down of one connection, and kept out of its replies."""

    def __init__(self, route: str) -> None:
        self._route = route
        #: what must not be shown, in every form that it may come back in; asked, not kept
        self._hidden: Callable[[], list[str]] | None = None
        #: False while there is nothing to note and nothing to hide
        self.active = False
        self.refresh()

    def refresh(self) -> None:
        """Look again whether somebody wants to read the log: not for every line, it takes time."""
        self.active = self._hidden is not None or log.isEnabledFor(logging.DEBUG)

    def hide(self, reveal: Callable[[], str], user: str) -> None:
        """From now on take the secret out of what the server says."""
        self._hidden = lambda: forms_of(reveal(), user)
        self.refresh()

    def command(self, stage: Stage, line: bytes) -> None:
        """Note a command, or an answer to a challenge."""
        if log.isEnabledFor(logging.DEBUG):
            shown = printable(line.rstrip(b"\r\n").decode("utf-8", "backslashreplace"))
            if stage is Stage.AUTH:
                words = shown.split(" ")
                shown = " ".join([*words[:2], STARS]) if words[0] == "AUTH" else STARS
            log.debug("%s C: %s", self._route, shown)

    def content(self, octets: int) -> None:
        """Note that content was sent."""
        log.debug("%s C: (content, %d octets)", self._route, octets)

    def reply(self, stage: Stage, reply: Reply) -> Reply:
        """Note `reply`; return it without the secret."""
        if stage is Stage.AUTH:
            status = str(reply.enhanced or "")
            reply = Reply(reply.code, (status,))
        elif self._hidden is not None:
            reply = self._without_secret(reply)
        if log.isEnabledFor(logging.DEBUG):
            for line in reply.lines:
                log.debug("%s S: %d %s", self._route, reply.code, printable(line))
        return reply

    def _without_secret(self, reply: Reply) -> Reply:
        assert self._hidden is not None
        lines = reply.lines
        for form in self._hidden():
            lines = tuple(line.replace(form, STARS) for line in lines)
        return reply if lines == reply.lines else Reply(reply.code, lines)


def forms_of(secret: str, user: str) -> list[str]:
    """The forms in which `secret` was sent or may be echoed: plain, base64, hex, URL."""
    raw = secret.encode()
    plain = b"\0" + user.encode() + b"\0" + raw
    return [
        secret,
        base64.b64encode(raw).decode("ascii"),
        base64.b64encode(plain).decode("ascii"),
        raw.hex(),
        raw.hex().upper(),
        quote(secret, safe=""),
    ]
