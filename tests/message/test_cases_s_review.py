"""Hostile input, and the honest input beside it that must pass."""

from __future__ import annotations

import datetime

import pytest

from txmail import Template
from txmail.exceptions import TemplateError

WHEN = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)


def written(format: str) -> str:
    source = "{{ when.strftime('" + format + "') }}"
    body = Template("x", source, sender="me@x.y").render({"when": WHEN}, ["a@b.c"]).body
    assert isinstance(body, str)
    return body


@pytest.mark.parametrize(
    "format", ["%-d.%-m.", "%_d", "%^a", "%#x", "%0d", "%-_d", "%^#B", "%-I:%M %p", "%Ey", "%Y年"]
)
def test_s3_flags_in_the_format_of_a_date_cost_nothing(format):
    """Stands for a bound that refuses what people use: a flag alone makes nothing larger."""
    assert written(format) == WHEN.strftime(format)


@pytest.mark.parametrize("format", ["%4Y", "%-4d", "%_10d", "%010d", "%^#99B", "%+5Y", "%:5z"])
def test_s3_a_width_in_the_format_of_a_date_is_refused_with_or_without_flags(format):
    """Stands for a few characters that ask for many."""
    with pytest.raises(TemplateError, match="no width"):
        written(format)
