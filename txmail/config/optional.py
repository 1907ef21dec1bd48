"""Modules of txmail that need a library: loaded when a setting asks for them."""

from __future__ import annotations

import importlib
from typing import Any

from ..exceptions import ConfigurationError


def queue_module(name: str, needed: str, prefix: str) -> Any:
    """The module `name` of txmail. Raises `ConfigurationError` if it cannot be imported.

    `needed` is the package that the module needs besides the extra ``queue``.
    """
    try:
        return importlib.import_module(f"txmail.{name}")
    except ImportError as error:
        raise ConfigurationError(
            f"it needs {needed}: pip install 'txmail[queue]' {needed}", field=f"{prefix}queue_url"
        ) from error
