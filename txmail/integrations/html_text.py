"""Plain text for messages that have HTML only, by inscriptis (extra ``html``).

The setting ``mail.html_to_text = yes`` has every `Message` without a `body` get a text part that
reads like its HTML: blocks are parted, lists and tables laid out, links followed by their address.
The message itself is not written to. What inscriptis cannot read is an `InvalidMessage` at
`send()`, and HTML without any text in it, a single image perhaps, goes alone. Where elements are
nested hundreds deep, libxml2 reads no further and the text ends.
"""

from __future__ import annotations

from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig
from zope.interface import implementer

from ..interfaces import IHtmlToText


@implementer(IHtmlToText)
class HtmlToText:
    """Makes text of HTML. See `IHtmlToText`."""

    def __call__(self, html: str) -> str:
        """See `IHtmlToText`."""
        config = ParserConfig(css=CSS_PROFILES["strict"], display_links=True)
        lines = get_text(html, config).split("\n")
        return "\n".join([line.rstrip() for line in lines]).strip("\n")
