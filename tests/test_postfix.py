"""A real Postfix: it takes the mail of committed transactions and delivers it into files."""

from __future__ import annotations

from email.header import decode_header, make_header

import pytest
from databases import SQLITE, ZODB_KIND
from letters import letter, statuses
from postfix import AVAILABLE, NEEDS, running_postfix, within

from txmail import Message
from txmail.exceptions import DeliveryRefused

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=NEEDS)

MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
myhostname = mx.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
alias_maps =
alias_database =
maillog_file = {base}/log
maillog_file_prefixes = {base}
virtual_mailbox_domains = example.com
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = inline:{ ann@example.com=ann/, bob@example.com=bob/ }
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
"""


@pytest.fixture(scope="module")
def postfix():
    with running_postfix(MAIN_CF) as instance:
        yield instance


@pytest.fixture
def postfix_mailer(postfix, make_mailer):
    return make_mailer(postfix.url)


def delivered(postfix, user, subject):
    return [m for m in postfix.mail_of(user) if m["Subject"] == subject]


def test_postfix_delivers_the_mail_of_a_committed_transaction(
    tm, postfix, postfix_mailer, make_database
):
    database = make_database(ZODB_KIND)
    message = Message(
        "Grüße",
        ["ann@example.com"],
        body=".\n..two dots\nGrüße\n.",
        sender="app@example.com",
        bcc=["bob@example.com"],
    )
    with tm:
        database.write("order")
        message_id = postfix_mailer.send(message)
    assert database.values() == ["order"]
    assert statuses(postfix_mailer.last_outcomes) == ["accepted"] * 2
    within(20, lambda: postfix.mail_of("ann") and postfix.mail_of("bob"))
    for user in ("ann", "bob"):
        (received,) = [m for m in postfix.mail_of(user) if m["Message-ID"] == message_id]
        assert str(make_header(decode_header(received["Subject"]))) == "Grüße"
        assert received["Return-Path"] == "<app@example.com>"
        assert received["Bcc"] is None
        text = received.get_payload(decode=True).decode()
        assert text.splitlines() == [".", "..two dots", "Grüße", "."]


def test_postfix_gets_nothing_of_an_aborted_transaction(tm, postfix, postfix_mailer):
    tm.begin()
    postfix_mailer.send(letter("aborted"))
    tm.abort()
    with tm:
        postfix_mailer.send(letter("after the abort"))
    within(20, lambda: delivered(postfix, "ann", "after the abort"))
    assert delivered(postfix, "ann", "aborted") == []


def test_a_recipient_that_postfix_refuses_aborts_everything(
    tm, postfix, postfix_mailer, make_database
):
    database = make_database(SQLITE)
    tm.begin()
    database.write("order")
    for number in range(10):
        name = "nobody" if number == 4 else "ann"
        postfix_mailer.send(letter("refused together", f"{name}@example.com"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert statuses(caught.value.outcomes) == ["unsent"] * 4 + ["failed"] + ["unsent"] * 5
    assert caught.value.outcomes[4].reply.code == 550
    assert database.values() == []
    with tm:
        postfix_mailer.send(letter("after the refusal"))
    within(20, lambda: delivered(postfix, "ann", "after the refusal"))
    assert delivered(postfix, "ann", "refused together") == []


def test_fifty_mails_in_one_transaction_and_in_fifty_take_one_connection(
    tm, postfix, postfix_mailer
):
    before = postfix.connections()
    with tm:
        for _ in range(50):
            postfix_mailer.send(letter("bulk"))
    for _ in range(50):
        with tm:
            postfix_mailer.send(letter("one by one"))
    within(30, lambda: len(delivered(postfix, "ann", "bulk")) == 50)
    within(30, lambda: len(delivered(postfix, "ann", "one by one")) == 50)
    assert postfix.connections() == before + 1
