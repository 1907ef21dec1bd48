"""Regular expressions of the package: linear on any input, and ASCII on the text of a protocol.

A pattern such as ``X*Y`` under `search` begins anew at each of n characters, and reads the rest
each time. Nothing but its form says so, and so all of them are tried here, with texts made of what
each of them looks for.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import pkgutil
import re
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

import pytest
from regex_steps import steps_of

import txmail

ROOT = Path(txmail.__file__).parent
METHODS = {"match", "fullmatch", "search", "finditer", "findall", "sub", "split"}
#: Not part of what is imported on every machine, or no module of ours.
LEFT_OUT = ("txmail.queue.migrations", "txmail.__main__")


def modules():
    for found in pkgutil.walk_packages([str(ROOT)], "txmail."):
        if not found.name.startswith(LEFT_OUT):
            yield importlib.import_module(found.name)


def trees():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def used():
    """Each pattern of the package, with the methods of it that are called anywhere."""
    seen = set()
    for module in modules():
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr not in METHODS:
                continue
            # (A if x else B).search(...) too
            for name in ast.walk(node.value):
                pattern = vars(module).get(name.id) if isinstance(name, ast.Name) else None
                if isinstance(pattern, re.Pattern) and (pattern, node.attr) not in seen:
                    seen.add((pattern, node.attr))
                    yield f"{module.__name__}.{name.id}", pattern, node.attr


def letters(pattern: re.Pattern) -> list[str]:
    """A few characters for each thing that `pattern` looks for, and one that it never does."""
    found: dict[str, None] = {}

    def walk(items):
        for code, argument in items:
            if code in (op.LITERAL, op.NOT_LITERAL):
                found[chr(argument)] = None
            elif code is op.IN:
                for kind, value in argument:
                    if kind is op.LITERAL:
                        found[chr(value)] = None
                    elif kind is op.RANGE:
                        found[chr(value[0])] = None
            elif code is op.SUBPATTERN:
                walk(argument[3])
            elif code is op.BRANCH:
                for branch in argument[1]:
                    walk(branch)
            elif code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
                walk(argument[2])
            elif code in (op.ASSERT, op.ASSERT_NOT):
                walk(argument[1])
            elif code is op.ATOMIC_GROUP:
                walk(argument)

    walk(_parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))
    interesting = [*' a0"\\=?*;:%<>\r\n', *found]
    return list(dict.fromkeys(letter for letter in interesting if letter in found or letter == " "))


def beginnings(pattern: re.Pattern) -> list[str]:
    """The literal text that `pattern` begins with, if any: nothing happens without it."""
    text = ""
    for code, argument in _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE):
        if code is not op.LITERAL:
            break
        text += chr(argument)
    return ["", text] if text else [""]


def attacks(pattern: re.Pattern, most: int):
    """Beginning, what is repeated, and end of texts that may take long."""
    few = letters(pattern)[:most]
    pumps = ["".join(pair) for size in (1, 2) for pair in itertools.product(few, repeat=size)]
    yield from itertools.product(beginnings(pattern), pumps, ("", "\x01"))


def assert_linear(pattern, method, most, name=""):
    for start, pump, end in attacks(pattern, most):
        small, large = (start + pump * (n // len(pump)) + end for n in (20, 40))
        if isinstance(pattern.pattern, bytes):
            small, large = small.encode("latin-1", "replace"), large.encode("latin-1", "replace")
        once = steps_of(pattern, method, small)
        assert steps_of(pattern, method, large) < 2.5 * once + 100, (name, start, pump, end)


@pytest.mark.parametrize("most", [3, pytest.param(9, marks=pytest.mark.sweep)])
def test_s2_each_pattern_takes_linear_steps(most):
    """Stands for every expression that begins again at each character of a long run."""
    found = list(used())
    assert len(found) > 50
    for name, pattern, method in found:
        assert_linear(pattern, method, most, f"{name}.{method}")


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r" *[^ ]+", "findall"),
        (r"[ \t]+\n", "sub"),
        (r"\s+$", "search"),
        (r"a.*?b", "findall"),
        (r"(?:a*)*b", "match"),
        (r'"[^x]*"x', "search"),
    ],
)
def test_s2_the_counter_sees_what_takes_the_square(pattern, method):
    """The instrument itself: patterns that are known to be slow are found to be."""
    with pytest.raises(AssertionError):
        assert_linear(re.compile(pattern), method, 6)
