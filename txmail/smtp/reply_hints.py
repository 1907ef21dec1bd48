"""What the words of a negative reply hint at: our rate, our login or our address. No I/O.

Servers refuse us with any code. Three refusals alike show it in the end (see `evidence`); a few
words show it at the first one, so that a message which happens to be alone does not fail for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..common.ascii_text import ascii_lower, ascii_split
from ..reply import EnhancedStatus, Reply

#: Characters of a reply that tell it from others: as many as the queue keeps of one.
_LENGTH = 500
#: Every 4yz to MAIL, DATA or the content counts as the same, whatever its words.
PUT_OFF = "put off"


@dataclass(frozen=True, slots=True)
class Hint:
    """What the server refuses, if it is not the message."""

    #: True if we send too much: a lower rate helps
    slow: bool = False
    #: True if a person has to act: it wants a login
    stop: bool = False


_TOO_MUCH, _LOGIN, _BLOCKED = Hint(slow=True), Hint(stop=True), Hint()

#: what Office 365, Gmail and their like say of a sender that they do not want now
_CODES = {
    **dict.fromkeys(("5.1.90", "5.4.5", "5.4.6", "5.7.705"), _TOO_MUCH),
    **dict.fromkeys(("5.7.708", "5.7.750", "5.7.501", "5.7.502", "5.7.503", "5.7.511"), _BLOCKED),
    "5.7.57": _LOGIN,
}

_RATE = re.compile(
    r"too (?:many|much)|\bquota\b|\blimit|exceed|throttl|\brate\b|frequen|flood|slow down"
    r"|\b(?:per|a|an|each) (?:second|minute|hour|day)\b|\b(?:daily|hourly)\b",
    re.ASCII | re.IGNORECASE,
)
#: of a size, a mailbox or the content: about this message or this recipient
_NO_RATE = re.compile(
    r"\bsize|\blarge|\bbig\b|octets|bytes|mailbox|\bfull\b|storage|over ?quota|\bhops?\b|received"
    r"|too (?:many|much) (?:recipients|links|urls|errors|lines|headers|spam)|\blength|\bscore\b",
    re.ASCII | re.IGNORECASE,
)
_NEEDS_LOGIN = re.compile(
    r"auth\w* (?:is )?(?:first|required|needed)|(?:not|must be|be) authenticated"
    r"|(?:requires?|need(?:s|ed)?(?: to)?|must|before|use|issue an?) (?:smtp )?auth(?!ori|or\b)"
    r"|log ?in first",
    re.ASCII | re.IGNORECASE,
)
_OUR_ADDRESS = re.compile(
    r"client host|blocked using|\b(?:rbl|dnsbl)\b|spamhaus|your (?:ip|host|server|network)\b"
    r"|(?:ip|host|server|client|network)\b.{0,60}"
    r"\b(?:blocked|banned|(?:black|block) ?list|reputation)",
    re.ASCII | re.IGNORECASE,
)


def hint(reply: Reply) -> Hint | None:
    """What the words of `reply` hint at; None if they say nothing about the route."""
    text = reply.text[:_LENGTH]
    if (status := reply.enhanced) is not None and str(status) in _CODES:
        return _CODES[str(status)]
    if _NEEDS_LOGIN.search(text):
        return _LOGIN
    if _RATE.search(text) and not _NO_RATE.search(text):
        return _TOO_MUCH
    return _BLOCKED if _OUR_ADDRESS.search(text) else None


#: of Exchange: a mailbox that has sent too much
_SUBMISSION = re.compile("submission", re.ASCII | re.IGNORECASE)
#: brackets and what is in them
_BRACKETS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]", re.ASCII)
#: what a word has in it that is an address, a number or the name of a host
_VARIABLE = re.compile(r"[0-9@#]|[a-z-]\.[a-z-]++\.[a-z-]", re.ASCII)
#: characters of a local part, by which it ends before or behind them
_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def is_about_mailbox(status: EnhancedStatus | None, text: str = "") -> bool:
    """True of 5.1.0 to 5.1.6, 5.1.10 and X.2.x: the recipient, whoever else gets the same.

    The `text` of a reply may say that X.2.x is about our own mailbox.
    """
    if status is None:
        return False
    if status.subject == 2:
        return not _SUBMISSION.search(text)
    return status.klass == 5 and status.subject == 1 and status.detail in (*range(7), 10)


def alike(said: str, *addresses: str) -> str:
    """What is left of a reply when it lacks addresses, numbers and names of servers.

    Two replies mean the same if that is equal. `said` is code and text; the `addresses` are those
    of the mail transaction, which stand in many replies without brackets.
    """
    if said[:1] == "4":
        return PUT_OFF
    text = ascii_lower(said[4:_LENGTH])
    for address in addresses:
        local, _, domain = ascii_lower(address).rpartition("@")
        if domain:
            text = text.replace(domain, "#")
        if local:
            text = _without(text, local)
    words = ascii_split(_BRACKETS.sub("#", text))
    return " ".join([said[:3], *("#" if _VARIABLE.search(word) else word for word in words)])


def _without(text: str, local: str) -> str:
    """`text` with a # in place of `local`, where that is not a part of a longer word."""
    before, *others = text.split(local)
    for behind in others:
        alone = before[-1:] not in _LOCAL and behind[:1] not in _LOCAL - {"."}
        before += ("#" if alone else local) + behind
    return before
