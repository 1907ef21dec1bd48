"""The public face stays as it is: ``public_face.txt`` has every name of it.

A change of that file is a change for every application. To write it anew::

    PYTHONPATH=tests/support python tests/support/public_face.py > tests/public_face.txt
"""

from __future__ import annotations

from pathlib import Path

import pytest

for _needed in ("sqlalchemy", "jinja2", "pyramid", "prometheus_client", "inscriptis", "ZODB"):
    pytest.importorskip(_needed)

import public_face  # noqa: E402

FROZEN = Path(__file__).with_name("public_face.txt")


def test_no_name_parameter_setting_or_command_has_changed():
    assert public_face.lines() == FROZEN.read_text().splitlines()
