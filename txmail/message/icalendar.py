"""What a message has to know of a calendar in it (iCalendar, RFC 5545)."""

from __future__ import annotations

import re

from ..common.ascii_text import ascii_upper
from ..exceptions import InvalidMessage

_FLAGS = re.IGNORECASE | re.MULTILINE | re.ASCII
_METHOD = re.compile(r"^METHOD(?:;[^:\n]*+)?:([A-Za-z0-9-]{1,60})[ \t]*+$", _FLAGS)
#: Where the first component of a calendar begins, and a fold of its lines (RFC 5545 section 3.1).
_COMPONENT = re.compile(r"^BEGIN:(?!VCALENDAR)", _FLAGS)
_FOLD = re.compile(r"\n[ \t]", re.ASCII)


def calendar_text(octets: bytes) -> str:
    """The text of a calendar. Raises `InvalidMessage` if `octets` are not UTF-8."""
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError:
        problem = "octets that are not UTF-8; an Attachment can say their charset"
        raise InvalidMessage(problem, field="calendar") from None


def calendar_method(calendar: str) -> str:
    """The METHOD of a calendar, such as ``REQUEST`` (RFC 5546 section 1.4); empty without one.

    Only the properties in front of the first component count.
    """
    head = _COMPONENT.split(calendar.replace("\r\n", "\n"), 1)[0]
    found = _METHOD.search(_FOLD.sub("", head))
    return ascii_upper(found[1]) if found else ""
