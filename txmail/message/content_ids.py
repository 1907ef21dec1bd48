"""The content ids that HTML refers to: they name the parts that it shows (RFC 2392)."""

from __future__ import annotations

import html
import re
from urllib.parse import unquote

#: Stands for unknown text. A content id next to it is unknown too.
UNKNOWN = "\0"

# A URL stands in an attribute, with or without quotes, or in CSS: each ends it in its own way.
_URL = re.compile(r"(?<![A-Za-z0-9+.\0-])cid:([^\s\"<>()]++)", re.IGNORECASE | re.ASCII)


def content_ids(text: str) -> frozenset[str]:
    """The content ids, decoded, of the ``cid:`` URLs in the HTML `text`."""
    found = set()
    for url in _URL.findall(text):
        # An apostrophe may end the URL, or be part of it.
        for piece in {url, url.partition("'")[0]}:
            found.add(unquote(html.unescape(piece)).rstrip(",;"))
    return frozenset(found)
