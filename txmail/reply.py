"""Replies of a mail server: `Reply` and `EnhancedStatus`, both values.

A reply is a three-digit code and one or more lines of text (RFC 5321 section 4.2). Many servers
put an enhanced status code in front of the text (RFC 2034, RFC 3463); it counts only if its class
agrees with the first digit of the code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .common.shown import printable

_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?:\s|\Z)", re.ASCII)


@dataclass(frozen=True, slots=True)
class EnhancedStatus:
    """An enhanced mail system status code (RFC 3463): class, subject and detail."""

    #: 2 success, 4 persistent transient failure, 5 permanent failure
    klass: int
    #: what it is about: 1 addressing, 2 mailbox, 3 mail system, 4 network, 5 protocol, ...
    subject: int
    #: which condition of that subject
    detail: int

    @classmethod
    def parse(cls, text: str) -> EnhancedStatus | None:
        """The status `text` begins with, or None."""
        found = _ENHANCED.match(text)
        return cls(int(found[1]), int(found[2]), int(found[3])) if found else None

    def __str__(self) -> str:
        return f"{self.klass}.{self.subject}.{self.detail}"


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply (RFC 5321 section 4.2).

    `str()` of it is safe for a terminal or a log: control characters are escaped.
    """

    #: 200 to 599
    code: int
    #: the text of each line, without code and line end
    lines: tuple[str, ...] = ("",)

    @property
    def positive(self) -> bool:
        """2yz: the request was done."""
        return 200 <= self.code < 300

    @property
    def intermediate(self) -> bool:
        """3yz: go on."""
        return 300 <= self.code < 400

    @property
    def temporary(self) -> bool:
        """4yz: try again later."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5yz: do not repeat this request."""
        return 500 <= self.code < 600

    @property
    def enhanced(self) -> EnhancedStatus | None:
        """The enhanced status code (RFC 2034), if there is one whose class fits the code."""
        status = EnhancedStatus.parse(self.lines[0])
        return status if status is not None and status.klass == self.code // 100 else None

    @property
    def text(self) -> str:
        """All lines, joined by spaces, as the server sent them."""
        return " ".join(self.lines)

    def __str__(self) -> str:
        return f"{self.code} {printable(self.text)}".rstrip(" ")
