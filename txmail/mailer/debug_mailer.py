"""`DebugMailer`: writes mail into a folder instead of sending it, for development."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Self

from ..budget import COMMIT_TIMEOUT
from ..config.settings import Settings
from ..events import Events
from ..exceptions import ConfigurationError, TransportError
from ..transports.local.folder import FileTransport
from ..types import TransactionManager
from .mailer import Mailer


class DebugMailer(Mailer):
    """A mailer that writes mail to ``.eml`` files in `top_level_directory` at the commit.

    It writes enqueued mail there, too, so that you need no worker to look at it. In all else it is
    a `Mailer` with the file transport: it checks and renders messages, and mail of a transaction
    that rolls back is not written.
    """

    needs_worker = False

    def __init__(
        self,
        top_level_directory: str | os.PathLike[str],
        *,
        transaction_manager: TransactionManager | None = None,
        default_sender: str | None = None,
        transient: bool = False,
        commit_timeout: float = COMMIT_TIMEOUT,
        events: Events | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        """Make the folder, with mode 0700, if it is missing. For the options see `Mailer`.

        Raises `ConfigurationError` if the folder cannot be made or written.
        """
        transport = FileTransport(top_level_directory)
        try:
            transport.open().close()
        except TransportError as error:
            raise ConfigurationError(str(error), field="top_level_directory") from error
        super().__init__(
            transport,
            transaction_manager=transaction_manager,
            default_sender=default_sender,
            transient=transient,
            commit_timeout=commit_timeout,
            events=events,
            html_to_text=html_to_text,
        )
        self._queued = self._direct

    @classmethod
    def _from_settings(cls, settings: Settings) -> Self:
        if settings.top_level_directory is None:
            raise ConfigurationError("a folder for the mail is needed", field="top_level_directory")
        return cls(
            settings.top_level_directory,
            default_sender=settings.default_sender,
            transient=settings.transient,
            commit_timeout=settings.commit_timeout,
            html_to_text=settings.html_to_text,
        )
