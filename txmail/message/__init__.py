"""Messages, and how they become envelopes."""

from .attachment import Attachment
from .message import Message
from .prepare import to_envelope

__all__ = ["Attachment", "Message", "to_envelope"]
