"""How much work hostile sizes make: refused, or in proportion to what was handed in.

Calls of functions, in Python and in C, are counted, not seconds: twice as much input must not make
much more than twice as many. What happens inside one call in C is bounded by the way it is called:
for each call there is one result, no longer than its input by a constant factor.
"""

from __future__ import annotations

import contextlib
import email
import sys
import tracemalloc
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart

import pytest
from letters import hello

from txmail.address import parse_address
from txmail.exceptions import MessageTooLarge, TxmailError
from txmail.message import Attachment, to_envelope
from txmail.message.mime import gate
from txmail.message.mime.encodings import encode_body, encode_text

MB = 1024 * 1024


def calls(function) -> int:
    """How many calls `function` makes; what it raises of ours is not looked at."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        with contextlib.suppress(TxmailError):
            function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((text, 10 * MB) for text in ("x", "é", "=", " ", "你", "x ", "\0", "=?")),
        *((text, MB) for text in ("\r", "é\n", " \n", "\t\r", ".\r\n", "--=_\n", "x" * 77 + "\n")),
    ],
)
def test_a_text_is_rendered_without_a_loop_over_octets(text, size):
    small = calls(hello(body=text * (size // 40 // len(text.encode()))).to_envelope)
    large = hello(body=text * (size // len(text.encode())))
    # Lines are cut in C, or at least by one call for each; octets never are.
    assert calls(large.to_envelope) < min(40 * small, size // 57 * 2) + 100
    content = large.to_envelope().content
    assert max(map(len, content.split(b"\r\n"))) <= 78
    found = email.message_from_bytes(content).get_payload(decode=True)
    assert len(found) >= len(large.body.encode())


@pytest.mark.representative(every=10)
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
@pytest.mark.parametrize("data", [b"x", b"=", bytes(range(256)), b"\r", b" \r\n"])
def test_a_file_of_ten_megabytes_is_encoded_without_a_loop_over_octets(encoding, data):
    def encode(size):
        octets = data * (size // len(data))
        return lambda: encode_body(octets, encoding, text=False, field="data")

    small = calls(encode(MB // 4))
    assert calls(encode(10 * MB)) < min(40 * small, 10 * MB // 57 * 2) + 100


def test_memory_is_a_small_multiple_of_the_message():
    for text in ("x" * 4 * MB, "é" * 2 * MB, "你好" * (MB // 2), "x\n" * 2 * MB):
        octets = text.encode()
        tracemalloc.start()
        encode_text(octets)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * len(octets)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject", "x" * 10 * MB),
        ("subject", "é" * 10 * MB),
        ("subject", "=?" * 5 * MB),
        ("subject", "=?utf-8?q?a?= " * MB),
        ("recipients", [("x" * 10 * MB, "a@b.c")]),
        ("recipients", ["x" * 10 * MB + " <a@b.c>"]),
        ("sender", '"' + "\\x" * 5 * MB + '" <a@b.c>'),
        ("extra_headers", {"X-Tag": "%*=" * MB}),
        ("extra_headers", {"x" * 10 * MB: "y"}),
        ("message_id", "<" + "x" * 10 * MB + "@b.c>"),
        ("list_id", " " * 10 * MB + "<a.b>"),
        ("list_unsubscribe", "https://" + "x" * 10 * MB),
        ("list_unsubscribe", ["https://x.y"] * MB),
        ("attachments", [Attachment("x" * 10 * MB, "text/plain", data=b"")]),
        ("attachments", [Attachment("x", "text/plain; a=" + "b" * 10 * MB, data=b"")]),
        ("attachments", [Attachment("x", "text/plain", data=b"", disposition="x;" * 5 * MB)]),
        ("attachments", [Attachment("x", "text/plain", data=b"", content_id="x" * 10 * MB)]),
    ],
)
def test_a_value_of_ten_megabytes_is_refused_before_it_is_looked_at(field, value):
    message = hello(**{field: value})
    assert calls(message.to_envelope) < 500
    with pytest.raises(TxmailError) as caught:
        message.to_envelope()
    assert caught.value.field in (field, *OTHER_FIELDS)
    assert len(str(caught.value)) < 500


#: what names a header or an argument of an attachment
OTHER_FIELDS = ("X-Tag", "filename", "content_type", "disposition", "content_id")


@pytest.mark.parametrize("as_pairs", [False, True])
def test_a_hundred_thousand_headers_are_refused_before_they_are_looked_at(as_pairs):
    headers = {f"X-{number}": "x" for number in range(100_000)}
    message = hello(extra_headers=headers.items() if as_pairs else headers)
    assert calls(message.to_envelope) < 500
    for use in (message.to_envelope, message.validate):
        with pytest.raises(MessageTooLarge) as caught:
            use()
        assert caught.value.field == "extra_headers"
    assert message.is_bad_headers()


def test_a_hundred_thousand_headers_of_the_standard_library_are_refused():
    message = EmailMessage()
    for number in range(100_000):
        message.set_raw(f"X-{number}", "x")
    message.set_raw("From", "me@x.y")
    message.set_raw("To", "a@b.c")
    message.set_payload("text")
    with pytest.raises(MessageTooLarge):
        to_envelope(message)


def test_headers_up_to_the_bound_are_written_in_proportion():
    def work(count):
        headers = [(f"X-{number:05}", "word " * 4 + "é") for number in range(count)]
        return calls(hello(extra_headers=headers).to_envelope)

    assert work(1600) < 5 * work(400)


@pytest.mark.parametrize("field", ["recipients", "cc"])
def test_a_million_addresses_that_would_be_shown_are_refused_before_they_are_parsed(field):
    message = hello(**{field: [f"a{number}@example.com" for number in range(1_000_000)]})
    parse_address.__globals__["_parse"].cache_clear()
    assert calls(message.to_envelope) < 500
    with pytest.raises(MessageTooLarge) as caught:
        message.to_envelope()
    assert caught.value.field == "recipients"


def test_addresses_that_nobody_sees_are_taken_in_proportion():
    def work(count):
        entries = [f"b{count}-{number}@example.com" for number in range(count)]
        message = hello(recipients=None, bcc=entries)
        done = calls(message.to_envelope)
        assert message.to_envelope().recipients == tuple(entries)
        return done

    assert work(20_000) < 5 * work(5_000)


def nested(depth):
    message = inner = MIMEMultipart()
    for _ in range(depth - 1):
        child = MIMEMultipart()
        inner.attach(child)
        inner = child
    inner.attach(EmailMessage())
    message["From"], message["To"] = "me@x.y", "a@b.c"
    return message


def test_nesting_of_five_hundred_is_refused_at_the_bound():
    with pytest.raises(MessageTooLarge, match="nested"):
        to_envelope(nested(500))
    assert calls(lambda: to_envelope(nested(500))) < 2 * calls(lambda: nested(500))


def test_an_attached_message_may_be_nested_as_it_likes_for_it_is_data():
    inner = b"".join(b"Content-Type: message/rfc822\r\n\r\n" for _ in range(500)) + b"text\r\n"
    message = hello(attachments=[Attachment("a.eml", "message/rfc822", inner)])
    message.to_envelope()  # what is remembered from now on is not counted
    assert calls(message.to_envelope) < 500
    assert inner in message.to_envelope().content


def test_boundaries_that_are_foretold_cost_one_more_try_each_time():
    message = hello(html="<p>", message_id="<1@x.y>", attachments=[Attachment("a", data=b"x")])
    plain = calls(message.to_envelope)
    found = email.message_from_bytes(message.to_envelope().content).get_boundary()
    message.body = f"--{found}\n" * 10_000
    assert calls(message.to_envelope) < 2 * plain


def test_the_gate_scans_a_large_content_in_a_settled_number_of_calls():
    def work(lines):
        content = hello().to_envelope().content
        return calls(lambda: gate.check(content + (b"x" * 70 + b"\r\n") * lines))

    assert work(100_000) == work(1000)
