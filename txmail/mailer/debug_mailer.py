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
    """A mailer whose mail ends as ``.eml`` files in `top_level_directory`, when the commit does.

    What is enqueued is written there, too: no worker is needed to look at it. It is a `Mailer` over
    the file transport in everything else: messages are checked and rendered, and what is rolled
    back is not there.
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
        """The folder is made, mode 0700, if it is missing. Options are those of `Mailer`.

        Raises `ConfigurationError` if it cannot be made or written to.
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
            raise ConfigurationError(
                "the folder that mail is written to is needed", field="top_level_directory"
            )
        return cls(
            settings.top_level_directory,
            default_sender=settings.default_sender,
            transient=settings.transient,
            commit_timeout=settings.commit_timeout,
            html_to_text=settings.html_to_text,
        )
