"""Letters that are not what they seem, in domains, local parts and names."""

from __future__ import annotations

import email
import email.policy

import pytest

from txmail import Message, Template
from txmail.address import parse_address, parse_domain
from txmail.exceptions import AddressError
from txmail.message import to_envelope


@pytest.mark.parametrize(
    "domain",
    [
        "xn--a", "XN--A.example", "b.xn--a.example", "xn--", "xn---", "xn--0", "xn--a-ecp.ru",
        "xn--abc-", "xn--99999999999",
    ],
)  # fmt: skip
def test_s14_a_label_that_claims_to_be_an_a_label_is_one(domain):
    """Stands for names that only look encoded: no two programs decode them alike."""
    for use in (parse_domain, lambda text: parse_address(f"a@{text}")):
        with pytest.raises(AddressError):
            use(domain)
    assert parse_domain("xn--bcher-kva.example") == parse_domain("bücher.example")


@pytest.mark.parametrize("domain", ["127.1", "1.2.3.4", "0x7f.1", "example.0x10", "2130706433",
                                    "0x7f000001", "a.0X", "017700000001"])  # fmt: skip
def test_s14_a_domain_that_is_a_number_is_refused(domain):
    """Stands for addresses in forms that `inet_aton` reads, and nobody else expects."""
    with pytest.raises(AddressError):
        parse_address(f"a@{domain}")
    assert parse_address("a@1.2.3.4.example").domain == "1.2.3.4.example"
    assert parse_address("a@[127.0.0.1]").domain == "[127.0.0.1]"


@pytest.mark.parametrize(
    "letter",
    ["\u3164", "\u115f", "\u1160", "\uffa0", "\u2100", "\ufb01", "\uff41", "\u33d2", "\u2800",
     "\ufe0f", "\u034f", "\u200b", "\u202e", "\u212a", "\u00aa", "\U000e0101"],
)  # fmt: skip
def test_s14_a_letter_that_nobody_sees_or_that_looks_like_others_is_in_no_local_part(letter):
    """Stands for two local parts that a reader cannot tell apart."""
    for local in (letter, f"a{letter}", f"{letter}b", f'"a{letter}b"'):
        with pytest.raises(AddressError):
            parse_address(f"{local}@example.com")
    assert parse_address("用户@example.com").local == "用户"
    assert parse_address("j\u00fcrgen@example.com").needs_smtputf8


HIDDEN = [*"\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff\u061c\u00ad\u3164"]


def shown_to(content):
    found = email.message_from_bytes(content, policy=email.policy.SMTP)
    return [address.display_name for address in found["To"].addresses]


@pytest.mark.parametrize("letter", HIDDEN, ids=lambda letter: f"{ord(letter):x}")
def test_s14_what_steers_or_hides_is_taken_out_of_a_name(letter):
    """Stands for a name that is shown as another: it is written without those characters."""
    name = f"{letter}Ann{letter} Bl\u00fcm{letter}"
    options = {"body": "x", "sender": ("x", "me@x.y")}
    for entry in ((name, "a@b.c"), f"{name} <a@b.c>", f'"{name}" <a@b.c>'):
        content = Message("hello", [entry], **options).to_envelope().content
        assert shown_to(content) == ["Ann Bl\u00fcm"]
    content = Message("hello", [(letter, "a@b.c")], **options).to_envelope().content
    assert shown_to(content) == [""]
    word = f"=?utf-8?q?{''.join(f'={octet:02X}' for octet in name.encode())}?="
    for policy in (email.policy.compat32, email.policy.SMTP):
        text = f"From: me@x.y\nTo: {word} <a@b.c>\n\ntext\n"
        message = email.message_from_string(text, policy=policy)
        assert shown_to(to_envelope(message).content) == ["Ann Bl\u00fcm"]
    letter_to = Template("hello", "x", sender="{{ n }} <me@x.y>")
    for made in (
        letter_to.render({"n": name}, ["a@b.c"]).to_envelope(),
        letter_to.compile().envelope("a@b.c", {"n": name}),
    ):
        found = email.message_from_bytes(made.content, policy=email.policy.SMTP)
        assert found["From"].addresses[0].display_name == "Ann Bl\u00fcm"


JOINED = {
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Devanagari": "\u0936\u0930\u0940\u092e\u0924\u094d\u200d \u0915\u094d\u200c\u0937",
    "Mongolian": "\u182a\u1820\u1836\u1822\u1828\u180e\u1820",
    "a family": "\U0001f469\u200d\U0001f469\u200d\U0001f466",
    "a colour": "\U0001f44d\U0001f3fd\u200d\U0001f308",
    "a flag": "\U0001f3f3\ufe0f\u200d\U0001f308",
}


@pytest.mark.parametrize("name", JOINED.values(), ids=JOINED)
def test_s14_a_joiner_stays_where_a_script_or_a_picture_needs_it(name):
    """Stands for names that are written with characters of no width."""
    content = Message("x", [(name, "a@b.c")], body="x", sender="me@x.y").to_envelope().content
    assert shown_to(content) == [name]
    for sign in "\u200c\u200d\u180e":
        content = Message("x", [(f"A{sign}n{sign}", "a@b.c")], body="x", sender="me@x.y")
        assert shown_to(content.to_envelope().content) == ["An"]
