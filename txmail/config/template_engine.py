"""The default engine of templates: Jinja2, loaded when a template needs it."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from ..exceptions import ConfigurationError
from ..interfaces import ITemplateEngine


@cache
def template_engine() -> ITemplateEngine:
    """The default engine. Raises `ConfigurationError` if Jinja2 is not installed."""
    try:
        module = importlib.import_module("txmail.integrations.jinja2")
    except ImportError as error:
        problem = "it needs Jinja2: pip install 'txmail[templates]'"
        raise ConfigurationError(problem, field="Template") from error
    return cast("ITemplateEngine", module.Jinja2Engine())
