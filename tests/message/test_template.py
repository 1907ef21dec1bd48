"""Templates: fields where messages differ, and fields are data."""

from __future__ import annotations

import contextlib
import copy
import email
import email.policy
import pickle
import re
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum

import pytest
import transaction
from markupsafe import Markup
from payloads import FORBIDDEN, HARMLESS, HIDDEN, INJECTIONS
from sweeping import all_of
from test_hostile_input import DANGEROUS, decoded, shape, split_headers
from test_message_differential import SCRIPTS

from txmail import Attachment, DummyMailer, Template
from txmail.config.template_engine import template_engine
from txmail.exceptions import (
    AddressError,
    BadHeaders,
    ConfigurationError,
    InvalidMessage,
    MessageError,
    TemplateError,
)
from txmail.integrations.jinja2 import Jinja2Engine
from txmail.message.templates.default_engine import DefaultEngine

SENDER = "Shop <shop@example.com>"


def template(subject="Hello", text="text", html=None, sender=SENDER, **options):
    return Template(subject, text, html, sender, **options)


def read(message):
    content = message.to_envelope().content
    return email.message_from_bytes(content, policy=email.policy.default)


def text_of(part):
    return part.get_payload(decode=True).decode().rstrip("\r\n")


def test_fields_are_filled_in_in_every_part():
    letter = Template(
        subject="Order {{ number }}",
        text="Dear {{ name }},\nyour order {{ number }}.\n",
        html="<p>Dear {{ name }}</p>",
        sender=("{{ shop }} Shop", "shop@example.com"),
        reply_to=["Help for {{ name }} <help@example.com>"],
        extra_headers={"X-Order": "no. {{ number }}"},
        list_unsubscribe="https://example.com/leave?t={{ token }}",
        one_click=True,
    )
    fields = {"number": 7, "name": "Ann <b>", "shop": "Ünser", "token": "a/b&c=ü"}
    found = read(letter.render(fields, ["ann@example.com"]))
    assert str(found["Subject"]) == "Order 7"
    assert str(found["From"].addresses[0].display_name) == "Ünser Shop"
    assert str(found["Reply-To"].addresses[0].display_name) == "Help for Ann <b>"
    assert found["Reply-To"].addresses[0].addr_spec == "help@example.com"
    assert found["X-Order"] == "no. 7"
    assert found["List-Unsubscribe"] == "<https://example.com/leave?t=a%2Fb%26c%3D%C3%BC>"
    text, html = found.iter_parts()
    assert text_of(text) == "Dear Ann <b>,\r\nyour order 7."
    assert text_of(html) == "<p>Dear Ann &lt;b&gt;</p>"


def test_what_has_no_fields_is_as_in_a_message():
    letter = template(
        "100 % {off}",
        "{text}",
        cc=["c@d.e"],
        bcc=["f@g.h"],
        recipients=["a@b.c"],
        attachments=[Attachment("{{ a }}.txt", "text/plain", "{{ b }}")],
        calendar="BEGIN:VCALENDAR\nSUMMARY:{{ c }}\nEND:VCALENDAR\n",
        envelope_sender="<>",
        list_id="{{ name }} <news.example.com>",
        list_post="NO",
        auto_submitted="auto-generated",
    )
    envelope = letter.render().to_envelope()
    assert envelope.recipients == ("a@b.c", "c@d.e", "f@g.h")
    assert envelope.reverse_path == b"<>"
    found = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert found["Subject"] == "100 % {off}"
    assert found["List-Post"] == "NO"
    assert found["List-Id"] == "{{ name }} <news.example.com>"
    assert found["Auto-Submitted"] == "auto-generated"
    (file,) = found.iter_attachments()
    assert file.get_filename() == "{{ a }}.txt"
    assert file.get_content() == "{{ b }}"


def test_recipients_are_those_of_the_call_and_are_data():
    letter = template(recipients=["always@example.com"])
    message = letter.render({"x": 1}, [("{{ x }}", "ann@example.com")])
    assert message.to_envelope().recipients == ("ann@example.com",)
    assert read(message)["To"].addresses[0].display_name == "{{ x }}"
    assert letter.render().to_envelope().recipients == ("always@example.com",)


def test_message_id_and_date_are_those_of_the_call():
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = template().render({}, ["a@b.c"], message_id="<1@b.c>", date=when)
    assert (message.message_id, message.date) == ("<1@b.c>", when)


def test_loops_and_conditions_are_those_of_jinja2():
    letter = template(
        text="{% for item in items if item.price -%}\n{{ loop.index }}. {{ item.name }}: "
        "{{ '%.2f'|format(item.price) }}\n{% endfor -%}\n{% if items %}Total{% endif %}\n"
        "{{ items|sum(attribute='price') }}\n"
    )
    items = [{"name": "Tea", "price": Decimal("3.5")}, {"name": "Gift", "price": 0}]
    body = letter.render({"items": items}, ["a@b.c"]).body
    assert body == "1. Tea: 3.50\nTotal\n3.5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "True"),
        (None, ""),
        (Decimal("1.50"), "1.50"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02 03:04:00+00:00"),
        (timedelta(days=1), "1 day, 0:00:00"),
        (StrEnum("Color", ["red"]).red, "red"),
        (IntEnum("Number", ["one"]).one, "1"),
        (type("Float", (float,), {"__str__": lambda self: "evil"})(2.5), "2.5"),
        (type("Date", (date,), {"__str__": lambda self: "evil"})(2026, 1, 2), "2026-01-02"),
        (
            type("Moment", (datetime,), {"__str__": lambda self: "evil"})(2026, 1, 2, tzinfo=UTC),
            "2026-01-02 00:00:00+00:00",
        ),
        (Markup("<b>"), "<b>"),
    ],
)
def test_plain_data_is_written_as_it_is(value, text):
    assert template(text="{{ value }}.").render({"value": value}, ["a@b.c"]).body == f"{text}."


@pytest.mark.parametrize(
    "value",
    [
        object(),
        b"octets",
        {1, 2},
        1j,
        len,
        object,
        (n for n in "ab"),
        UTC,
        Attachment("a"),
        2**5000,
        {"a": object()},
        {"a": [1, {"b": object()}]},
        {1: "a"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_plain_data_is_refused_by_name_even_if_it_is_not_used(value):
    with pytest.raises(TemplateError, match=r"^order[.: ]") as caught:
        template().render({"order": value}, ["a@b.c"])
    assert caught.value.field.startswith("order")
    assert isinstance(caught.value, MessageError)


def test_an_error_says_where_in_a_field_it_is():
    with pytest.raises(TemplateError) as caught:
        template().render({"order": {"lines": [1, {"x": len}]}}, ["a@b.c"])
    assert str(caught.value) == "order.lines.1.x: 'builtin_function_or_method' is no plain data"


@pytest.mark.parametrize("fields", ["a=b", [("a", "b")], 5, {5: "a"}])
def test_fields_are_a_mapping_of_names(fields):
    with pytest.raises(TemplateError, match=r"^fields: "):
        template().render(fields, ["a@b.c"])


def test_fields_that_are_endless_or_too_many_are_refused():
    endless: list = []
    endless.append(endless)
    wide: list = []
    for _ in range(19):
        wide = [wide] * 10
    for value, problem in (
        (endless, "20 deep"),
        ([0] * 100_001, "100000 values"),
        (wide, "values"),
    ):
        with pytest.raises(TemplateError, match=problem):
            template().render({"x": value}, ["a@b.c"])


@pytest.mark.parametrize("part", ["subject", "text", "html", "sender", "reply_to", "X-Tag"])
def test_a_missing_field_is_named_with_its_part(part):
    source = "{{ here }} {{ gone }}"
    options = {part: source}
    if part in ("sender", "reply_to"):
        options = {part: (source, "a@b.c")}
    elif part == "X-Tag":
        options = {"extra_headers": {"X-Tag": source}}
    letter = template(**options)
    with pytest.raises(TemplateError) as caught:
        letter.render({"here": 1}, ["a@b.c"])
    assert str(caught.value) == f"{part}: line 1: 'gone' is undefined"
    assert (caught.value.field, caught.value.line) == (part, 1)


def test_a_missing_field_is_found_on_its_line_and_inside_of_a_mapping():
    letter = template(text="one\ntwo\n{{ order.number }}\n")
    with pytest.raises(TemplateError, match="text: line 3: 'dict object' has no attribute 'numb"):
        letter.render({"order": {}}, ["a@b.c"])
    with pytest.raises(TemplateError, match="text: line 3: 'order' is undefined"):
        letter.render({}, ["a@b.c"])


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{{ a", 1),
        ("one\n{% if %}", 2),
        ("one\n\n{% endfor %}", 3),
        ("{{ a|nothing }}", 1),
        ("{{ a is nothing }}", 1),
        ("{{ a!b }}", 1),
        ("\n{# open", 2),
    ],
)
@pytest.mark.parametrize("part", ["subject", "text", "html", "list_help"])
def test_what_cannot_be_read_is_refused_at_once_with_part_and_line(part, source, line):
    if part in ("subject", "list_help"):
        source, line = source.replace("\n", ""), 1
    with pytest.raises(TemplateError) as caught:
        template(**{part: source})
    assert (caught.value.field, caught.value.line) == (part, line)


def test_a_template_of_the_wrong_type_is_refused():
    for part in ("text", "html"):
        with pytest.raises(TemplateError, match=f"^{part}: a string is needed"):
            template(**{part: b"octets"})
    with pytest.raises(BadHeaders, match=r"^subject: a string is needed"):
        template(subject=5)
    with pytest.raises(InvalidMessage, match=r"^text: neither text nor html"):
        Template("Hello")
    with pytest.raises(TypeError, match="'message_id'"):
        template(message_id="<1@b.c>")
    with pytest.raises(InvalidMessage, match="recipients"):
        template(recipients="a@b.c")


def test_addresses_are_never_templates():
    with pytest.raises(AddressError):
        template(sender="{{ who }}")
    with pytest.raises(AddressError):
        template(reply_to="{{ who }} <{{ who }}@example.com>")
    letter = template(sender="{{ name }} <a@b.c>")
    message = letter.render({"name": 'x" <evil@x.y>, y'}, ["a@b.c"])
    assert message.to_envelope().sender == "a@b.c"
    assert [a.addr_spec for a in read(message)["From"].addresses] == ["a@b.c"]


def test_uris_have_fields_as_components_or_are_one_field():
    letter = template(list_help="mailto:help+{{ n }}@example.com", list_archive=["{{ url }}"])
    fields = {"n": "1&subject=x", "url": "https://example.com/?a=b"}
    found = read(letter.render(fields, ["a@b.c"]))
    assert found["List-Help"] == "<mailto:help+1%26subject%3Dx@example.com>"
    assert found["List-Archive"] == "<https://example.com/?a=b>"
    with pytest.raises(BadHeaders, match=r"^list_archive: "):
        letter.render({**fields, "url": "javascript:x"}, ["a@b.c"]).to_envelope()
    for wrong in ({**fields, "url": ["x"]}, {"n": 1}):
        with pytest.raises(TemplateError, match=r"^list_archive: 'url' is"):
            letter.render(wrong, ["a@b.c"])
    with pytest.raises(TemplateError, match="only text and"):
        template(list_help="https://example.com/{{ x|upper }}")
    with pytest.raises(BadHeaders):
        letter.render({**fields, "n": "\ud800"}, ["a@b.c"])


def test_html_is_escaped_wherever_a_field_stands():
    evil = "<script>alert('1')</script> & \"x\""
    letter = template(
        html='<a title="{{ x }}" name=\'{{ x }}\'>{{ x }}{{ x|upper }}{{ x ~ "<" }}'
        "{% for c in [x] %}{{ c }}{% endfor %}{{ x|default('<') }}{{ y|default('<') }}</a>"
    )
    message = letter.render({"x": evil}, ["a@b.c"])
    assert "<script" not in message.html.lower()
    assert message.html.count("<") == 2
    assert message.html.count('"') == 2
    assert message.html.count("'") == 2
    assert message.html.count("&lt;script&gt;") == 6


def test_only_constants_are_safe_html():
    letter = template(html="{{ x|replace('\\n', '<br>'|safe) }}{{ '<hr>'|safe }}")
    assert letter.render({"x": "<\n>"}, ["a@b.c"]).html == "&lt;<br>&gt;<hr>"
    for source in ("{{ x|safe }}", "{{ (x ~ '')|safe }}", "{{ [x]|safe }}"):
        with pytest.raises(TemplateError, match="constants only"):
            template(html=source)
    for source in ("{{ [x]|map('safe')|join }}", "{{ x|forceescape }}", "{{ x|e }}"):
        letter = template(html=source)
        with contextlib.suppress(TemplateError):
            assert "<" not in letter.render({"x": "<b>"}, ["a@b.c"]).html


def test_text_is_not_escaped():
    assert template(text="{{ x }}").render({"x": "<&'\">"}, ["a@b.c"]).body == "<&'\">"


def test_data_is_never_a_template():
    source = "{{ 7*7 }}{% for x in y %}{# #}"
    letter = template("{{ x }}", "{{ x }}", "{{ x }}", "{{ x }} <a@b.c>")
    message = letter.render({"x": source}, [(source, "a@b.c")])
    assert message.subject == message.body == message.html == source
    assert message.sender.display_name == source
    assert message.recipients == [(source, "a@b.c")]


FIELDS = {
    "subject": {"subject": "Re: {{ x }}"},
    "sender": {"sender": ("Shop {{ x }}", "me@b.c")},
    "reply_to": {"reply_to": [("{{ x }}", "r@b.c")]},
    "X-Tag": {"extra_headers": {"X-Tag": "{{ x }}"}},
    "list_help": {"list_help": "https://example.com/{{ x }}"},
    "list_archive": {"list_archive": "{{ x }}"},
}


def everything(groups):
    return [pytest.param(v, id=k) for group in groups for k, v in group.items()]


def assert_no_more_than_meant(content, twin):
    assert split_headers(content) == split_headers(twin)
    assert shape(content) == shape(twin)
    for value in email.message_from_bytes(content).values():
        unfolded = value.replace("\r\n", "")
        assert not DANGEROUS.search(unfolded)
        assert not DANGEROUS.search(decoded(unfolded))


@pytest.mark.parametrize("field", FIELDS)
@all_of(FORBIDDEN, HARMLESS)
def test_a_hostile_field_is_refused_or_is_data(field, payload):
    letter = template(**FIELDS[field])
    options = {"recipients": ["a@b.c"], "message_id": "<1@b.c>"}
    value = "x" if field != "list_archive" else "https://example.com/"
    twin = letter.render({"x": value}, **options).to_envelope().content
    try:
        content = letter.render({"x": payload}, **options).to_envelope().content
    except MessageError as error:
        assert error.field == field  # noqa: PT017
    else:
        assert payload not in [*INJECTIONS.values()]
        assert field.startswith("list_") or payload not in HIDDEN.values()
        assert_no_more_than_meant(content, twin)


@all_of(FORBIDDEN, HARMLESS)
def test_a_hostile_field_in_a_body_is_text(payload):
    letter = template(text="begin\n{{ x }}\nend\n", html="<p>{{ x }}</p>")
    options = {"recipients": ["a@b.c"], "message_id": "<1@b.c>"}
    twin = letter.render({"x": "x"}, **options).to_envelope().content
    try:
        content = letter.render({"x": payload}, **options).to_envelope().content
    except MessageError:
        assert any("\ud800" <= c <= "\udfff" for c in payload)
        return
    assert split_headers(content) == split_headers(twin)
    assert [s[:2] for s in shape(content)] == [s[:2] for s in shape(twin)]
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    text, html = read_parts(content)
    lines = re.split("\r\n|\r|\n", f"begin\n{payload}\nend")
    assert text == "\r\n".join(lines)
    assert html.count("<") == 2


def read_parts(content):
    found = email.message_from_bytes(content, policy=email.policy.default)
    return [text_of(part) for part in found.iter_parts()]


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_every_script_can_stand_in_template_and_field(text):
    letter = template(
        f"{text} {{{{ x }}}}", f"{text}\n{{{{ x }}}}\n", f"<p>{text}: {{{{ x }}}}</p>"
    )
    found = read(letter.render({"x": text}, [(text, "a@b.c")]))
    assert str(found["Subject"]) == f"{text} {text}"
    plain, html = found.iter_parts()
    assert text_of(plain) == f"{text}\r\n{text}"
    assert text_of(html) == f"<p>{text}: {text}</p>"


def test_a_template_can_be_copied_and_pickled():
    letter = template(
        "{{ a }}", "{{ b }}", "{{ c }}", list_help="https://example.com/{{ d }}", bcc=["x@y.z"]
    )
    fields = dict.fromkeys("abcd", "x")
    when = datetime(2026, 1, 1, tzinfo=UTC)
    options = {"recipients": ["a@b.c"], "message_id": "<1@b.c>", "date": when}
    content = letter.render(fields, **options).to_envelope()
    twins = (pickle.loads(pickle.dumps(letter)), copy.copy(letter), copy.deepcopy(letter))
    for twin in twins:
        assert twin.render(fields, **options).to_envelope() == content
        assert repr(twin) == repr(letter) == "<Template '{{ a }}'>"


def test_a_caller_s_lists_can_be_changed_afterwards():
    bcc = ["x@y.z"]
    letter = template(bcc=bcc)
    bcc.append("evil@x.y")
    letter.render({}, ["a@b.c"]).bcc.append("evil@x.y")
    assert letter.render({}, ["a@b.c"]).to_envelope().recipients == ("a@b.c", "x@y.z")


def test_a_rendered_message_is_sent_like_any_other():
    dummy = DummyMailer(default_sender="shop@example.com")
    letter = Template("Order {{ number }}", "Thank you, {{ name }}!")
    for number, name in enumerate(["Ann", "Bob"]):
        fields = {"number": number, "name": name}
        dummy.send(letter.render(fields, [f"{name.lower()}@example.com"]))
    transaction.commit()
    assert [m.subject for m in dummy.outbox] == ["Order 0", "Order 1"]
    assert [m.body for m in dummy.outbox] == ["Thank you, Ann!", "Thank you, Bob!"]
    with pytest.raises(TemplateError):
        letter.render({}, ["ann@example.com"])
    assert dummy.pending == []


def test_errors_survive_pickle():
    with pytest.raises(TemplateError) as caught:
        template(text="{{ a")
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (str(twin), vars(twin)) == (str(caught.value), vars(caught.value))


def test_an_error_does_not_repeat_the_text_of_a_field():
    for source in ("{{ x.strftime('%Y') }}", "{{ x[x] }}", "{{ x + 1 }}", "{{ -x }}"):
        with pytest.raises(TemplateError) as caught:
            template(text=source).render({"x": "secret " * 50}, ["a@b.c"])
        assert str(caught.value).count("secret") <= 20
        assert len(str(caught.value)) < 200


def test_jinja2_is_loaded_for_the_first_template_only():
    code = (
        "import sys, txmail; assert 'jinja2' not in sys.modules; txmail.Template('a', 'b');"
        "assert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_jinja2_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "txmail.integrations.jinja2", raising=False)
    template_engine.cache_clear()
    with pytest.raises(ConfigurationError, match=r"pip install 'txmail\[templates\]'"):
        template()
    monkeypatch.undo()
    assert template().render({}, ["a@b.c"]).body == "text"


def test_the_default_engine_is_the_one_that_is_registered(monkeypatch):
    engines = DefaultEngine()
    monkeypatch.setattr("txmail.message.templates.template.default_engine", engines)
    with pytest.raises(ConfigurationError, match=r"^engine: no engine is registered; give one"):
        template()
    assert template(engine=Jinja2Engine()).render({}, ["a@b.c"]).body == "text"
    engines.register(lambda: Jinja2Engine(max_output=3))
    with pytest.raises(TemplateError, match=r"^text: more than 3 characters come out"):
        template().render({}, ["a@b.c"])


def test_an_engine_can_be_handed_in():
    small = Jinja2Engine(max_output=20)
    letter = template(text="{{ x }}{{ x }}", engine=small)
    assert letter.render({"x": "x" * 10}, ["a@b.c"]).body == "x" * 20
    with pytest.raises(TemplateError, match=r"^text: more than 20 characters come out"):
        letter.render({"x": "x" * 11}, ["a@b.c"])
    with pytest.raises(TemplateError, match=r"^text: more than 1048576 characters"):
        template(text="x" * 2**20 + "x")
