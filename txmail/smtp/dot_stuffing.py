"""Doubles dots at the beginning of lines, as DATA needs it (RFC 5321 section 4.5.2)."""

from __future__ import annotations

#: The line that ends the content. Its last octet is the point of no return.
FINAL_DOT = b".\r\n"


def dot_stuffed(content: bytes) -> list[bytes]:
    """The buffers to write for canonical `content`, with the final dot last.

    Content in which no line begins with a dot is not copied.
    """
    if b"\n." in content:
        content = content.replace(b"\n.", b"\n..")
    if content.startswith(b"."):
        content = b"." + content
    return [content, FINAL_DOT]
