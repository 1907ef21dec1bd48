"""Message content as DATA carries it (RFC 5321 section 4.5.2)."""

from __future__ import annotations

#: The line that ends the content. Its last octet is the point of no return.
FINAL_DOT = b".\r\n"


def dot_stuffed(content: bytes) -> list[bytes]:
    """Buffers to write for canonical `content`: dots doubled at line starts, the final dot last.

    Content in which no line starts with a dot is not copied.
    """
    if b"\n." in content:
        content = content.replace(b"\n.", b"\n..")
    if content.startswith(b"."):
        content = b"." + content
    return [content, FINAL_DOT]
