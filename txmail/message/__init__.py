"""What an application holds: `Message`, `Attachment`, `Template`; `to_envelope` renders each.

Begin with `message` and `render`. `mime` writes octets, `stdlib` reads messages of the standard
library, `templates` fills in fields.
"""

from .attachment import Attachment
from .message import Message
from .templates.template import Template
from .to_envelope import to_envelope

__all__ = ["Attachment", "Message", "Template", "to_envelope"]
