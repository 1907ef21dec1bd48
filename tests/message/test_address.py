"""Addresses: what is one, what it becomes, and that nothing else passes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payloads import BAD_ADDRESSES, CONTROLS, INJECTIONS

from txmail.address import Address, Mailbox, parse_address, parse_mailbox
from txmail.common.shown import ECHO_LIMIT
from txmail.exceptions import AddressError

GOOD = [
    # text, local part, domain, needs SMTPUTF8
    ("a@b.c", "a", "b.c", False),
    ("root@localhost", "root", "localhost", False),
    ("Mixed.Case@Example.COM", "Mixed.Case", "Example.COM", False),
    ("a+b=c@example.com", "a+b=c", "example.com", False),
    ("!#$%&'*+/=?^_`{|}~-@example.com", "!#$%&'*+/=?^_`{|}~-", "example.com", False),
    ("user%host@relay.example", "user%host", "relay.example", False),
    ("-dash@example.com", "-dash", "example.com", False),
    ("a@xn--bcher-kva.example", "a", "xn--bcher-kva.example", False),
    ("a@1.example", "a", "1.example", False),
    ('"a b"@example.com', '"a b"', "example.com", False),
    ('""@example.com', '""', "example.com", False),
    ('"a@b"@example.com', '"a@b"', "example.com", False),
    ('"<a>, b;"@example.com', '"<a>, b;"', "example.com", False),
    (r'"a\"\\b"@example.com', r'"a\"\\b"', "example.com", False),
    ("a@[192.0.2.1]", "a", "[192.0.2.1]", False),
    ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]", False),
    ("a@[ipv6:::ffff:192.0.2.1]", "a", "[ipv6:::ffff:192.0.2.1]", False),
    ("a@bücher.example", "a", "xn--bcher-kva.example", False),
    ("a@Bücher.Example", "a", "xn--bcher-kva.Example", False),
    ("a@straße.example", "a", "xn--strae-oqa.example", False),
    ("a@例え.テスト", "a", "xn--r8jz45g.xn--zckzah", False),
    ("jörg@example.com", "jörg", "example.com", True),
    ("用户@例え.テスト", "用户", "xn--r8jz45g.xn--zckzah", True),
    ('"jörg müller"@example.com', '"jörg müller"', "example.com", True),
    ("a" * 64 + "@b.c", "a" * 64, "b.c", False),
    ("a@" + "b" * 63 + ".c", "a", "b" * 63 + ".c", False),
]


@pytest.mark.parametrize(("text", "local", "domain", "smtputf8"), GOOD, ids=[g[0] for g in GOOD])
def test_an_address_keeps_its_local_part_and_gets_an_ascii_domain(text, local, domain, smtputf8):
    address = parse_address(text)
    assert address == Address(text, local, domain, f"<{local}@{domain}>".encode(), smtputf8)
    assert str(address) == text


@pytest.mark.parametrize("text", BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_what_is_no_address_is_refused_and_the_error_names_its_field(text):
    for field in ("to", "cc"):
        with pytest.raises(AddressError, match=f"^{field}: ") as caught:
            parse_address(text, field=field)
        assert caught.value.field == field
        assert len(str(caught.value)) < 120 + 10 * ECHO_LIMIT


@pytest.mark.parametrize("name", [name for name in BAD_ADDRESSES if name != "null"])
def test_a_name_does_not_make_an_address_of_what_is_none(name):
    with pytest.raises(AddressError):
        parse_mailbox(("Name", BAD_ADDRESSES[name]))
    with pytest.raises(AddressError):
        parse_mailbox(f"Name <{BAD_ADDRESSES[name]}>")


@pytest.mark.parametrize("value", [None, 7, b"a@b.c", ["a@b.c"], object()])
def test_what_is_no_string_is_no_address(value):
    with pytest.raises(AddressError, match=r"^to: a string is needed: "):
        parse_address(value, field="to")


def test_an_error_repeats_at_most_sixty_characters():
    with pytest.raises(AddressError) as caught:
        parse_address("x" * 61 + "SECRET")
    assert "x" * ECHO_LIMIT in str(caught.value)
    assert "x" * (ECHO_LIMIT + 1) not in str(caught.value)


def test_a_subclass_of_str_is_parsed_by_its_text_and_kept_as_plain_text():
    class Odd(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "evil@x.y"

    address = parse_address(Odd("a@b.c"))
    assert (type(address.text), address.text, address.path) == (str, "a@b.c", b"<a@b.c>")


MAILBOXES = [
    ("a@b.c", "", "a@b.c"),
    ("<a@b.c>", "", "a@b.c"),
    ("Name <a@b.c>", "Name", "a@b.c"),
    ("Name<a@b.c>", "Name", "a@b.c"),
    ("J. R. O'Doe <a@b.c>", "J. R. O'Doe", "a@b.c"),
    ("Jörg Müller <a@b.c>", "Jörg Müller", "a@b.c"),
    ('"Doe, John" <a@b.c>', "Doe, John", "a@b.c"),
    (r'"a \"b\" \\ c" <a@b.c>', r'a "b" \ c', "a@b.c"),
    ('"evil@x.y" <a@b.c>', "evil@x.y", "a@b.c"),
    ('Name <"a>b"@c.d>', "Name", '"a>b"@c.d'),
    ("=?utf-8?q?x?= <a@b.c>", "=?utf-8?q?x?=", "a@b.c"),
    (("Doe, John", "a@b.c"), "Doe, John", "a@b.c"),
    (("", "a@b.c"), "", "a@b.c"),
    (('"quoted"', "a@b.c"), '"quoted"', "a@b.c"),
]


@pytest.mark.parametrize(("value", "name", "address"), MAILBOXES, ids=map(str, MAILBOXES))
def test_a_mailbox_is_an_address_with_or_without_a_name(value, name, address):
    mailbox = parse_mailbox(value)
    assert mailbox == Mailbox(name, parse_address(address))
    assert parse_mailbox(mailbox) is mailbox


@pytest.mark.parametrize(
    "value",
    [
        "Doe, John <a@b.c>",
        "Doe (John) <a@b.c>",
        "evil@x.y <a@b.c>",
        "group: A <a@b.c>;",
        "A <a@b.c>, B <c@d.e>",
        "A <<a@b.c>>",
        "A <a@b.c> B",
        " A <a@b.c>",
        '"A" B <a@b.c>',
        '"A <a@b.c>',
        'A" <a@b.c>',
        ("A", "<a@b.c>"),
        ("A", "B <a@b.c>"),
        ("A", None),
        ("A", "a@b.c", "x"),
        ("a@b.c",),
    ],
)
def test_what_is_not_one_mailbox_is_refused(value):
    with pytest.raises(AddressError) as caught:
        parse_mailbox(value, field="reply_to")
    assert caught.value.field == "reply_to"


@pytest.mark.parametrize("name", [*CONTROLS.values(), *INJECTIONS.values()])
def test_a_name_has_no_control_characters(name):
    for value in ((name, "a@b.c"), f"{name} <a@b.c>", f'"{name}" <a@b.c>'):
        with pytest.raises(AddressError):
            parse_mailbox(value)


TRICKY = st.text(
    st.one_of(
        st.sampled_from('ab.@<>"\\[]:;,() -_%=?\t\r\n\0\x7f\x85\u2028\ud800üÜ\u0308'),
        st.characters(),
    ),
    max_size=30,
)
ATEXT = st.text(st.sampled_from("abzAZ09!#$%&'*+-/=?^_`{|}~é用"), min_size=1, max_size=8)
#: Without the mark of an encoded word, which is refused.
LOCAL = (
    st.lists(ATEXT, min_size=1, max_size=3)
    .map(".".join)
    .filter(lambda local: not re.search(r"\?[bq]\?", local, re.IGNORECASE))
)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9]{0,5}[a-z0-9])?", fullmatch=True)
DOMAIN = st.lists(
    st.one_of(LABEL, st.sampled_from(["bücher", "例え"])), min_size=1, max_size=4
).filter(lambda labels: not re.fullmatch("[0-9]+|0x[0-9a-f]*", labels[-1]))


def outside_quotes(path: bytes) -> bytes:
    """The octets of a path that are not inside its quoted local part."""
    shown, quoted, escaped = bytearray(), False, False
    for octet in path[1:-1]:
        if escaped:
            escaped = False
        elif quoted and octet == ord("\\"):
            escaped = True
        elif octet == ord('"'):
            quoted = not quoted
        elif not quoted:
            shown.append(octet)
    assert not quoted
    return bytes(shown)


@given(st.one_of(TRICKY, st.tuples(TRICKY, TRICKY).map("@".join), TRICKY.map('"{}"@b.c'.format)))
def test_whatever_is_accepted_can_stand_in_a_command(text):
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert address.text == text
    assert text.startswith(f"{address.local}@")
    assert address.domain.isascii()
    assert address.path == f"<{address.local}@{address.domain}>".encode()
    assert all(octet >= 0x20 and octet != 0x7F for octet in address.path)
    assert not set(outside_quotes(address.path)) & set(b"<> ,;()\\")
    assert len(address.path) <= 256


@given(LOCAL, DOMAIN)
def test_every_dot_string_at_a_domain_is_accepted_as_it_is(local, labels):
    address = parse_address(f"{local}@{'.'.join(labels)}")
    assert address.local == local
    assert address.needs_smtputf8 is not local.isascii()
    assert address.domain.count(".") == len(labels) - 1


@given(TRICKY)
def test_a_pair_keeps_its_name_exactly_or_is_refused(name):
    try:
        mailbox = parse_mailbox((name, "a@b.c"))
    except AddressError:
        return
    assert mailbox.display_name == name
    assert name.isprintable() or not set(name) & set("\r\n\0\x7f\x85\u2028")
