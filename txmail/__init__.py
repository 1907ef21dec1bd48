"""txmail: mail that leaves if, and only if, the transaction commits.

The walk of one message: `Mailer.send` (``mailer/mailer.py``) calls `to_envelope` (``message/``),
which renders the message to its final octets, and hands the envelope to the `MailDataManager` of
the transaction (``datamanager.py``). When the transaction commits, a before-commit hook has
`DirectDelivery` (``delivery/direct.py``) open a session of the transport (``transports/``) and ask
the server about sender and recipients. The last vote sends the envelope: `Session`
(``smtp/session.py``) drives the conversation `Sending` (``smtp/sending.py``), which writes commands
into a `Protocol` (``smtp/protocol.py``); `Stream` (``smtp/stream.py``) carries the octets. What
became of each recipient comes back the same way, as an `Outcome` (``outcome.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from .config.template_engine import template_engine
from .datamanager import MailDataManager
from .envelope import Envelope
from .mailer import DummyMailer, Mailer, mailer_from_settings
from .message import Attachment, Message, Template
from .message.templates.default_engine import default_engine
from .outcome import Outcome
from .transports import transport_from_url

if TYPE_CHECKING:
    from .worker.options import WorkerOptions
    from .worker.worker import RunningWorker

__all__ = [
    "Attachment",
    "DummyMailer",
    "Envelope",
    "MailDataManager",
    "Mailer",
    "Message",
    "Outcome",
    "Template",
    "get_mailer",
    "includeme",
    "mailer_from_settings",
    "start_worker",
    "transport_from_url",
]

default_engine.register(template_engine)


def includeme(config: Any) -> None:
    """For Pyramid: ``config.include("txmail")``. See `txmail.integrations.pyramid`."""
    from .integrations import pyramid

    pyramid.includeme(config)


def get_mailer(request: object) -> Mailer:
    """The mailer of a Pyramid request or registry. See `txmail.integrations.pyramid`."""
    from .integrations import pyramid

    return pyramid.get_mailer(request)


def start_worker(mailer: Mailer, **options: Unpack[WorkerOptions]) -> RunningWorker:
    """Send what is in the queue of `mailer` from a thread of this process.

    See `txmail.worker.start_worker`. Its `stop()` ends it.
    """
    from .worker import start_worker

    return start_worker(mailer, **options)
