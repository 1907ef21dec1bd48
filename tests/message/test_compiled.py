"""Compiled templates: whatever they are given, the same octets as messages that are rendered."""

from __future__ import annotations

import email
import pickle
import re
import threading
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
import transaction
from hypothesis import example, given, settings
from hypothesis import strategies as st
from payloads import BAD_ADDRESSES, CONTROLS, FORBIDDEN, HARMLESS
from sweeping import all_of
from test_message_differential import SCRIPTS, assert_sound
from test_message_work import calls
from thin import one_in

from txmail import Attachment, DummyMailer, Template
from txmail.exceptions import AddressError, BadHeaders, InvalidMessage, TemplateError, TxmailError
from txmail.message.templates.placeholders import MAX_COMPILED
from txmail.message.templates.template_values import Field

WHEN = datetime(2026, 11, 21, 12, tzinfo=timezone(timedelta(hours=1)))
ANN = "ann@example.com"


def template(subject="Hello {{ x }}", text="Dear {{ x }},\nbye\n", html=None, **options):
    return Template(subject, text, html, **{"sender": "Shop <shop@example.com>", **options})


def outcome(make):
    """What `make` gives, or what it raises, to be compared."""
    try:
        return make()
    except TxmailError as error:
        return type(error), str(error)


def both(letter, recipient=ANN, fields=None, *, message_id="<1@x.y>", date=WHEN, **options):
    """The envelope of the compiled form, which is that of the message."""
    compiled = letter.compile(**options)
    made = outcome(lambda: compiled.envelope(recipient, fields, message_id=message_id, date=date))
    message = {"message_id": message_id, "date": date}
    full = outcome(lambda: letter.render(fields, [recipient], **message).to_envelope(**options))
    assert made == full
    if not isinstance(made, tuple):
        if not made.needs_smtputf8:
            assert_sound(made.content)
        assert (made.message_id, made.forward_paths) == (full.message_id, full.forward_paths)
    return made


def rendered_in_full(monkeypatch):
    """A list of the fields of all messages that were not made by a compiled form."""
    found = []
    render = Template.render

    def watched(self, fields=None, *args, **kwargs):
        found.append(fields)
        return render(self, fields, *args, **kwargs)

    monkeypatch.setattr(Template, "render", watched)
    return found


LETTERS = {
    "plain": template(),
    "html": template(html="<p title='{{ x }}'>Dear {{ x }}</p>\n"),
    "html only": template(text=None, html="<p>{{ x }}</p>"),
    "no end": template(text="one\n{{ x }}", html="{{ x }}"),
    "blank lines": template(text="\n\n{{ x }}\n\n\n{{ x }} \n\t{{ y }}\t\n \n"),
    "blank at the end": template(text="Dear {{ x }}", html="{{ x }} \n{{ y }}"),
    "default": template("{{ gone|default('none') }}", "{{ gone|default('a < b') }}.",
                        "{{ gone|default('a < b') }}"),
    "percent": template("100 % {{ x }}", "%s %d %% {{ x }} %(x)s"),
    "non-ASCII": template("Grüße {{ x }}", "Grüße\nan {{ x }}\n= {{ y }}\n" + "Ümlaut\n" * 20,
                          "<p>Grüße</p>\n<p>{{ x }} {{ y }}</p>\n" * 9),
    "base64": template(text="你好 {{ x }}\n" * 20, html="<p>Привет {{ x }}</p>\n" * 20),
    "nearly base64": template(text="Ä{{ x }}aaaa\n"),
    "long lines": template(text=("word " * 30 + "\n") * 3 + "{{ x }} " + "word " * 30 + "{{ y }}",
                           html="x" * 2000 + "{{ x }}" + "y" * 2000),
    "78": template(text="x" * 70 + "{{ x }}" + "y" * 7 + "\nend {{ x }}\n"),
    "76": template(text="é" + "x" * 70 + "{{ x }}\n" + "x" * 70 + "{{ x }}\n"),
    "only fields": template("{{ x }}", "{{ x }}", "{{ x }}"),
    "files": template(html="<img src='cid:i'>{{ x }}", attachments=[
        Attachment("i.png", data=b"i", content_id="i", disposition="inline"),
        Attachment("{{ x }}.pdf", data=b"data"),
        Attachment("n.txt", "text/plain", "text"),
    ]),
    "called": template(html="<img src='cid:n'>{{ x }}", attachments=[
        Attachment("n.png", data=b"i", content_id="n"),
    ]),
    "perhaps called": template(html="<img src='cid:{{ x }}{{ y }}'>cid:", attachments=[
        Attachment("n.png", data=b"i", content_id="n"),
    ]),
    "never called": template(html="cid:{{ x }}n", attachments=[
        Attachment("n.png", data=b"i", content_id="n"),
    ]),
    "names": template(sender="Shop of {{ x }} <shop@example.com>",
                      reply_to=["For {{ x }} <r@x.y>", "plain@x.y", ("{{ y }}", "s@x.y")]),
    "headers": template(extra_headers=[("X-A", "{{ x }}"), ("X-B", "b"), ("X-A", "{{ y }} {{ x }}"),
                                       ("Sender", "Me <me@x.y>")]),
    "mailbox header": template(extra_headers={"Errors-To": "{{ x }} <e@x.y>"}),
    "lists": template(list_unsubscribe=["https://x.y/?t={{ x }}", "mailto:{{ y }}@x.y"],
                      list_help="{{ x }}", list_id="news.x.y", list_post="NO", one_click=True,
                      auto_submitted="auto-generated"),
    "list": template(list_unsubscribe="https://x.y/?t={{ x }}&y={{ y }}", one_click=True),
    "copies": template(cc=["Cc <c@x.y>"], bcc=["b@x.y", ANN], envelope_sender="bounce@x.y"),
    "null sender": template(envelope_sender="<>"),
    "calendar": template(calendar="BEGIN:VCALENDAR\nMETHOD:REQUEST\nEND:VCALENDAR\n"),
    "constant": template("Hello", "text", "<p>html</p>"),
    "no subject": template(None, "{{ x }}!"),
    "not plain": template(text="{% if x %}{{ x|upper }}{% endif %}.", html="<b>{{ x }}</b>"),
    "controls": template(text="tab\t{{ x }}\nbell\a\n"),
}  # fmt: skip
FULL = {"not plain", "mailbox header", "controls", "perhaps called", "never called"}
each_letter = pytest.mark.parametrize("letter", LETTERS.values(), ids=LETTERS)


@each_letter
def test_what_can_be_prepared_is(letter):
    (name,) = [name for name, each in LETTERS.items() if each is letter]
    assert letter.compile().prepared is (name not in FULL)


VALUES = {
    "short": "Ann",
    "empty": "",
    "blank": " ",
    "trailing blank": "Ann ",
    "trailing tab": "Ann\t",
    "number": 12345678901,
    "none": None,
    "bool": False,
    "decimal": Decimal("1.50"),
    "date": date(2026, 1, 2),
    "moment": WHEN,
    "float": 1e22,
    "large number": 2**2049,
    "equals": "a=b&c=d==",
    "markup": '<b>"Ann\'s" & co</b>',
    "percent": "%s%d%%",
    "non-ASCII": "José Müller",
    "one non-ASCII": "é",
    "Chinese": "你好，世界！" * 9,
    "long": "word " * 50,
    "long word": "w" * 1100,
    "long non-ASCII": "ü" * 400,
    "78": "x" * 78,
    "soft break": "=" * 80,
    "dot": ".",
    "lines": "one\ntwo\r\nthree\rfour",
    "trailing line end": "one\n",
    "trailing CR": "one\r",
    "leading line end": "\none",
    "separator": "a\u2028b",
    "vertical tab": "a\x0bb",
    "soft hyphen, no-break space": "a\u00ad\u00a0b",
    "surrogate": "a\ud800b",
    "boundary": "--=_",
    "content id": "cid:n",
    "half of it": "n",
    "list": ["a"],
    "mapping": {"a": "b"},
    "URI": "https://x.y/?a=b",
    "object": len,
}


@each_letter
@all_of(VALUES, name="value")
def test_the_octets_are_those_of_the_message(letter, value):
    both(letter, fields={"x": value, "y": "why"})
    both(letter, fields={"x": "https://x.y", "y": value})
    both(letter, fields={"x": value, "y": value, "unused": value})


def test_most_messages_are_not_rendered_in_full(monkeypatch):
    full = rendered_in_full(monkeypatch)
    rare = {"empty", "blank", "large number", "lines", "list", "mapping", "object"}
    rare |= {"separator", "vertical tab", "surrogate", "none"}
    rare |= {name for name in VALUES if name.startswith(("trailing", "leading"))}
    for name in ("plain", "html", "non-ASCII", "long lines", "headers", "names", "base64"):
        compiled = LETTERS[name].compile()
        for value_name, value in VALUES.items():
            if value_name not in rare:
                compiled.envelope(ANN, {"x": value, "y": "why"})
                assert full == [], (name, value_name)


TEXT = st.one_of(
    st.text(st.sampled_from("ab =_.-%\"'<>&é你🎉"), max_size=90),
    st.text(max_size=40),
    st.sampled_from(list(SCRIPTS.values())),
    st.integers(60, 80).map(lambda n: "x" * n),
)
SOURCE = st.lists(
    st.one_of(
        st.sampled_from(["{{ x }}", "{{ y }}", "{{ z|default('=é<') }}", "\n", " ", "=", "\n\n"]),
        st.sampled_from(
            [*SCRIPTS.values(), "word " * 15, "x" * 70, "<p>", "%s", "\t\n", ".", "--"]
        ),
        st.text(st.characters(exclude_characters="{\r", exclude_categories=("Cs",)), max_size=9),
    ),
    min_size=1,
    max_size=25,
).map("".join)
HEADER = st.lists(
    st.sampled_from(["{{ x }}", "{{ y }}", "Grüße ", "word ", "=?utf-8?q?x?=", " ", "%", "x" * 40]),
    max_size=9,
).map("".join)


@settings(max_examples=300 // one_in(4))
@given(HEADER, SOURCE, SOURCE, TEXT, TEXT, st.booleans())
@example("{{ x }}", "{{ x }}", "\n", "", "", False)
@example("", "{{ x }}", "\n", "<", "", False)
@example("s", "é{{ x }}\n", "=\n{{ x }} ", "=\n ", "\t", True)
def test_whatever_is_built_the_octets_are_those_of_the_message(subject, text, html, x, y, more):
    options = {}
    if more:
        options = {
            "sender": ("{{ y }} Shop", "s@x.y"),
            "extra_headers": {"X-Tag": subject},
            "attachments": [Attachment("a.bin", data=b"=_ --=_")],
        }
    letter = outcome(lambda: template(subject, text, html, **options))
    if isinstance(letter, Template):
        both(letter, (x, ANN), {"x": x, "y": y})


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), SOURCE)
def test_messages_do_not_depend_on_those_before_them(pairs, source):
    letter = template("{{ y }}.", source + ".")
    compiled = letter.compile()
    for x, y in pairs:
        fields, told = {"x": x, "y": y}, {"message_id": "<1@x.y>", "date": WHEN}
        made = outcome(lambda: compiled.envelope(ANN, fields, **told))  # noqa: B023
        assert made == outcome(lambda: letter.render(fields, [ANN], **told).to_envelope())  # noqa: B023


@each_letter
@all_of(FORBIDDEN, HARMLESS)
def test_a_hostile_field_fares_as_in_the_message(letter, payload):
    both(letter, fields={"x": payload, "y": payload})
    both(letter, (payload, ANN), fields={"x": "x", "y": "y"})


@pytest.mark.parametrize("name", ["plain", "headers", "names", "list"])
@all_of(FORBIDDEN)
def test_a_hostile_field_gets_into_no_header(name, payload):
    letter = LETTERS[name]
    twin = both(letter, fields={"x": "x", "y": "y"})
    made = both(letter, fields={"x": payload, "y": "y"})
    # Each of these letters has the field in a header, where it must not be as it is.
    if not isinstance(made, tuple):
        assert name == "list" or (payload == CONTROLS["TAB"] and b"x y" in made.content)
    else:
        assert issubclass(made[0], BadHeaders)
    names = re.findall(rb"^([^: ]+):", twin.content.partition(b"\r\n\r\n")[0], re.MULTILINE)
    assert b"Bcc" not in names


@pytest.mark.parametrize("recipient", BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_a_bad_recipient_fares_as_in_the_message(recipient):
    error, text = both(LETTERS["plain"], recipient, {"x": "x"})
    assert issubclass(error, (AddressError, InvalidMessage))
    assert text.startswith("recipients: ")


@pytest.mark.parametrize(
    "recipient",
    [
        "Ann <ann@example.com>",
        ("Änn, B.", ANN),
        ("", ANN),
        "ann@bücher.example",
        "änn@example.com",
        '"a b"@example.com',
    ],
)
def test_recipients_are_named_as_in_the_message(recipient):
    for name in ("plain", "copies"):
        made = both(LETTERS[name], recipient, {"x": "x"})
        assert not isinstance(made, tuple)


@pytest.mark.parametrize("message_id", [*BAD_ADDRESSES.values(), "<a b@c>", "x", "<1@x.y>\r\nA: b"])
def test_a_bad_message_id_is_refused(message_id):
    error, text = both(LETTERS["plain"], fields={"x": "x"}, message_id=message_id)
    assert issubclass(error, TxmailError)
    assert text.startswith("message_id: ")


@pytest.mark.parametrize("when", [datetime(2026, 1, 1), "today", date(2026, 1, 1), 5])
def test_a_bad_date_is_refused(when):
    assert both(LETTERS["plain"], fields={"x": "x"}, date=when)[1].startswith("date: ")


def test_without_them_message_id_and_date_are_new():
    compiled = LETTERS["plain"].compile()
    first, second = (compiled.envelope(ANN, {"x": "x"}) for _ in range(2))
    assert first.message_id != second.message_id
    assert first.message_id.endswith("@example.com>")
    assert re.search(rb"\r\nDate: [A-Z][a-z]{2}, \d", first.content)


def test_a_boundary_in_a_field_is_avoided():
    letter = template(text="{{ x }}\n", html="<p>{{ x }}</p>\n")
    content = both(letter, fields={"x": "x"}).content
    boundary = re.search(rb'boundary="([^"]+)"', content)[1].decode()
    evil = f"--{boundary}--"
    again = both(letter, fields={"x": evil}).content
    assert f"\r\n\r\n{evil}\r\n".encode() in again
    assert email.message_from_bytes(again).get_payload(0).get_payload() == f"{evil}\r\n"
    assert f'boundary="{boundary}"'.encode() not in again


@pytest.mark.parametrize("fields", [None, {}, {"y": 1}, "x", [("x", 1)], {1: 2, "x": "x"}])
def test_wrong_fields_are_refused_as_by_the_template(fields):
    error, _ = both(LETTERS["plain"], fields=fields)
    assert error is TemplateError


def test_any_mapping_will_do():
    class Row(dict):
        def __missing__(self, key):
            return "made up"

    assert not isinstance(both(LETTERS["plain"], fields=Row(x="x")), tuple)
    assert isinstance(both(LETTERS["plain"], fields=Row()), tuple)


def test_the_default_sender_is_told_when_it_is_compiled():
    letter = template(sender=None)
    made = both(letter, fields={"x": "x"}, default_sender=("Me", "me@x.y"))
    assert b"From: Me <me@x.y>\r\n" in made.content
    assert (
        both(letter, fields={"x": "x"})[1]
        == "sender: there is no sender; give one, or set a default sender"
    )


def test_text_is_made_of_html_as_in_a_message(monkeypatch):
    def html_to_text(html):
        return re.sub("<[^>]*>", "", html)

    for name, prepared in (("html only", False), ("html", True), ("constant", True)):
        assert LETTERS[name].compile(html_to_text=html_to_text).prepared is prepared
        made = both(LETTERS[name], fields={"x": "Ann"}, html_to_text=html_to_text)
        assert made.content.count(b"text/plain") == 1
    letter = template(text=None, html="<p>constant</p>")
    assert letter.compile(html_to_text=html_to_text).prepared
    assert b"\r\nconstant\r\n" in both(letter, fields={"x": 1}, html_to_text=html_to_text).content


def test_what_is_wrong_with_a_template_is_told_by_each_envelope():
    letter = template(extra_headers={"Bcc": "x"})
    assert not letter.compile().prepared
    assert both(letter, fields={"x": "x"})[0] is BadHeaders


def test_a_field_that_would_be_too_large_in_all_its_places_is_rendered_in_full(monkeypatch):
    letter = template(text="{{ x }} " * 50)
    large = "x" * (MAX_COMPILED // 50)
    compiled = letter.compile()
    full = rendered_in_full(monkeypatch)
    compiled.envelope(ANN, {"x": large[:-1000]})
    assert full == []
    compiled.envelope(ANN, {"x": large})
    assert len(full) == 1


def test_a_field_of_ten_megabytes_is_refused_or_fits():
    letter = template("Hello", text="{{ x }}" * 9)
    error, text = both(letter, fields={"x": "x" * 2_000_000})
    assert error is TemplateError
    # What comes out is work too, and paid for before it is done.
    assert text in ("text: more than 10485760 characters come out", "text: line 1: too much work")


def test_a_message_is_less_work_than_rendering_it():
    letter = template(html="<p>{{ x }}</p>\n" + "<p>Grüße aus Köln</p>\n" * 1000)
    compiled = letter.compile()
    fields = {"x": "Ann"}

    def work(text):
        made = template(text=text).compile()
        made.envelope(ANN, fields)
        return calls(lambda: made.envelope(ANN, fields))

    compiled.envelope(ANN, fields)
    letter.render(fields, [ANN]).to_envelope()
    made = calls(lambda: compiled.envelope(ANN, fields))
    assert made < calls(lambda: letter.render(fields, [ANN]).to_envelope())
    # What does not change costs nothing.
    assert work("{{ x }}\n" + "é in a line\n" * 10_000) <= work("{{ x }}\né in a line\n") + 10


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_every_script_can_stand_in_template_and_field(text):
    letter = template(
        f"{text} {{{{ x }}}}", f"{text}\n{{{{ x }}}}\n", f"<p>{text}: {{{{ x }}}}</p>"
    )
    assert not isinstance(both(letter, (text, ANN), {"x": text}), tuple)
    plain = template(html="<p>{{ x }}</p>\n" + "<p>much that is ASCII</p>\n" * 50)
    assert not isinstance(both(plain, (text, ANN), {"x": text}), tuple)


def test_one_serves_many_threads():
    compiled = LETTERS["list"].compile()
    made = {}

    def run(number):
        made[number] = [
            compiled.envelope(f"a{number}@x.y", {"x": f"{number}-{n}", "y": n}) for n in range(50)
        ]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, envelopes in made.items():
        for n, envelope in enumerate(envelopes):
            assert envelope.recipients == (f"a{number}@x.y",)
            assert f"<https://x.y/?t={number}-{n}&y={n}>".encode() in envelope.content
            assert f"Dear {number}-{n},".encode() in envelope.content


def test_it_can_be_pickled():
    compiled = template(sender=None).compile(default_sender="me@x.y")
    twin = pickle.loads(pickle.dumps(compiled))
    told = {"message_id": "<1@x.y>", "date": WHEN}
    assert twin.envelope(ANN, {"x": 1}, **told) == compiled.envelope(ANN, {"x": 1}, **told)
    assert repr(twin) == "<CompiledTemplate of <Template 'Hello {{ x }}'>>"


def test_envelopes_are_sent_like_messages():
    dummy = DummyMailer()
    compiled = LETTERS["html"].compile()
    for name in ("ann", "bob"):
        dummy.send(compiled.envelope(f"{name}@example.com", {"x": name.title()}))
    assert dummy.envelopes == []
    transaction.commit()
    assert [e.recipients for e in dummy.envelopes] == [("ann@example.com",), ("bob@example.com",)]
    assert b"Dear Bob," in dummy.envelopes[1].content


def test_the_pieces_of_a_template_are_text_and_fields():
    letter = template(text="a{{ x }}{{ y|default('z') }}{# #}b{% raw %}{{ c }}{% endraw %}")
    assert letter.text.pieces == ("a", Field("x"), Field("y", "z"), "b", "{{ c }}")
    for source in (
        "{{ x.y }}",
        "{{ x|upper }}",
        "{{ 1 }}",
        "{{ x|default(y) }}",
        "{% if x %}{% endif %}",
    ):
        assert template(text=source).text.pieces is None
