"""Pyramid: ``config.include("txmail")``, then ``request.mailer``.

The mailer has the deployment settings under ``mail.``, or under the prefix that the setting
``pyramid_mailer.prefix`` names. It is registered as the `IMailer` utility. With pyramid_tm
``request.mailer`` is bound to ``request.tm``, so that mail leaves with the transaction of the
request. With ``mail.queue_url = session:`` the queue is in the application's database, and the
mailer writes it through ``request.dbsession``, the name of the session in Pyramid's template.

If requests have no transaction manager, nobody would commit their mail, and it would not leave. A
line in the log says so when the application is made.
"""

from __future__ import annotations

from typing import Any

from pyramid.events import ApplicationCreated
from pyramid.interfaces import IRequestExtensions

from ..common.logs import quiet_logger
from ..config.settings import PREFIX
from ..interfaces import IMailer
from ..mailer import Mailer

log = quiet_logger("txmail")


def includeme(config: Any) -> None:
    """Register the mailer of the settings. Raises `ConfigurationError` at start-up."""
    # Not in a variable: a traceback would show it with the password (see `txmail.config`).
    prefix = (config.registry.settings or {}).get("pyramid_mailer.prefix", PREFIX)
    set_mailer(config, Mailer.from_settings(config.registry.settings, prefix))
    config.add_subscriber(_look_for_manager, ApplicationCreated)


def _look_for_manager(event: Any) -> None:
    """Log a warning if requests have no ``request.tm``."""
    registry = event.app.registry
    extensions = registry.queryUtility(IRequestExtensions)
    if extensions is not None and "tm" in {*extensions.descriptors, *extensions.methods}:
        return
    log.warning(
        "requests have no transaction manager (request.tm): mail of request.mailer waits for a "
        'commit that nobody makes; add config.include("pyramid_tm"), or call '
        "transaction.commit() at the end of each request"
    )


def set_mailer(config: Any, mailer: Mailer) -> None:
    """Make `mailer` the mailer of the application."""
    config.registry.registerUtility(mailer, IMailer)
    config.add_request_method(get_mailer, "mailer", reify=True)


def get_mailer(request: Any) -> Mailer:
    """The mailer of a request, bound to its transaction manager, or of a registry."""
    registry = getattr(request, "registry", None)
    mailer: Mailer = (request if registry is None else registry).getUtility(IMailer)
    manager = getattr(request, "tm", None)
    if manager is None:
        return mailer
    if getattr(mailer.queue, "in_session", False) and hasattr(request, "dbsession"):
        return mailer.bind(transaction_manager=manager, session=request.dbsession)
    return mailer.bind(transaction_manager=manager)
