"""Test doubles for applications that send mail.

For Pyramid, ``config.include("txmail.testing")`` in place of ``config.include("txmail")`` gives
``request.mailer`` a `DummyMailer`.
"""

from __future__ import annotations

from typing import Any

from ..mailer import DummyMailer
from ._records import Connection, Received
from ._script import CLOSE, HANG, NO_REPLY, RESET, Callback, then
from .server import ScriptedServer

__all__ = [
    "CLOSE",
    "HANG",
    "NO_REPLY",
    "RESET",
    "Callback",
    "Connection",
    "DummyMailer",
    "Received",
    "ScriptedServer",
    "includeme",
    "then",
]


def includeme(config: Any) -> None:
    """For Pyramid: register a `DummyMailer` with the application's own mail settings.

    The double follows ``mail.default_sender`` and ``mail.dummy_transactional``, and checks the
    other settings.
    """
    from ..config.settings import PREFIX
    from ..integrations.pyramid import set_mailer

    prefix = (config.registry.settings or {}).get("pyramid_mailer.prefix", PREFIX)
    set_mailer(config, DummyMailer.from_settings(config.registry.settings, prefix))
