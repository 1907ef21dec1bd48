"""Reads the service extensions in a reply to EHLO (RFC 5321 section 4.1.1.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..common.ascii_text import ascii_upper, ascii_words, is_digits
from ..reply import Reply


@dataclass(frozen=True, slots=True)
class Extensions:
    """The service extensions that one server offers; none after HELO."""

    #: False after HELO: then the server has not said what it offers
    esmtp: bool = field(default=False, compare=False)
    #: RFC 2920: several commands in one write
    pipelining: bool = False
    #: RFC 3030: content in chunks of known size, with BDAT
    chunking: bool = False
    #: RFC 6152: octets above 127 in the content
    eightbitmime: bool = False
    #: RFC 6531: non-ASCII local parts and headers
    smtputf8: bool = False
    #: RFC 2034: replies begin with enhanced status codes
    enhancedstatuscodes: bool = False
    #: RFC 3207
    starttls: bool = False
    #: RFC 4954: the SASL mechanisms, in upper case
    auth: frozenset[str] = frozenset()
    #: RFC 1870: True if MAIL may name the size
    size: bool = False
    #: RFC 1870: the largest message in octets; None if the server names no limit
    size_limit: int | None = None

    @classmethod
    def from_ehlo(cls, reply: Reply) -> Extensions:
        """Read a positive EHLO reply; the first line is the server's greeting."""
        words = [ascii_words(line) for line in reply.lines[1:]]
        offered = {ascii_upper(w[0]): w[1:] for w in words if w}
        mechanisms = [name for w in words if w for name in _mechanisms(w[0], w[1:])]
        size = offered.get("SIZE", [])
        limit = int(size[0]) if size and is_digits(size[0]) else 0
        return cls(
            esmtp=True,
            pipelining="PIPELINING" in offered,
            chunking="CHUNKING" in offered,
            eightbitmime="8BITMIME" in offered,
            smtputf8="SMTPUTF8" in offered,
            enhancedstatuscodes="ENHANCEDSTATUSCODES" in offered,
            starttls="STARTTLS" in offered,
            auth=frozenset(mechanisms),
            size="SIZE" in offered,
            size_limit=limit or None,
        )


def _mechanisms(keyword: str, names: list[str]) -> list[str]:
    """The mechanisms of one line, such as ``AUTH PLAIN`` or, from before RFC 2554, ``AUTH=PLAIN``.

    Servers send both forms, and the same form several times: all of them count. Names are ASCII
    (RFC 4422 section 3.1). Others are dropped, because their upper case could be another name.
    """
    word, old_form, first = keyword.partition("=")
    if ascii_upper(word) != "AUTH":
        return []
    listed = [first, *names] if old_form else names
    return [ascii_upper(name) for name in listed if name and name.isascii()]
