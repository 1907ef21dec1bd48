"""Mail into a folder instead of a mail server, for development.

For Pyramid, ``config.include("txmail.debug")`` in place of ``config.include("txmail")`` gives
``request.mailer`` a `DebugMailer`. The folder is the setting ``mail.top_level_directory``.
"""

from __future__ import annotations

from typing import Any

from .mailer import DebugMailer

__all__ = ["DebugMailer", "includeme"]


def includeme(config: Any) -> None:
    """For Pyramid: register a `DebugMailer`. Raises `ConfigurationError` at start-up.

    ``mail.top_level_directory`` is needed, ``mail.default_sender`` and others that mean something
    here are heeded; the rest are checked.
    """
    from .config.settings import PREFIX
    from .integrations.pyramid import set_mailer

    prefix = (config.registry.settings or {}).get("pyramid_mailer.prefix", PREFIX)
    set_mailer(config, DebugMailer.from_settings(config.registry.settings, prefix))
