"""Messages, and how they become envelopes."""

from .attachment import Attachment
from .message import Message
from .prepare import to_envelope
from .template import Template

__all__ = ["Attachment", "Message", "Template", "to_envelope"]
