"""The method of a calendar, such as REQUEST for an invitation (RFC 5546 section 1.4)."""

from __future__ import annotations

import re

from ...common.ascii_text import ascii_upper

_FLAGS = re.IGNORECASE | re.MULTILINE | re.ASCII
_METHOD = re.compile(r"^METHOD(?:;[^:\n]*+)?:([A-Za-z0-9-]{1,60})[ \t]*+$", _FLAGS)
#: Where the first component of a calendar begins, and a fold of its lines (RFC 5545 section 3.1).
_COMPONENT = re.compile(r"^BEGIN:(?!VCALENDAR)", _FLAGS)
_FOLD = re.compile(r"\n[ \t]", re.ASCII)


def method_of(calendar: str) -> str:
    """The METHOD of the calendar itself, in front of its first component; empty without one."""
    head = _COMPONENT.split(calendar.replace("\r\n", "\n"), 1)[0]
    found = _METHOD.search(_FOLD.sub("", head))
    return ascii_upper(found[1]) if found else ""
