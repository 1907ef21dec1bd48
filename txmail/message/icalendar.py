"""The method and the text of a calendar in a message (iCalendar, RFC 5545)."""

from __future__ import annotations

import re

from ..common.ascii_text import ascii_upper
from ..exceptions import InvalidMessage

_FLAGS = re.IGNORECASE | re.MULTILINE | re.ASCII
_METHOD = re.compile(r"^METHOD(?:;[^:\n]*+)?:([A-Za-z0-9-]{1,60})[ \t]*+$", _FLAGS)
#: The beginning of the first component, and a fold of a line (RFC 5545 section 3.1).
_COMPONENT = re.compile(r"^BEGIN:(?!VCALENDAR)", _FLAGS)
_FOLD = re.compile(r"\n[ \t]", re.ASCII)


def calendar_text(octets: bytes) -> str:
    """The text of a calendar. Raises `InvalidMessage` if `octets` are not UTF-8."""
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError:
        problem = "the octets are not UTF-8; use an Attachment, which names their charset"
        raise InvalidMessage(problem, field="calendar") from None


def calendar_method(calendar: str) -> str:
    """The METHOD of a calendar, such as ``REQUEST`` (RFC 5546 section 1.4); empty without one.

    Only the properties in front of the first component count.
    """
    head = _COMPONENT.split(calendar.replace("\r\n", "\n"), 1)[0]
    found = _METHOD.search(_FOLD.sub("", head))
    return ascii_upper(found[1]) if found else ""
