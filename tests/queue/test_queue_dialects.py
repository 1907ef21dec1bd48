"""What differs between kinds of database stands behind the backend, in `txmail.queue.database`."""

import ast
import re
from pathlib import Path

import pytest

import txmail

PACKAGE = Path(txmail.__file__).parent
#: Names of databases and of their drivers.
NAMES = re.compile(r"sqlite|postgres|psycopg|pysqlite|asyncpg|mysql|mariadb|oracle", re.IGNORECASE)
#: The files outside that may name a database, and why.
ALLOWED = {
    "queue/schema.py": "arguments of SQLAlchemy, which other kinds of database ignore",
    "queue/migrations/versions/v0001_initial.py": "the same, and never changed again",
    "queue/migrations/versions/v0002_workers.py": "the same",
    "queue/migrations/versions/v0003_same_store.py": "the same",
    "interfaces.py": "an example in the description of an attribute",
    "config/queue.py": "the file that `queue_path` of pyramid_mailer becomes",
    "cli/settings.py": "an example in the help of --queue-url",
    "cli/db.py": "help",
    "cli/doctor.py": "help",
    "cli/worker.py": "help",
    "cli/demo": "the application of the demonstration, which has a database of its own",
}


def is_docstring(node, parents):
    return isinstance(parents.get(node), ast.Expr)


def names_in(path):
    """The names of databases in the code of a file, comments and docstrings apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        texts = []
        match node:
            case ast.Constant(value=str(text)) if not is_docstring(node, parents):
                texts = [text]
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                texts = [name]
            case ast.alias(name=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                texts = [name]
            case ast.ImportFrom(module=str(module)):
                texts = [module]
        for text in texts:
            for found in NAMES.findall(text):
                yield node.lineno, found


FILES = {
    str(path.relative_to(PACKAGE)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if PACKAGE / "queue" / "database" not in path.parents
}


def reason(name):
    return next((ALLOWED[key] for key in ALLOWED if name == key or name.startswith(f"{key}/")), "")


@pytest.mark.parametrize("name", [name for name in FILES if not reason(name)])
def test_no_file_outside_names_a_database(name):
    assert list(names_in(FILES[name])) == [], "put it behind txmail.queue.database.backend"


@pytest.mark.parametrize("allowed", ALLOWED)
def test_each_exception_is_needed(allowed):
    files = [FILES[name] for name in FILES if name == allowed or name.startswith(f"{allowed}/")]
    assert any(list(names_in(path)) for path in files)
