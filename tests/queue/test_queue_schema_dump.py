"""The tables of the queue, written down: they change with a migration only.

``python tests/queue/test_queue_schema_dump.py`` writes the files anew. That migrations make the
same tables as `txmail.queue.schema.metadata` is seen in `test_queue_schema`.
"""

from pathlib import Path

import pytest

sa = pytest.importorskip("sqlalchemy")

from sqlalchemy.dialects import postgresql, sqlite  # noqa: E402
from sqlalchemy.schema import CreateIndex, CreateTable  # noqa: E402

from txmail.queue import schema  # noqa: E402

DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}


def dump(dialect):
    """The statements that make the tables, in the order of their names."""
    found = [f"-- version {schema.VERSION}"]
    for table in sorted(schema.metadata.tables.values(), key=lambda table: table.name):
        found.append(str(CreateTable(table).compile(dialect=dialect)))
        for index in sorted(table.indexes, key=lambda index: index.name):
            found.append(str(CreateIndex(index).compile(dialect=dialect)))
    lines = "\n".join(found).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def file_of(name):
    return Path(__file__).with_name(f"schema_{name}.sql")


@pytest.mark.parametrize("name", DIALECTS)
def test_the_tables_are_those_that_were_written_down(name):
    assert dump(DIALECTS[name]) == file_of(name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for name, dialect in DIALECTS.items():
        file_of(name).write_text(dump(dialect), encoding="utf-8")
