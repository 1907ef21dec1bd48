"""Templates that make much work out of little: refused before the work is done."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from txmail import Template
from txmail.exceptions import TemplateError
from txmail.integrations.jinja2 import Jinja2Engine
from txmail.integrations.sandbox import MAX_WORK
from txmail.integrations.sandbox_costs import Refused, charge_filter, charge_format, charge_operator

MB = 1_000_000
FIELDS = {
    "x": "text",
    "items": [1, 2, 3],
    "when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    "d": Decimal("1e599"),
    "big": "x" * MB,
    "ab": "ab" * (MB // 2),
    "tags": "<a>" * (MB // 3),
    "comments": "<!---->" * (MB // 7),
    "words": "a " * (MB // 2),
    "lines": "\n" * MB,
    "texts": ["y" * 1000] * 1000,
    "numbers": list(range(90_000)),
    "key": {"k" * 1000: 1},
}
TURNS = "{% for i in range(99999) %}"
END = "{% endfor %}"

#: What has no bound but what it costs. Each took seconds, or a gigabyte, or would have.
BOMBS = [
    # numbers
    "{{ (d ** 500)|int }}",
    "{{ d ** 900 * 'x' }}",
    "{{ '%d' % (d ** 99) }}",
    "{{ (d * d * d)|round(0, 'ceil') }}",
    "{{ [d * d]|map('int')|list }}",
    "{{ ('f' * 999999)|int(base=16) }}",
    "{{ big|int(0, 36) + (ab|int(0, 16)) }}",
    # searches from the right, and of many characters at each place
    "{{ ab.rfind('b' ~ ab[:99999]) }}",
    "{{ ab.rsplit('b' ~ ab[:99999]) }}",
    "{{ ab.rpartition('b' ~ ab[:99999]) }}",
    "{{ big.rfind('a' ~ big[1:]) }}",
    "{{ big.strip(words ~ 'y' ~ lines) }}",
    "{{ big.lstrip(ab) }}",
    "{{ big.rstrip(ab ~ 'x') }}",
    "{{ big|trim(ab) }}",
    # comparisons
    TURNS + "{{ big == ab }}" + END,
    TURNS + "{{ big != big[1:] }}" + END,
    TURNS + "{{ 'z' in big }}" + END,
    TURNS + "{{ 'z' not in texts }}" + END,
    TURNS + "{{ texts < texts }}" + END,
    TURNS + "{{ numbers == numbers }}" + END,
    TURNS + "{% if big >= ab >= x %}{% endif %}" + END,
    TURNS + "{{ big is eq(ab) }}" + END,
    TURNS + "{{ 'z' is in(big) }}" + END,
    TURNS + "{{ big is upper }}" + END,
    "{{ [big] * 99999 == [ab] * 99999 }}",
    "{{ range(99999)|select('in', numbers)|list|length }}",
    "{{ texts * 999|int }}{% for t in texts %}{{ texts.index(t ~ 'z') }}" + END,
    # slices and items
    TURNS + "{% set y = big[1:] %}" + END,
    TURNS + "{% set y = numbers[::-1] %}" + END,
    TURNS + "{% if big[:-1] %}{% endif %}" + END,
    TURNS + "{{ key[big]|default('') }}" + END,
    # formats
    "{{ ('%(a)999s' * 9999) % {'a': 1} }}",
    "{{ ('%(a)s' * 9999) % {'a': big} }}",
    "{{ ('%(a)s' * 9999)|format(a=big) }}",
    "{{ ('%999d' * 9999) % ((1,) * 9999) }}",
    "{{ ('%s' * 99)|format(" + "big," * 99 + ") }}",
    "{{ ('%.999f' * 99999) % ((1,) * 99999) }}",
    "{{ ['%1000000000d']|select('even')|list }}",
    "{{ ['%1000000000d']|reject('divisibleby', 2)|list }}",
    "{{ '%1000000000d' is odd }}",
    "{{ when.strftime('%1000000000d') }}",
    "{{ when.strftime('%-999999999Y') }}",
    "{{ when.strftime('%_0999999999S') }}",
    "{{ when.strftime('%c' * 999999) }}",
    "{{ when.time().strftime('%^#999999999H') }}",
    # filters
    "{{ tags|striptags }}",
    "{{ comments|striptags }}",
    "{{ big|wordwrap(1) }}",
    "{{ big|wordwrap(7, true) }}",
    "{{ words|wordwrap(1, wrapstring='z' * 999) }}",
    "{{ lines|indent(998) }}",
    "{{ lines|indent('z' * 999, true, true) }}",
    "{{ [numbers]|sum(start=[]) }}",
    "{{ items|sum(start=numbers) }}",
    TURNS + "{% set y = numbers|sort %}" + END,
    TURNS + "{% set y = texts|unique|list %}" + END,
    TURNS + "{% set y = texts|max %}" + END,
    TURNS + "{% set y = texts|tojson %}" + END,
    TURNS + "{% set y = big|e %}" + END,
    TURNS + "{% set y = big|urlencode %}" + END,
    TURNS + "{% set y = big|title %}" + END,
    TURNS + "{% set y = big|wordcount %}" + END,
    TURNS + "{% set y = big|reverse %}" + END,
    TURNS + "{% set y = numbers|batch(3)|list %}" + END,
    TURNS + "{% set y = big.split('z') %}" + END,
    TURNS + "{% set y = big.startswith(ab) %}" + END,
    TURNS + "{% set y = numbers.count(1) %}" + END,
    TURNS + "{{ loop.changed(big) }}" + END,
    # loops that are long in what they repeat
    "{% for i in range(9999) %}" + "{{ i }}" * 3000 + END,
    "{% for i in numbers %}" + "{% if i == 0.5 %}{% endif %}" * 999 + END,
    "{% for i in range(9999) %}{% for j in items %}" + "{% set y = i + j %}" * 999 + END + END,
]  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "source",
    [
        source if place % 6 == 0 else pytest.param(source, marks=pytest.mark.sweep)
        for place, source in enumerate(BOMBS)
    ],
    ids=lambda source: source[:50],
)
def test_s3_a_bomb_is_refused_before_it_goes_off(source):
    """Stands for whatever a template can say in few words and takes much time or memory."""
    text = Jinja2Engine().compile(source, "html", html=True)
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError) as caught:
            text.render(FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * MB
    assert "it failed (MemoryError)" not in str(caught.value)


@pytest.mark.parametrize(
    "number",
    [
        Decimal("1e1000000"),
        Decimal("-1e601"),
        Decimal("1e-1000000"),
        Decimal("9" * 601),
        Decimal((0, (1,), 999_999)),
        10**700,
    ],
    ids=lambda number: f"{type(number).__name__}",
)
def test_s3_a_number_that_takes_long_to_write_is_refused_at_the_door(number):
    """The same in a field: an exponent is few characters of what it stands for."""
    for source in ("{{ n|int }}", "{{ n }}", "{{ n|round }}", "{{ '%d' % n }}", "{{ n == 1 }}"):
        letter = Template("hello", source, sender="me@x.y")
        for fields in ({"n": number}, {"n": [number]}):
            with pytest.raises(TemplateError, match="too large"):
                letter.render(fields)
        with pytest.raises(TemplateError, match="too large"):
            letter.compile().envelope("a@b.c", {"n": number})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ d|int }}", "12"),
        ("{{ '%.2f' % d }} {{ d * 3 }} {{ d + 1 }} {{ d > 3 }}", "12.50 37.50 13.50 True"),
        ("{{ when.strftime('%Y-%m-%d %H:%M %-d %%') }}", "2026-01-02 03:04 2 %"),
        ("{{ 'a/b/c'.rsplit('/', 1)|last }} {{ 'a/b'.rpartition('/')[2] }}", "c b"),
        ("{{ '%(a)-9s|' % {'a': x} }} {{ '%5.1f'|format(2.25) }}", "text     |   2.2"),
        ("{{ (x * 30)|wordwrap(40)|length }} {{ '<b>x</b>'|striptags }}", "122 x"),
        ("{{ 1 < 2 < 3 }} {{ 'ex' in x }} {{ x[1:3] }} {{ [1, 2, 3][::-1]|join }}",
         "True True ex 321"),
        ("{{ numbers|select('odd')|list|length }} {{ numbers|sum }}", "1000 1999000"),
        ("{% for n in numbers if n is divisibleby 500 %}{{ n }},{% endfor %}", "0,500,1000,1500,"),
        ("{{ gone is defined }} {{ x is string }} {{ none is none }} {{ 3 is in [1, 3] }}",
         "False True True True"),
        ("{{ body|length }} {{ body|wordwrap(79)|wordcount }} {{ body.split()|length }}",
         "100000 20000 20000"),
    ],
)  # fmt: skip
def test_s3_what_a_mail_needs_costs_little(source, text):
    """The other side of it: an allowance that honest templates do not notice."""
    fields = {
        "d": Decimal("12.50"),
        "x": "text",
        "when": FIELDS["when"],
        "numbers": list(range(2000)),
        "body": "word " * 20_000,
    }
    assert Jinja2Engine().compile(source, "text").render(fields) == text


class Counter:
    def __init__(self):
        self.spent = 0

    def spend(self, cost):
        self.spent += cost
        if self.spent > 10**15:
            raise Refused


@pytest.mark.parametrize(
    ("pay", "power"),
    [
        (lambda quota, n: charge_filter(quota, "trim", "x" * n, ["y" * n]), 2),
        (lambda quota, n: charge_filter(quota, "striptags", "<a>" * n, []), 2),
        (lambda quota, n: charge_filter(quota, "wordwrap", "x" * n, [1]), 2),
        (lambda quota, n: charge_filter(quota, "upper", "x" * n, []), 1),
        (lambda quota, n: charge_filter(quota, "join", ["x"] * n, ["y" * n]), 2),
        (lambda quota, n: charge_format(quota, "%(a)s" * n, {"a": "x" * n}), 2),
        (lambda quota, n: charge_format(quota, "%s" * n, tuple("x" * n)), 1),
        (lambda quota, n: charge_operator(quota, "+", "x" * n, "y" * n), 1),
        (lambda quota, n: charge_operator(quota, "*", "x" * n, n), 2),
    ],
)
def test_s3_a_cost_grows_as_the_work_does(pay, power):
    """The costs themselves, as their operands double: never slower than what they pay for."""
    spent = []
    for size in (1000, 2000):
        quota = Counter()
        pay(quota, size)
        spent.append(quota.spent)
    assert 2**power * 0.7 < spent[1] / spent[0] < 2**power * 1.3


def test_s3_an_allowance_is_of_one_rendering():
    """What one rendering has spent, the next has again."""
    text = Jinja2Engine().compile("{% for i in range(90000) %}{% endfor %}", "text")
    assert MAX_WORK > 90_000 * 500
    for _ in range(12):
        assert text.render({}) == ""
