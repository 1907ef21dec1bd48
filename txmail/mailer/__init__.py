"""Mailers: what an application holds."""

from .debug_mailer import DebugMailer
from .dummy import DummyMailer
from .mailer import Mailer, mailer_from_settings

__all__ = ["DebugMailer", "DummyMailer", "Mailer", "mailer_from_settings"]
