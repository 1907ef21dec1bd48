"""How many steps a regular expression takes, counted by a matcher that is written in Python.

The matcher of `re` is written in C and counts nothing. `Steps` walks the same parsed pattern in the
same order, with the same backtracking, and counts each character that it looks at and each place
where it begins. `counted` puts it in the place of the patterns of the package, so that a test can
ask how much work an input makes, whatever machine it runs on.
"""

from __future__ import annotations

import contextlib
import re
import sys
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

#: Where the matcher calls itself for each repetition.
_DEPTH = 200_000
#: Steps that are more than any test has use for: the pattern is exponential.
_MOST = 500_000


class Steps:
    """Takes the place of a compiled pattern: the same answers, and `count` grows."""

    count = 0

    def __init__(self, pattern: re.Pattern) -> None:
        self._real = pattern
        self.flags = pattern.flags
        self.pattern = pattern.pattern
        tree = _parser.parse(pattern.pattern, pattern.flags & ~(re.UNICODE | re.LOCALE))
        self._match = _sequence(list(tree), pattern.flags)

    def _one(self, text, start: int) -> int | None:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(_DEPTH)
        try:
            return self._match(text, start, lambda end: end)
        finally:
            sys.setrecursionlimit(limit)

    def _find(self, text, start: int) -> tuple[int, int] | None:
        for place in range(start, len(text) + 1):
            Steps.count += 1
            end = self._one(text, place)
            if end is not None:
                return place, end
        return None

    def _find_all(self, text) -> None:
        place = 0
        while place <= len(text):
            found = self._find(text, place)
            if found is None:
                return
            begin, end = found
            place = end if end > begin else end + 1

    def match(self, text, pos=0):
        self._one(text, pos)
        return self._real.match(text, pos)

    def fullmatch(self, text):
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(_DEPTH)
        try:
            self._match(text, 0, lambda end: end if end == len(text) else None)
        finally:
            sys.setrecursionlimit(limit)
        return self._real.fullmatch(text)

    def search(self, text, pos=0):
        self._find(text, pos)
        return self._real.search(text, pos)

    def finditer(self, text):
        self._find_all(text)
        return self._real.finditer(text)

    def findall(self, text):
        self._find_all(text)
        return self._real.findall(text)

    def sub(self, new, text, count=0):
        self._find_all(text)
        return self._real.sub(new, text, count=count)

    def split(self, text, maxsplit=0):
        self._find_all(text)
        return self._real.split(text, maxsplit=maxsplit)


@lru_cache(None)
def _counting(pattern: re.Pattern) -> Steps:
    return Steps(pattern)


@contextlib.contextmanager
def counted():
    """Count the steps of all patterns of the package; a function that gives the number so far."""
    before = []
    for name, module in list(sys.modules.items()):
        if name != "txmail" and not name.startswith("txmail."):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                before.append((module, key, value))
                setattr(module, key, _counting(value))
    Steps.count = 0
    try:
        yield lambda: Steps.count
    finally:
        for module, key, value in before:
            setattr(module, key, value)


def steps_of(pattern: re.Pattern, how: str, text) -> int:
    """The steps of one call, such as ``search``, of `pattern`."""
    Steps.count = 0
    subject = Steps(pattern)
    arguments = ("",) if how == "sub" and isinstance(text, str) else (b"",) if how == "sub" else ()
    getattr(subject, how)(*arguments, text)
    return Steps.count


# -- the matcher: a pattern is a function of text, place and what follows


def _sequence(items, flags):
    matchers = [_matcher(item, flags) for item in items]

    def run(text, place, then, index=0):
        if index == len(matchers):
            return then(place)
        return matchers[index](text, place, lambda end: run(text, end, then, index + 1))

    return run


def _matcher(item, flags):
    code, argument = item
    if (test := _one_character(item, flags)) is not None:

        def one(text, place, then):
            return then(place + 1) if test(text, place) else None

        return one
    if code is op.SUBPATTERN:
        return _sequence(list(argument[3]), flags)
    if code is op.ATOMIC_GROUP:
        inner = _sequence(list(argument), flags)

        def atomic(text, place, then):
            end = inner(text, place, lambda end: end)
            return None if end is None else then(end)

        return atomic
    if code is op.BRANCH:
        branches = [_sequence(list(branch), flags) for branch in argument[1]]

        def branch(text, place, then):
            for one in branches:
                if (end := one(text, place, then)) is not None:
                    return end
            return None

        return branch
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return _repeat(code, *argument, flags)
    if code in (op.ASSERT, op.ASSERT_NOT):
        return _look(code, *argument, flags)
    if code is op.AT:
        return _at(argument, flags)
    raise NotImplementedError(code)


def _one_character(item, flags):
    """A test of one character, if that is what `item` is."""
    code, argument = item
    letter = _letter(flags)
    if code is op.LITERAL:
        wanted = letter(argument)
        return _looked(lambda character: letter(character) == wanted)
    if code is op.NOT_LITERAL:
        wanted = letter(argument)
        return _looked(lambda character: letter(character) != wanted)
    if code is op.ANY:
        return _looked(lambda character: flags & re.DOTALL or character != 10)
    if code is op.IN:
        tests = [_member(member, letter) for member in argument if member[0] is not op.NEGATE]
        negated = argument[0][0] is op.NEGATE
        return _looked(lambda character: any(test(character) for test in tests) is not negated)
    return None


def _letter(flags):
    if not flags & re.IGNORECASE:
        return lambda character: character
    return lambda character: ord(chr(character).lower()[0])


def _member(member, letter):
    code, argument = member
    if code is op.LITERAL:
        return lambda character: letter(character) == letter(argument)
    if code is op.RANGE:
        low, high = argument
        return lambda character: (
            low <= character <= high
            or low <= letter(character) <= high
            or low <= ord(chr(character).upper()[0]) <= high
        )
    kinds = {
        op.CATEGORY_SPACE: str.isspace,
        op.CATEGORY_DIGIT: str.isdecimal,
        op.CATEGORY_WORD: lambda c: c == "_" or c.isalnum(),
        op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    }
    return lambda character: kinds[argument](chr(character))


def _looked(test):
    def looked(text, place):
        Steps.count += 1
        if Steps.count > _MOST:
            raise AssertionError(f"more than {_MOST} steps")
        if place >= len(text):
            return False
        character = text[place]
        return bool(test(character if isinstance(character, int) else ord(character)))

    return looked


def _repeat(code, least, most, body, flags):
    body = list(body)
    test = _one_character(body[0], flags) if len(body) == 1 else None
    if code is op.POSSESSIVE_REPEAT:
        return _possessive(least, most, body, flags)
    if test is not None and code is op.MAX_REPEAT:

        def characters(text, place, then):
            end = place
            while (most is op.MAXREPEAT or end - place < most) and test(text, end):
                end += 1
            while end - place >= least:
                Steps.count += 1
                if (found := then(end)) is not None:
                    return found
                end -= 1
            return None

        return characters
    inner = _sequence(body, flags)
    greedy = code is op.MAX_REPEAT

    def repeat(text, place, then, done=0):
        def more():
            if most is not op.MAXREPEAT and done >= most:
                return None
            return inner(
                text,
                place,
                lambda end: (
                    None if end == place and done >= least else repeat(text, end, then, done + 1)
                ),
            )

        def enough():
            return then(place) if done >= least else None

        for way in (more, enough) if greedy else (enough, more):
            if (found := way()) is not None:
                return found
        return None

    return repeat


def _possessive(least, most, body, flags):
    inner = _sequence(body, flags)

    def possessive(text, place, then):
        done = 0
        while most is op.MAXREPEAT or done < most:
            end = inner(text, place, lambda end: end)
            if end is None or (end == place and done >= least):
                break
            place, done = end, done + 1
        return then(place) if done >= least else None

    return possessive


def _look(code, direction, body, flags):
    inner = _sequence(list(body), flags)
    width = _parser.SubPattern(_parser.State(), list(body)).getwidth()[0]
    wanted = code is op.ASSERT

    def look(text, place, then):
        start = place if direction > 0 else place - width
        found = start >= 0 and inner(text, start, lambda end: end) is not None
        return then(place) if found is wanted else None

    return look


def _is_word(one: str | bytes) -> bool:
    """Of a word, as `re.ASCII` has it, which all patterns have."""
    one = one if isinstance(one, str) else one.decode("latin-1")
    return one == "_" or (one.isascii() and one.isalnum())


def _at(where, flags):
    def at(text, place, then):
        Steps.count += 1
        newline = "\n" if isinstance(text, str) else b"\n"
        begins = place == 0
        ends = place == len(text)
        if where is op.AT_BEGINNING and flags & re.MULTILINE:
            begins = begins or text[place - 1 : place] == newline
        if where is op.AT_END:
            ends = ends or (
                text[place : place + 1] == newline
                and (bool(flags & re.MULTILINE) or place == len(text) - 1)
            )
        if where in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return then(place) if begins else None
        if where in (op.AT_END, op.AT_END_STRING):
            return then(place) if ends else None
        if where in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
            inside = _is_word(text[place - 1 : place]) and place > 0
            parts = inside is not _is_word(text[place : place + 1])
            return then(place) if parts is (where is op.AT_BOUNDARY) else None
        raise NotImplementedError(where)

    return at
