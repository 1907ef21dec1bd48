"""Regular expressions of the package: linear on any input, and ASCII on the text of a protocol.

A pattern such as ``X*Y`` under `search` begins anew at each of n characters, and reads the rest
each time. Nothing but its form says so, and so all of them are tried here, with texts made of what
each of them looks for.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import pkgutil
import re
from functools import cache
from pathlib import Path
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

import pytest
from regex_steps import steps_of

import txmail
from txmail import Message
from txmail.address import parse_address
from txmail.exceptions import AddressError, BadHeaders, ConfigurationError
from txmail.reply import Reply
from txmail.smtp.extensions import Extensions

ROOT = Path(txmail.__file__).parent
METHODS = {"match", "fullmatch", "search", "finditer", "findall", "sub", "split"}
#: Not part of what is imported on every machine, or no module of ours.
LEFT_OUT = ("txmail.queue.migrations", "txmail.__main__")


def modules():
    for found in pkgutil.walk_packages([str(ROOT)], "txmail."):
        if not found.name.startswith(LEFT_OUT):
            yield importlib.import_module(found.name)


@cache
def trees():
    paths = sorted(ROOT.rglob("*.py"))
    return [(p.relative_to(ROOT), ast.parse(p.read_text(encoding="utf-8"))) for p in paths]


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


@pytest.mark.parametrize("most", [2, pytest.param(9, marks=pytest.mark.sweep)])
def test_s2_each_pattern_takes_linear_steps(most):
    """Stands for every expression that begins again at each character of a long run."""
    found = list(used())
    assert len(found) > 50
    for name, pattern, method in found:
        assert_linear(pattern, method, most, f"{name}.{method}")


@pytest.mark.representative(every=3)
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


def test_s8_each_pattern_of_text_is_ascii():
    """Stands for letters that another becomes in upper or lower case, and digits of other scripts.

    A pattern is compiled at the head of its module, where this test finds it.
    """
    wrong = []
    for module in modules():
        for name, value in vars(module).items():
            is_text = isinstance(value, re.Pattern) and isinstance(value.pattern, str)
            if is_text and not value.flags & re.ASCII:
                wrong.append(f"{module.__name__}.{name}")
    assert not wrong


def test_s8_no_pattern_is_compiled_elsewhere():
    """The same for patterns that a call names: `re.sub("...")` has no place to say ASCII."""
    wrong = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.func.attr not in ("compile", "escape")
            ):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong


FOLDED = {"s": "\u017f", "i": "\u0131", "k": "\u212a", "I": "\u0130"}


def with_look_alike(text):
    """`text` with each letter in turn that another becomes in upper or lower case."""
    for place, letter in enumerate(text):
        for plain, other in FOLDED.items():
            if letter.lower() == plain.lower():
                yield text[:place] + other + text[place + 1 :]


@pytest.mark.parametrize(
    "address", ["a@[IPv6:::1]", "a@kiss.example", "a@[IPV6:fe80::1]", "a@mail.is"]
)
def test_s8_an_address_with_a_letter_that_becomes_another_is_refused(address):
    """The same seen from outside, for addresses."""
    domain = parse_address(address).domain
    for other in with_look_alike(address.partition("@")[2]):
        with contextlib.suppress(AddressError):
            # A dotless i is a letter of domains too, and of others.
            assert parse_address(f"a@{other}").domain not in (domain, other)


@pytest.mark.parametrize(
    "url",
    [
        "smtps://mail.kiss.example",
        "smtp://localhost?pipelining=yes",
        "smtp://localhost?chunking=false",
        "smtp://[::1]:25",
        "console:",
        "smtp://kiss.example?tls=implicit",
    ],
)
def test_s8_a_url_with_a_letter_that_becomes_another_is_refused(url):
    """The same for URLs; a host may have such letters only as IDNA has them."""
    known = str(txmail.transport_from_url(url))
    for other in with_look_alike(url):
        try:
            assert str(txmail.transport_from_url(other)) != known
            assert "\u0131" in other
        except ConfigurationError:
            pass


def test_s8_protocol_words_are_of_ascii():
    """The same for what a server says, a calendar, a URI of a list, and numbers."""
    offer = Reply(250, ("x", "AUTH\u3000PLAIN", "\u017fTARTTLS", "P\u0131PELINING", "SIZE \u0663"))
    found = Extensions.from_ehlo(offer)
    assert (found.starttls, found.pipelining, found.auth) == (False, False, frozenset())
    assert found.size_limit is None
    given = {"subject": "x", "recipients": ["a@b.c"], "body": "x", "sender": "a@b.c"}
    text = "BEGIN:VCALENDAR\r\nMETHOD:REQUE\u017fT\r\nEND:VCALENDAR\r\n"
    content = Message(**given, calendar=text).to_envelope().content
    assert b"method=" not in content
    for uri in ("http\u017f://x.y/", "mai\u0131to:a@b.c", "\u212attp://x"):
        with pytest.raises(BadHeaders):
            Message(**given, list_unsubscribe=uri).to_envelope()
    for value in ("\u0663", "\uff12\uff15"):
        with pytest.raises(ConfigurationError):
            txmail.mailer_from_settings({"mail.host": "localhost", "mail.port": value})
