"""The Message-ID of a message (RFC 5322 section 3.6.4)."""

from __future__ import annotations

import os
import re

from ...address import Mailbox
from ...exceptions import BadHeaders

_MESSAGE_ID = re.compile(
    r"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+|\[[!-Z^-~]*\])>",
    re.ASCII,
)
_MAX_MESSAGE_ID = 250


def new_message_id(author: Mailbox) -> str:
    """A new, random Message-ID in the domain of `author`. It shows nothing of this host."""
    return f"<{os.urandom(16).hex()}@{author.address.domain}>"


def message_id_of(given: str | None, author: Mailbox) -> str:
    """The Message-ID `given`, or a new one in the domain of `author` if it is None.

    Raises `BadHeaders` if `given` is no msg-id.
    """
    if given is None:
        return new_message_id(author)
    if len(given) > _MAX_MESSAGE_ID or "=?" in given or _MESSAGE_ID.fullmatch(given) is None:
        raise BadHeaders("not a Message-ID, such as <left@right>", field="message_id", value=given)
    return given
