"""What tests of the queue need: a folder and a file for it, databases that are closed."""

from __future__ import annotations

import pytest

from txmail.queue.database.database import Database


@pytest.fixture
def folder(tmp_path):
    """A folder that is ours alone."""
    folder = tmp_path / "queue"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def file(folder):
    """Where a queue in SQLite may be."""
    return folder / "mail.db"


@pytest.fixture
def opened():
    """Make databases of a URL; they are closed at the end."""
    made = []

    def open_(url, **options):
        made.append(Database.from_url(url, **options))
        return made[-1]

    yield open_
    for database in made:
        database.close()
