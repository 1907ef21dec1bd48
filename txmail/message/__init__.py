"""Messages, and how they become envelopes."""

from .attachment import Attachment
from .message import Message
from .templates.template import Template
from .to_envelope import to_envelope

__all__ = ["Attachment", "Message", "Template", "to_envelope"]
