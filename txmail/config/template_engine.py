"""The engine of templates that name none: Jinja2's, which is loaded when it is needed first."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from ..exceptions import ConfigurationError
from ..interfaces import ITemplateEngine


@cache
def template_engine() -> ITemplateEngine:
    """The engine of templates that name none. Raises `ConfigurationError` without its library."""
    try:
        module = importlib.import_module("txmail.integrations.jinja2")
    except ImportError as error:
        problem = "it needs Jinja2: pip install 'txmail[templates]'"
        raise ConfigurationError(problem, field="Template") from error
    return cast("ITemplateEngine", module.Jinja2Engine())
