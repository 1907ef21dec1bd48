"""The digest of a content: written with it, and compared before it is sent.

Disks, memory and people change octets that SQLite and PostgreSQL would not miss. SHA-256, which
processors have instructions for, so that a content of 10 KB takes some 10 microseconds; and a
server can compare, too: ``digest = sha256(content)`` in PostgreSQL.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..exceptions import FieldError

#: What is said of a content that is not what was written.
DAMAGED = "the content is damaged"
#: What is said of one that was blanked, as retention does.
BLANKED = "the content has been removed from the queue"


class DamagedContent(FieldError):
    """A content that must not be sent: it is not what was written."""


def digest_of(content: bytes) -> bytes:
    """The digest of `content`, 32 octets."""
    return hashlib.sha256(content, usedforsecurity=False).digest()


def checked(content: Any, digest: Any) -> bytes:
    """`content`, if it is what was written with `digest`. Raises `FieldError` if it is not.

    What was written before there were digests has none, and is believed; but for a content that
    was blanked, which has none either and is empty.
    """
    # Octets as psycopg2 has them.
    content, digest = (v.tobytes() if isinstance(v, memoryview) else v for v in (content, digest))
    if digest is None and content == b"":
        raise DamagedContent(BLANKED)
    if not isinstance(content, bytes):
        raise FieldError("its content is not octets")
    if digest is not None and digest != digest_of(content):
        raise DamagedContent(DAMAGED)
    return content
