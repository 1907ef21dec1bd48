"""The settings of a scripted server, and its checks of a MAIL command."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..common.ascii_text import ascii_strip, ascii_upper, ascii_words, is_digits

_PATH = re.compile(r'([A-Z]+): ?<((?:"(?:[^"\\]|\\.)*"|[^<>"])*)>((?: +[^ ]+)*) *', re.I | re.ASCII)

#: The parameters of MAIL and the extension that each of them needs.
_PARAMETERS = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8", "AUTH": "AUTH"}


@dataclass(frozen=True, slots=True)
class Settings:
    """The behaviour of the server without rules. `ScriptedServer` explains the fields."""

    hostname: str
    extensions: tuple[str, ...]
    starttls: bool = False
    implicit_tls: bool = False
    credentials: Mapping[str, str] = field(default_factory=dict)
    mechanisms: tuple[str, ...] = ()
    login_required: bool = False
    max_recipients: int | None = None
    ehlo: bool = True
    exim_like: bool = False

    @property
    def size_limit(self) -> int:
        """The largest content in octets, 0 for any size (RFC 1870 section 4)."""
        for extension in self.extensions:
            keyword, _, value = extension.partition(" ")
            if ascii_upper(keyword) == "SIZE" and is_digits(ascii_strip(value)):
                return int(value)
        return 0


@dataclass(slots=True)
class MailTransaction:
    """An open mail transaction (RFC 5321 section 3.3)."""

    sender: str
    parameters: Mapping[str, str]
    recipients: list[str] = field(default_factory=list)
    #: the octets of BDAT so far; None before the first chunk
    chunks: bytearray | None = None


def parse_path(word: str, argument: str) -> tuple[str, dict[str, str]] | None:
    """Address and parameters of a MAIL (`word` FROM) or RCPT (TO) command, None if it is neither.

    Keywords are in upper case; the value of a keyword without one is empty.
    """
    found = _PATH.fullmatch(argument)
    if found is None or ascii_upper(found[1]) != word:
        return None
    words = (word.partition("=") for word in ascii_words(found[3]))
    return found[2], {ascii_upper(keyword): value for keyword, _, value in words}


def refusal_of_mail(
    sender: str, parameters: Mapping[str, str], offered: Collection[str], size_limit: int
) -> str | None:
    """The reply to a MAIL command that cannot be accepted, None if it can."""
    for keyword in parameters:
        if _PARAMETERS.get(keyword) not in offered:
            return f"555 5.5.4 Unsupported parameter {keyword}"
    size = parameters.get("SIZE", "0")
    if not is_digits(size):
        return "501 5.5.4 Bad SIZE"
    if size_limit and int(size) > size_limit:
        return "552 5.3.4 Message too big"
    if "BODY" in parameters and ascii_upper(parameters["BODY"]) not in ("7BIT", "8BITMIME"):
        return "501 5.5.4 Bad BODY"
    if not sender.isascii() and "SMTPUTF8" not in parameters:
        return "553 5.6.7 The address needs SMTPUTF8"
    return None
