"""The digest of a content: written with the content, and compared before it is sent.

Disks, memory and people change octets, and databases do not notice. Processors have instructions
for SHA-256, so a content of 10 KB takes some 10 microseconds. PostgreSQL can compare, too:
``digest = sha256(content)``.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..exceptions import FieldError

#: The reason for a content that has changed since it was written.
DAMAGED = "the content is damaged"
#: The reason for a content that was blanked, as retention does.
BLANKED = "the content has been removed from the queue"


class DamagedContent(FieldError):
    """A content that must not be sent: it has changed since it was written."""


def digest_of(content: bytes) -> bytes:
    """The digest of `content`, 32 octets."""
    return hashlib.sha256(content, usedforsecurity=False).digest()


def checked(content: Any, digest: Any) -> bytes:
    """`content`, if it is what was written with `digest`. Raises `FieldError` if it is not.

    A content without a digest was written before there were digests, and is believed. A blanked
    content has no digest either, but is empty.
    """
    # psycopg2 returns octets as a memoryview.
    content, digest = (v.tobytes() if isinstance(v, memoryview) else v for v in (content, digest))
    if digest is None and content == b"":
        raise DamagedContent(BLANKED)
    if not isinstance(content, bytes):
        raise FieldError("its content is not octets")
    if digest is not None and digest != digest_of(content):
        raise DamagedContent(DAMAGED)
    return content
