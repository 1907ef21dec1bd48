"""Mailers: what an application holds."""

from .dummy import DummyMailer
from .mailer import Mailer, mailer_from_settings

__all__ = ["DummyMailer", "Mailer", "mailer_from_settings"]
