"""Reads a header value with parameters, such as ``text/csv; charset=utf-8``."""

from __future__ import annotations

import re

from ...common.ascii_text import ascii_lower, ascii_strip
from ...exceptions import BadHeaders
from .header_check import check_value

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105
_VALUE = re.compile(rf"\s*({_TOKEN}(?:/{_TOKEN})?)\s*", re.ASCII)
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")\s*', re.ASCII)
_PAIR = re.compile(r"\\(.)", re.ASCII)
#: The most characters of the name of a parameter.
_LONGEST_NAME = 60


def parse_parameters(text: str, field: str) -> tuple[str, dict[str, str]]:
    """The value and the parameters of `text` (RFC 2045 section 5.1). Names are in lower case.

    Raises `BadHeaders`, which names `field`, for any other text.
    """
    check_value(text, field, parameter=True)
    found = _VALUE.match(text)
    parameters: dict[str, str] = {}
    position = found.end() if found else 0
    while found and position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None:
            break
        name = ascii_lower(found[1])
        if "*" in name or name in parameters or len(name) > _LONGEST_NAME:
            raise BadHeaders(
                "a parameter name is invalid, too long or used twice", field=field, value=text
            )
        parameters[name] = found[2] or _PAIR.sub(r"\1", found[3] or "")
        position = found.end()
    if found is None:
        raise BadHeaders(
            "not a value with parameters, such as text/csv; charset=utf-8", field=field, value=text
        )
    value = text[: text.find(";")] if ";" in text else text
    return ascii_strip(value), parameters
