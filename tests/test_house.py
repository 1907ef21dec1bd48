"""The order of the house: how large, how many, and who may name whom. Circles: `lint-imports`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import txmail

PACKAGE = Path(txmail.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: lines of a file
LONGEST = 450
#: modules that lie directly in the package, beside ``__init__`` and ``__main__``
MOST = 14
#: Files that are longer, each with the reason.
LONGER = {
    # The dispatcher plans, writes and applies a round in one class; it is to be cut into a plan
    # (a value) and its two uses.
    "worker/dispatcher.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_no_file_is_too_long_to_be_read():
    long = {name_of(p) for p in FILES if len(p.read_text("utf-8").splitlines()) > LONGEST}
    assert long == LONGER


def test_few_modules_lie_outside_of_packages():
    loose = [p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")]
    assert len(loose) <= MOST, loose


def test_modules_of_the_package_do_not_import_from_its_front_door():
    """Kind: a circle through ``__init__``, which imports nearly everything."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "txmail":
                found.append(f"{name_of(path)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.level and node.module is None:
                depth = len(path.relative_to(PACKAGE).parts)
                if node.level == depth and path.name != "__init__.py":
                    names = {alias.name for alias in node.names}
                    modules = {p.stem for p in PACKAGE.iterdir()}
                    found += [f"{name_of(path)}: {name}" for name in sorted(names - modules)]
    assert found == []


def files_with(pattern: str) -> set[str]:
    return {name_of(path) for path in FILES if re.search(pattern, path.read_text("utf-8"))}


def test_private_names_of_libraries_are_in_one_file_each():
    """Kind: a library that renames what is its own; its tests are not ours."""
    private = r"\btransaction\._[a-z]+|\bmanager\._resources"
    assert files_with(private) == {"common/transaction_internals.py"}
    private = r"zope\.sqlalchemy\.datamanager|_SESSION_STATE"
    assert files_with(private) == {"integrations/zope_sqlalchemy_internals.py"}
