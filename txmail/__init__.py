"""txmail: mail that leaves if, and only if, the transaction commits.

Follow one message: `Mailer.send` (``mailer/mailer.py``) has `to_envelope` (``message/``) render it
to its final octets and puts the envelope into the one `MailDataManager` of the transaction
(``datamanager.py``). When the transaction commits, its before-commit hook has `DirectDelivery`
(``delivery/direct.py``) open a session of the transport (``transports/``) and ask the server about it;
in the last vote the envelope is sent: `Session` (``smtp/session.py``) drives the conversation
`Sending` (``smtp/sending.py``), which writes commands into a `Protocol` (``smtp/protocol.py``),
whose octets go through a `Stream` (``smtp/stream.py``), the only file with a socket. What became
of each recipient comes back the same way, as an `Outcome` (``envelope.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from .datamanager import MailDataManager
from .envelope import Envelope, Outcome
from .mailer import DummyMailer, Mailer, mailer_from_settings
from .message import Attachment, Message, Template
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
