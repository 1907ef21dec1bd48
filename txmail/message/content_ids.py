"""What an HTML text shows of the parts beside it: the content ids that it calls (RFC 2392)."""

from __future__ import annotations

import html
import re
from urllib.parse import unquote

#: Stands for what is not known of a text: a content id beside it may be another one.
UNKNOWN = "\0"

# A scheme has no case. Where the URL ends depends on where it stands: in an attribute, with or
# without quotes, or in CSS.
_URL = re.compile(r"(?<![A-Za-z0-9+.\0-])cid:([^\s\"<>()]++)", re.IGNORECASE | re.ASCII)


def content_ids(text: str) -> frozenset[str]:
    """The content ids that the HTML `text` calls by ``cid:``, whole and decoded."""
    found = set()
    for url in _URL.findall(text):
        # An apostrophe may end the URL, or be part of it.
        for piece in {url, url.partition("'")[0]}:
            found.add(unquote(html.unescape(piece)).rstrip(",;"))
    return frozenset(found)
