"""Hostile templates: they reach nothing but the fields, and cost no more than a second or two."""

from __future__ import annotations

import sys
import tracemalloc
from datetime import UTC, datetime

import pytest
from test_message_work import calls

from txmail import Template
from txmail.exceptions import TemplateError
from txmail.integrations.jinja2 import Jinja2Engine
from txmail.integrations.sandbox import MAX_WORK

FIELDS = {
    "x": "text",
    "n": 7,
    "f": 1.5,
    "items": [1, 2, 3],
    "names": ["ann", "bob"],
    "order": {"lines": [{"name": "Tea", "price": 3}], "items": 5},
    "when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
}


def render(source, html=False, **fields):
    text = Jinja2Engine().compile(source, "html" if html else "text", html=html)
    return text.render({**FIELDS, **fields})


#: What is known to lead out of a sandbox, or into the application, in one engine or another.
ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ()|attr('__class__') }}",
    "{{ x|attr('upper') }}",
    "{{ x|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "{{ x['__cla' ~ 'ss__'] }}",
    "{{ [x]|map(attribute='__class__')|first }}",
    "{{ [x]|map('attr', '__class__')|first }}",
    "{{ [x]|groupby('__class__')|first }}",
    "{{ [x, 'y']|sort(attribute='__class__')|first }}",
    "{{ [x]|selectattr('__class__')|list|length }}",
    "{{ [x]|sum(attribute='__class__') }}",
    "{{ [x]|unique(attribute='__class__')|list|length }}",
    "{{ [x]|join(attribute='__class__') }}",
    "{{ [x, 'y']|max(attribute='__class__') }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(x) }}",
    "{{ '{x.__class__}'.format_map({'x': x}) }}",
    "{{ ''['format'] }}",
    "{{ ['{0.__class__}']|map('format', x)|map('upper')|first.format }}",
    "{{ [x.format]|first }}",
    "{{ ['{0.__class__}'.format]|map('string')|list }}",
    "{{ '%(x)s'.__mod__ }}",
    "{{ x.upper.__self__ }}",
    "{{ x.upper.__func__ }}",
    "{{ x.upper['__self__'] }}",
    "{{ x.upper }}",
    "{{ range.__class__ }}",
    "{{ range(3).__class__ }}",
    "{{ range(3).start }}",
    "{{ self }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ super() }}",
    "{{ caller() }}",
    "{{ varargs }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__ }}",
    "{{ namespace.__init__ }}",
    "{{ dict.__base__ }}",
    "{{ config }}",
    "{{ request.application }}",
    "{{ url_for.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ __builtins__ }}",
    "{{ __import__('os').popen('id').read() }}",
    "{{ environment }}",
    "{{ context }}",
    "{{ undefined.__class__ }}",
    "{{ gone.__class__ }}",
    "{{ gone.__init__.__globals__ }}",
    "{% for i in items %}{{ loop.__class__ }}{% endfor %}",
    "{% for i in items %}{{ loop._iterable }}{% endfor %}",
    "{% for i in items %}{{ loop.iterable }}{% endfor %}",
    "{% for i in items %}{{ loop(items) }}{% endfor %}",
    "{% for i in items recursive %}{{ loop(items) }}{% endfor %}",
    "{% set x.y = 1 %}",
    "{% set ns = namespace(a=1) %}",
    "{% set a %}{{ x }}{% endset %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__ }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% call x() %}{% endcall %}",
    "{% filter upper %}x{% endfilter %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import path %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% autoescape false %}{{ x }}{% endautoescape %}",
    "{% do items.append(1) %}",
    "{% trans %}x{% endtrans %}",
    "{% debug %}",
    "{{ items.append(1) }}",
    "{{ items.clear() }}",
    "{{ items.__iadd__([1]) }}",
    "{{ order.update({'a': 1}) }}",
    "{{ order.pop('lines') }}",
    "{{ order.setdefault('a', 1) }}",
    "{{ order.keys() }}",
    "{{ order.get }}",
    "{{ when.tzinfo }}",
    "{{ when.tzinfo.__class__ }}",
    "{{ when.__reduce__() }}",
    "{{ when.replace(year=1) }}",
    "{{ n.__class__ }}",
    "{{ n.real }}",
    "{{ n.to_bytes(1000000000, 'big') }}",
    "{{ f.as_integer_ratio() }}",
    "{{ x.encode() }}",
    "{{ x.translate({}) }}",
    "{{ x.join(items) }}",
    "{{ x|pprint }}",
    "{{ x|xmlattr }}",
    "{{ {'a b': 1}|xmlattr }}",
    "{{ x|urlize }}",
    "{{ items|random }}",
    "{{ items }}",
    "{{ order }}",
    "{{ items|map('upper') }}",
    "{{ gone }}",
    "{{ x.gone }}",
    "{{ order.gone.gone }}",
    "{{ '<script>'|mark_safe }}",
]


@pytest.mark.parametrize("source", ESCAPES)
@pytest.mark.parametrize("html", [False, True], ids=["text", "html"])
def test_what_leads_out_is_a_typed_error(source, html):
    with pytest.raises(TemplateError) as caught:
        render(source, html)
    assert caught.value.field == ("html" if html else "text")
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("source", ESCAPES)
def test_an_escape_that_hides_behind_a_default_or_a_test_gives_nothing_away(source):
    if not source.startswith("{{"):
        return
    inner = source.removeprefix("{{").removesuffix("}}").strip()
    for hidden in (f"{{{{ ({inner})|default('nothing') }}}}", f"{{{{ ({inner}) is defined }}}}"):
        try:
            found = render(hidden)
        except TemplateError:
            continue
        assert found in ("nothing", "False", "True")


#: What would take all time, or all memory, there is.
BOMBS = [
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [1] * 10**9 }}",
    "{{ ([x] * 10**6) * 10**6 }}",
    "{{ 9**(9**9) }}",
    "{{ 9**9**9**9**9 }}",
    "{{ 2**2000 * 2**2000 }}",
    "{% set n = 3 %}" + "{% set n = n * n %}" * 60 + "{{ n }}",
    "{% set n = 3 %}" + "{% set n = n + n %}" * 9999 + "{{ n }}",
    "{{ range(10**9) }}",
    "{{ range(10**9)|list|length }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if i in range(99999) %}{% for j in range(99999) %}x{% endfor %}"
    "{% endfor %}",
    "{% for i in range(99999) %}{{ big }}{% endfor %}",
    "{% for i in range(99999) %}{% set y = big|upper %}{% endfor %}",
    "{% for i in range(99999) %}{% set y = big.upper() %}{% endfor %}",
    "{% for i in range(99999) %}{% set y = big ~ i %}{% endfor %}",
    "{% for i in range(99999) %}{% set y = big + 'x' %}{% endfor %}",
    "{% for i in range(99999) %}{% set y = big % i %}{% endfor %}",
    "{% set y = 'x' * 1000 %}" + "{% set y = y ~ y %}" * 60 + "{{ y }}",
    "{% set y = 'x' * 1000 %}" + "{% set y = y + y %}" * 60 + "{{ y }}",
    "{% set y = 'x' * 1000 %}" + "{% set y = [y, y]|join %}" * 60 + "{{ y }}",
    "{% set y = 'x' * 1000 %}" + "{% set y = y|replace('x', y) %}" * 4 + "{{ y }}",
    "{% set y = 'x' * 1000 %}" + "{% set y = y|replace('', y) %}" * 4 + "{{ y }}",
    "{% set y = [1] %}" + "{% set y = [y, y] %}" * 60 + "{{ y|string }}",
    "{% set y = [1] %}" + "{% set y = y + y %}" * 60 + "{{ y|length }}",
    "{% set y = (1,) %}" + "{% set y = (y, y) %}" * 60 + "{{ y|tojson }}",
    "{% set y = {} %}" + "{% set y = {'a': y, 'b': y} %}" * 60 + "{{ y|string }}",
    "{{ ([0] * 99999)|map('default', big, true)|join }}",
    "{{ range(1, 99999)|map('replace', '1', big)|list|length }}",
    "{{ x|center(10**9) }}",
    "{{ x|indent(10**9) }}",
    "{{ lines|indent(999) }}",
    "{{ big|wordwrap(1, wrapstring='x' * 999) }}",
    "{{ x|wordwrap(1, wrapstring='x' * 1000) }}",
    "{{ items|batch(10**9, x)|list|length }}",
    "{{ items|slice(10**9, x)|list|length }}",
    "{{ items|tojson(indent=10**9) }}",
    "{{ items|join('x' * 9999999) }}",
    "{{ range(99999)|join('x' * 9999) }}",
    "{{ [items]|sum(start=[]) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%.1000000000f'|format(1.5) }}",
    "{{ '%*d'|format(1000000000, 1) }}",
    "{{ '%.*f'|format(1000000000, 1.5) }}",
    "{{ '%(a)1000000000d'|format(a=1) }}",
    "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "{{ '%-+ #01000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ x.ljust(10**9) }}",
    "{{ x.rjust(10**9) }}",
    "{{ x.center(10**9) }}",
    "{{ x.zfill(10**9) }}",
    "{{ x.expandtabs(10**9) }}",
    "{{ x.replace('', big) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ x" + ".y" * 20_000 + " }}",
    "{{ x" + "|upper" * 20_000 + " }}",
    "{% if x %}" * 200 + "{% endif %}" * 200,
    "{% for i in items %}" * 60 + "x" + "{% endfor %}" * 60,
]
BIG = {"big": "x" * 1_000_000, "lines": "\n" * 1_000_000}


@pytest.mark.representative(every=16)
@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:60])
def test_a_bomb_is_a_typed_error_and_little_work(source):
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            render(source, html=True, **BIG)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The fields are there already; ten million characters of output and what is made on the way.
    assert peak < 400_000_000


def test_work_is_counted_not_timed():
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    text = Jinja2Engine().compile(source, "text")

    def run():
        with pytest.raises(TemplateError, match="line 1: too much work"):
            text.render({})

    run()
    assert calls(run) == calls(run) < MAX_WORK // 20


def test_a_newsletter_of_a_thousand_lines_is_no_bomb():
    rows = [{"name": f"Item {n}", "price": n / 7, "tags": ["a", "b"]} for n in range(1000)]
    source = (
        "{% for row in rows %}{{ loop.index }}. {{ row.name|upper }} "
        "{{ '%8.2f'|format(row.price) }} {{ row.tags|join(', ') }}"
        "{% if not loop.last %} {{ rows|length }}{% endif %}\n"
        "{% endfor %}{{ rows|map(attribute='price')|sum|round(2) }}"
    )
    found = render(source, rows=rows)
    assert found.startswith("1. ITEM 0     0.00 a, b 1000\n2. ITEM 1     0.14")
    assert found.endswith("\n71357.14")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x.upper() }} {{ x.split('x')|first }}", "TEXT te"),
        ("{{ order.lines[0].name }} {{ order['lines'][0]['name'] }}", "Tea Tea"),
        ("{{ order.items }}", "5"),
        ("{% for k, v in order|dictsort %}{{ k }} {% endfor %}", "items lines "),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{{ when.strftime('%d.%m.%Y') }} {{ when.year }}", "02.01.2026 2026"),
        ("{{ n if n > 5 else 0 }} {{ n % 2 }} {{ n ** 2 }} {{ -n }} {{ n // 2 }}", "7 1 49 -7 3"),
        ("{{ '%.2f' % f }} {{ '%s'|format(x) }}", "1.50 text"),
        ("{{ x ~ ' ' ~ n ~ none }} {{ x + '!' }} {{ 'ab' * 3 }}", "text 7 text! ababab"),
        ("{{ gone|default('x') }} {{ gone is defined }}", "x False"),
        ("{{ names|map('capitalize')|join(' and ') }}", "Ann and Bob"),
        ("{% for n in [3, 4] %}{{ loop.cycle('odd', 'even') }} {% endfor %}", "odd even "),
        ("{% for b in items|batch(2) %}{{ b|length }}{% else %}none{% endfor %}", "21"),
        ("{% with a = 1 %}{{ a }}{% endwith %}", "1"),
        ("{% set total = items|sum %}{{ total }}", "6"),
        ("{{ items|tojson }} {{ x|truncate(3, true, '', 0) }}", "[1, 2, 3] tex"),
        ("{% for g in order.lines|groupby('name') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}",
         "Tea1"),
        ("{{ 'a' in x }} {{ n in items }} {{ items[0:2]|join }}", "False False 12"),
        ("{% raw %}{{ x }}{% endraw %}{# no #}", "{{ x }}"),
    ],
)  # fmt: skip
def test_what_a_mail_needs_is_there(source, text):
    assert render(source) == text


def test_no_module_comes_in_by_rendering():
    text = Jinja2Engine().compile("{{ x }} {{ when }} {{ items|join }}", "text")
    text.render(FIELDS)
    before = set(sys.modules)
    text.render(FIELDS)
    assert set(sys.modules) == before


def test_a_hostile_template_does_not_spoil_the_next():
    letter = Template("Hi", "{{ items|map('upper')|list|first }}{{ x }}")
    for _ in range(3):
        with pytest.raises(TemplateError):
            letter.render({"items": [len], "x": 1}, ["a@b.c"])
        assert letter.render({"items": ["a"], "x": 1}, ["a@b.c"]).body == "A1"
