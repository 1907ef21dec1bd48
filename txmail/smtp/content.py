"""Message content as DATA carries it (RFC 5321 section 4.5.2)."""

from __future__ import annotations

#: The line that ends the content. Its last octet is the point of no return.
FINAL_DOT = b".\r\n"


def is_canonical(content: bytes) -> bool:
    """True if all line ends are CRLF, the last line has one, and there is no NUL.

    The gate has refused anything else long before. It is looked at again here because of what
    depends on it: a bare LF or CR beside a dot ends the message for some servers and not for
    others, and what follows would be read as commands.
    """
    pairs = content.count(b"\r\n")
    return (
        content.endswith(b"\r\n")
        and content.count(b"\n") == pairs == content.count(b"\r")
        and b"\0" not in content
    )


def dot_stuffed(content: bytes) -> list[bytes]:
    """Buffers to write for canonical `content`: dots doubled at line starts, the final dot last.

    Content in which no line starts with a dot is not copied.
    """
    if b"\n." in content:
        content = content.replace(b"\n.", b"\n..")
    if content.startswith(b"."):
        content = b"." + content
    return [content, FINAL_DOT]
