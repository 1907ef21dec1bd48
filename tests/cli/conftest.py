"""What tests of the commands need."""

from __future__ import annotations

import pytest

from txmail.cli import main


@pytest.fixture
def command(capsys):
    """Run ``txmail`` here; what it returned and said."""

    def run(*arguments):
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run
