"""A text part for messages that have HTML only, by inscriptis (extra ``html``).

With the setting ``mail.html_to_text = yes`` each `Message` without a `body` gets a text part.
inscriptis separates blocks, lays out lists and tables, and writes the address after each link. The
message itself does not change. If inscriptis cannot read the HTML, `send()` raises
`InvalidMessage`. HTML without text, such as a single image, gets no text part. libxml2 stops at
elements that are nested hundreds deep: the text ends there.
"""

from __future__ import annotations

from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig
from zope.interface import implementer

from ..interfaces import IHtmlToText


@implementer(IHtmlToText)
class HtmlToText:
    """HTML to text. See `IHtmlToText`."""

    def __call__(self, html: str) -> str:
        """See `IHtmlToText`."""
        config = ParserConfig(css=CSS_PROFILES["strict"], display_links=True)
        lines = get_text(html, config).split("\n")
        return "\n".join([line.rstrip() for line in lines]).strip("\n")
