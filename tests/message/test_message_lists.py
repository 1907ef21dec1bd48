"""Headers of mailing lists and automatic mail, invitations, and text made from HTML."""

from __future__ import annotations

import email
import email.policy
import pickle
import sys

import pytest
import transaction
from letters import hello, parsed
from zope.interface.verify import verifyObject

from txmail import DummyMailer, Mailer, mailer_from_settings, transport_from_url
from txmail.exceptions import BadHeaders, ConfigurationError, InvalidMessage
from txmail.integrations.html_text import HtmlToText
from txmail.interfaces import IHtmlToText
from txmail.mailer import DebugMailer
from txmail.message import Attachment, to_envelope

INVITATION = (
    "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nUID:1@x.y\r\n"
    "SUMMARY:Grüße\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)


def types(found):
    return [part.get_content_type() for part in found.walk()]


# Lists.


def test_the_headers_of_a_list_are_there_in_a_settled_order():
    message = hello(
        list_id="Our news <news.x.y>",
        list_help="https://x.y/help",
        list_unsubscribe=["https://x.y/u?t=%41&r=1,2", "mailto:leave@x.y?subject=leave"],
        list_subscribe="mailto:join@x.y",
        list_post="NO",
        list_owner="mailto:owner@x.y",
        list_archive="https://x.y/archive/",
        one_click=True,
        auto_submitted="auto-generated",
        extra_headers={"X-Tag": "1"},
    )
    found = parsed(message)
    assert found.items()[5:15] == [
        ("List-Id", "Our news <news.x.y>"),
        ("List-Help", "<https://x.y/help>"),
        (
            "List-Unsubscribe",
            "<https://x.y/u?t=%41&r=1,2>, <mailto:leave@x.y?subject=leave>",
        ),
        ("List-Subscribe", "<mailto:join@x.y>"),
        ("List-Post", "NO"),
        ("List-Owner", "<mailto:owner@x.y>"),
        ("List-Archive", "<https://x.y/archive/>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ("Auto-Submitted", "auto-generated"),
        ("X-Tag", "1"),
    ]
    message.validate()
    assert not message.is_bad_headers()


def test_without_them_there_are_none():
    assert not [name for name in parsed(hello()) if name.startswith(("List", "Auto"))]
    empty = hello(list_id="", list_unsubscribe=[], one_click=False, auto_submitted="")
    assert parsed(empty).keys() == parsed(hello()).keys()


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("news.x.y", "<news.x.y>"),
        ("<news.x.y>", "<news.x.y>"),
        ("News <news.x.y>", "News <news.x.y>"),
        (("News, daily", "news.x.y"), '"News, daily" <news.x.y>'),
        (("", "news.x.y"), "<news.x.y>"),
        (("Grüße", "news.x.y"), "Grüße <news.x.y>"),
        (("=?utf-8?q?x?=", "news.x.y"), "=?utf-8?q?x?= <news.x.y>"),
    ],
)
def test_a_list_id_has_a_name_or_none(value, header):
    assert str(parsed(hello(list_id=value))["List-Id"]) == header


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("list_id", wrong) for wrong in ("news", ".x.y", "a b.c", "x <y> z.a", "ü.x.y", 7)),
        *(("list_id", wrong) for wrong in ("a." * 128 + "b", ("x",), (7, "a.b"), ("x", 7))),
        ("list_id", " " * 100_000 + "x"),
        *(("list_help", wrong) for wrong in ("x.y", "javascript:x", "https:", "https://ü", 7)),
        *(("list_help", wrong) for wrong in ("<https://x.y>", "https://x.y/a b", "NO", [7])),
        *(("list_help", wrong) for wrong in ("https://x.y, https://y.z", "https://" + "x" * 900)),
        *(("list_help", wrong) for wrong in ("mailto:a?body=%0D%0Ab", "mailto:a?subject=%00")),
        ("list_unsubscribe", "https://x.y/?a=?utf-8?q?=41?="),
        *(("auto_submitted", wrong) for wrong in ("yes", "Auto-Generated", True, 7)),
    ],
)
def test_what_cannot_be_such_a_header_is_refused_by_name(field, wrong):
    for use in (hello(**{field: wrong}).to_envelope, hello(**{field: wrong}).validate):
        with pytest.raises(InvalidMessage) as caught:
            use()
        assert caught.value.field == field


@pytest.mark.parametrize(
    "unsubscribe",
    [
        None,
        "mailto:leave@x.y",
        "http://x.y/leave",
        ["http://x.y/leave", "https://x.y/leave"],
        ["https://x.y/leave", "https://x.y/other"],
    ],
)
def test_one_click_needs_just_one_https_uri(unsubscribe):
    message = hello(list_unsubscribe=unsubscribe, one_click=True)
    with pytest.raises(InvalidMessage) as caught:
        message.to_envelope()
    assert caught.value.field == "one_click"


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("List-Unsubscribe", "list_unsubscribe"),
        ("list-unsubscribe-post", "one_click"),
        ("LIST-ID", "list_id"),
        ("Auto-Submitted", "auto_submitted"),
    ],
)
def test_an_extra_header_that_has_an_argument_is_refused_and_the_error_names_it(name, argument):
    with pytest.raises(BadHeaders, match=argument) as caught:
        hello(extra_headers={name: "x"}).to_envelope()
    assert caught.value.field == "extra_headers"


def test_long_uris_are_folded_between_each_other_only():
    uris = [f"https://x.y/{'u' * 200}{number}" for number in range(3)]
    content = hello(list_archive=uris).to_envelope().content
    assert b",\r\n <https://" in content
    found = email.message_from_bytes(content, policy=email.policy.default)
    assert found["List-Archive"] == ", ".join(f"<{uri}>" for uri in uris)


# Invitations.


@pytest.mark.parametrize("html", [None, "<p>text</p>"])
def test_an_invitation_is_the_last_alternative_and_says_its_method(html):
    found = parsed(hello(html=html, calendar=INVITATION))
    *_, part = found.walk()
    assert types(found) == [
        *("multipart/alternative", "text/plain"),
        *(["text/html"] if html else []),
        "text/calendar",
    ]
    assert dict(part["Content-Type"].params) == {"charset": "utf-8", "method": "REQUEST"}
    assert part.get_content() == INVITATION
    assert part["Content-Disposition"] is None


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("METHOD:CANCEL\n", "CANCEL"),
        ("method:reply\r\n", "REPLY"),
        ("METHOD:X-OWN\r", None),
        ("X-METHOD:CANCEL\n", None),
        ("METHOD:a b\n", None),
        ('METHOD:x"; charset=y\n', None),
        ("", None),
    ],
)
def test_the_method_is_that_of_the_calendar_or_none(line, method):
    *_, part = parsed(hello(calendar=f"BEGIN:VCALENDAR\n{line}END:VCALENDAR\n")).walk()
    assert part.get_param("method") == method


def test_a_calendar_may_be_an_attachment_and_is_checked():
    own = Attachment(data=INVITATION, content_type="text/calendar; method=REQUEST; name=x")
    *_, part = parsed(hello(calendar=own)).walk()
    assert part.get_param("method") == "REQUEST"
    assert part.get_content() == INVITATION
    for wrong in (7, b"\xff", [INVITATION], Attachment()):
        with pytest.raises(InvalidMessage):
            hello(calendar=wrong).validate()
    with pytest.raises(InvalidMessage) as caught:
        hello(body=None, calendar=INVITATION).to_envelope()
    assert caught.value.field == "body"


# Text from HTML.

HTML = (
    "<html><head><title>no</title><style>p {}</style></head><body><h1>Hello Ann</h1>"
    '<p>Read <a href="https://x.y/a?b=1">this</a>:</p><ul><li>one<li>zwölf</ul>'
    "<script>no()</script></body></html>"
)


UTF8 = Attachment(data=HTML.encode(), content_type="text/html; charset=utf-8")


def test_html_alone_gets_a_text_that_reads_like_it():
    verifyObject(IHtmlToText, HtmlToText())
    text = HtmlToText()(HTML)
    assert text.splitlines() == [
        *("Hello Ann", "", "Read [this](https://x.y/a?b=1):", "", "  * one", "  * zwölf")
    ]
    assert HtmlToText()(HTML) == text


@pytest.mark.parametrize("html", [HTML, Attachment(data=HTML), UTF8])
def test_a_message_with_html_only_is_sent_with_both(html):
    message = hello(body=None, html=html)
    found = parsed(message, html_to_text=HtmlToText())
    assert types(found) == ["multipart/alternative", "text/plain", "text/html"]
    plain, rich = found.iter_parts()
    assert plain.get_content().startswith("Hello Ann\r\n")
    assert rich.get_content().rstrip() == HTML
    assert message.body is None
    assert types(parsed(message)) == ["text/html"]


def test_octets_of_html_are_read_in_their_charset():
    html = Attachment(data="<p>zwölf".encode("latin-1"), content_type="text/html; charset=latin-1")
    plain, _ = parsed(hello(body=None, html=html), html_to_text=HtmlToText()).iter_parts()
    assert plain.get_content() == "zwölf\r\n"


def test_a_text_that_is_there_is_kept():
    plain, _ = parsed(hello(html=HTML), html_to_text=HtmlToText()).iter_parts()
    assert plain.get_content() == "text\r\n"
    assert types(parsed(hello(), html_to_text=HtmlToText())) == ["text/plain"]


@pytest.mark.parametrize("html", ["<img src='x'>", "<p> </p>", "<!-- x -->", "<div>" * 100_000])
def test_html_without_text_goes_alone(html):
    found = parsed(hello(body=None, html=html), html_to_text=HtmlToText())
    assert types(found) == ["text/html"]


@pytest.mark.parametrize("made", [b"octets", None, 7, ZeroDivisionError, RecursionError])
def test_a_converter_that_fails_is_an_invalid_message_that_does_not_show_the_text(made):
    def converter(html):
        if isinstance(made, type):
            raise made(html)
        return made

    with pytest.raises(InvalidMessage) as caught:
        to_envelope(hello(body=None, html="SECRET"), html_to_text=converter)
    assert caught.value.field == "html"
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("value", ["yes", True])
def test_the_setting_has_every_mailer_make_texts(value, tmp_path):
    settings = {
        "mail.url": "memory:",
        "mail.html_to_text": value,
        "mail.top_level_directory": str(tmp_path),
    }
    message = hello(body=None, html=HTML)
    for kind in (Mailer, DummyMailer, DebugMailer):
        mailer = kind.from_settings(settings)
        for same in (mailer, mailer.bind(default_sender="x@y.z")):
            assert isinstance(same.html_to_text, HtmlToText)
        assert isinstance(pickle.loads(pickle.dumps(mailer)).html_to_text, HtmlToText)
    mailer = DummyMailer.from_settings(settings)
    with transaction.manager:
        mailer.send(message)
    (envelope,) = mailer.envelopes
    found = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert types(found) == ["multipart/alternative", "text/plain", "text/html"]
    assert mailer.outbox == [message]


@pytest.mark.parametrize("value", ["no", "", None, False])
def test_without_the_setting_html_goes_alone(value):
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.html_to_text": value})
    assert mailer.html_to_text is None
    with pytest.raises(ConfigurationError) as caught:
        mailer_from_settings({"mail.html_to_text": "inscriptis"})
    assert caught.value.field == "mail.html_to_text"


def test_a_converter_of_ones_own_may_be_handed_in():
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.html_to_text": str.upper})
    assert mailer.html_to_text is str.upper
    own = Mailer(transport_from_url("memory:"), html_to_text=str.upper)
    assert own.html_to_text is str.upper
    assert own.send_immediately(hello(body=None, html="<p>"))


def test_a_missing_library_is_a_configuration_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inscriptis", None)
    monkeypatch.delitem(sys.modules, "txmail.integrations.html_text")
    with pytest.raises(ConfigurationError, match=r"txmail\[html\]") as caught:
        mailer_from_settings({"mail.html_to_text": "yes"})
    assert caught.value.field == "mail.html_to_text"


def test_a_foreign_message_is_not_asked_to_make_a_text():
    envelope = hello().to_envelope()

    class Foreign:
        def to_envelope(self, *, sender=None, recipients=None, default_sender=None):
            return envelope

    assert to_envelope(Foreign(), html_to_text=HtmlToText()) is envelope
