"""`DummyMailer`: what the tests of an application rely on."""

from email.message import EmailMessage

import pytest
import transaction

from txmail import Attachment, DummyMailer, Envelope, Message
from txmail.exceptions import (
    AddressError,
    BadHeaders,
    ConfigurationError,
    DeliveryRefused,
    DeliveryUnavailable,
    InvalidMessage,
    TransactionClosed,
)


@pytest.fixture
def tm():
    return transaction.TransactionManager(explicit=True)


@pytest.fixture
def dummy(tm):
    return DummyMailer(transaction_manager=tm, default_sender="shop@example.com")


def message(subject="Hello", **arguments):
    return Message(subject, ["ann@example.com"], "Text", **arguments)


def test_mail_is_pending_before_the_commit_and_in_the_outbox_after_it(tm, dummy):
    with tm:
        dummy.send(message())
        assert dummy.outbox == []
        assert [m.subject for m in dummy.pending] == ["Hello"]
    assert [m.subject for m in dummy.outbox] == ["Hello"]
    assert dummy.pending == []
    assert dummy.queue == []


def test_aborted_mail_is_nowhere(tm, dummy):
    tm.begin()
    dummy.send(message())
    tm.abort()
    assert (dummy.outbox, dummy.pending, dummy.envelopes) == ([], [], [])


def test_a_rolled_back_savepoint_takes_its_mail_with_it(tm, dummy):
    with tm:
        dummy.send(message("kept"))
        savepoint = tm.savepoint()
        dummy.send(message("gone"))
        savepoint.rollback()
        assert [m.subject for m in dummy.pending] == ["kept"]
    assert [m.subject for m in dummy.outbox] == ["kept"]


def test_mail_is_in_the_outbox_if_another_manager_fails_in_finish_for_it_would_be_out(tm, dummy):
    class Broken:
        transaction_manager = tm

        def nothing(self, transaction):
            pass

        abort = tpc_begin = commit = tpc_vote = tpc_abort = nothing

        def tpc_finish(self, transaction):
            raise RuntimeError("the disk is gone")

        def sortKey(self):
            return "a"

    transaction_ = tm.begin()
    transaction_.join(Broken())
    dummy.send(message())
    with pytest.raises(RuntimeError):
        tm.commit()
    # A real mailer has sent it by then, and so the dummy says what has happened.
    assert [m.subject for m in dummy.outbox] == ["Hello"]


def test_the_outbox_holds_copies(tm, dummy):
    mine = message()
    with tm:
        dummy.send(mine)
        mine.subject = "Changed"
        mine.add_recipient("bob@example.com")
    (kept,) = dummy.outbox
    assert kept.subject == "Hello"
    assert kept.recipients == ["ann@example.com"]
    assert kept is not mine


def test_envelopes_are_what_would_have_gone_over_the_wire(tm, dummy):
    with tm:
        message_id = dummy.send(message(bcc=["bob@example.com"]))
    (envelope,) = dummy.envelopes
    assert envelope.sender == "shop@example.com"
    assert envelope.recipients == ("ann@example.com", "bob@example.com")
    assert envelope.message_id == message_id
    assert b"bob@example.com" not in envelope.content


def test_stdlib_messages_and_envelopes_are_taken_too(tm, dummy):
    stdlib = EmailMessage()
    stdlib["To"], stdlib["Subject"] = "ann@example.com", "From the stdlib"
    stdlib.set_content("Text\n")
    with tm:
        dummy.send(stdlib)
    ready = Envelope("a@example.com", ["b@example.com"], dummy.envelopes[0].content)
    with tm:
        dummy.send(ready)
    assert dummy.outbox[0]["Subject"] == "From the stdlib"
    assert dummy.outbox[0] is not stdlib
    assert dummy.outbox[1] is ready


@pytest.mark.parametrize(
    ("bad", "error", "field"),
    [
        (lambda: Message("x", [], "b"), InvalidMessage, "recipients"),
        (lambda: Message("x", ["nobody"], "b"), AddressError, "recipients"),
        (lambda: Message("x\nBcc: a@b.c", ["a@b.c"], "b"), BadHeaders, "subject"),
        (lambda: Message("x", ["a@b.c"]), InvalidMessage, "body"),
        (lambda: "a string", InvalidMessage, "message"),
    ],
)
def test_it_refuses_what_the_real_mailer_refuses(tm, dummy, bad, error, field):
    tm.begin()
    with pytest.raises(error) as caught:
        dummy.send(bad())
    assert caught.value.field == field
    tm.abort()


def test_a_message_without_sender_is_refused_where_there_is_no_default(tm):
    tm.begin()
    with pytest.raises(InvalidMessage, match="sender"):
        DummyMailer(transaction_manager=tm).send(message())
    tm.abort()


def test_it_can_be_told_to_refuse_a_recipient(tm, dummy):
    dummy.refuse("bob@example.com")
    tm.begin()
    dummy.send(message())
    dummy.send(Message("x", ["ann@example.com", "bob@example.com"], "b"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    assert [str(o.status) for o in caught.value.outcomes] == ["unsent", "unsent", "failed"]
    tm.abort()
    assert dummy.outbox == []
    dummy.accept_all()
    with tm:
        dummy.send(Message("x", ["bob@example.com"], "b"))
    assert len(dummy.outbox) == 1


def test_it_can_be_told_to_be_unavailable(tm, dummy):
    dummy.refuse("*", "451 4.3.0 try again later")
    tm.begin()
    dummy.send(message())
    with pytest.raises(DeliveryUnavailable, match=r"451 4\.3\.0"):
        tm.commit()
    tm.abort()
    with pytest.raises(ConfigurationError, match="reply"):
        dummy.refuse("*", "250 fine")


def test_binds_share_the_lists_and_differ_in_manager_and_sender(tm, dummy):
    other = transaction.TransactionManager(explicit=True)
    bound = dummy.bind(transaction_manager=other, default_sender="other@example.com")
    with other:
        bound.send(message("bound"))
    with tm:
        dummy.send(message("mine"))
    assert [m.subject for m in dummy.outbox] == ["bound", "mine"]
    assert bound.outbox is dummy.outbox
    assert [e.sender for e in bound.envelopes] == ["other@example.com", "shop@example.com"]
    with pytest.raises(ConfigurationError, match="sendr"):
        dummy.bind(sendr="x")


def test_the_repr_of_an_empty_outbox_names_mail_that_waits_for_a_commit(tm, dummy):
    assert repr(dummy.outbox) == "[]"
    tm.begin()
    dummy.send(message("Your order"))
    assert "1 waiting for a commit" in repr(dummy.outbox)
    assert "Your order" in repr(dummy.outbox)
    assert "1 waiting" in repr(dummy)
    tm.commit()
    assert "Your order" in repr(dummy.outbox)
    assert "waiting" not in repr(dummy.outbox)


def test_without_transactions_mail_is_in_the_outbox_at_once():
    dummy = DummyMailer(transactional=False, default_sender="shop@example.com")
    dummy.send(message())
    transaction.abort()
    assert [m.subject for m in dummy.outbox] == ["Hello"]
    dummy.refuse("ann@example.com")
    with pytest.raises(DeliveryRefused):
        dummy.send(message())


def test_send_immediately_needs_no_transaction(tm, dummy):
    (outcome,) = dummy.send_immediately(message())
    assert outcome.status == "accepted"
    assert [m.subject for m in dummy.outbox] == ["Hello"]
    dummy.refuse("*")
    (outcome,) = dummy.send_immediately(message(), fail_silently=True)
    assert outcome.status == "failed"
    assert dummy.last_outcomes == (outcome,)
    assert len(dummy.outbox) == 1


def test_send_where_no_commit_follows_raises(tm, dummy):
    transaction_ = tm.begin()
    caught = []

    def hook(success):
        try:
            dummy.send(message("too late"))
        except TransactionClosed as error:
            caught.append(error)

    transaction_.addAfterCommitHook(hook)
    tm.commit()
    assert len(caught) == 1
    assert dummy.outbox == []


def test_settings_are_read():
    dummy = DummyMailer.from_settings(
        {"mail.default_sender": "shop@example.com", "mail.dummy_transactional": "false"}
    )
    assert dummy.transactional is False
    dummy.send(message())
    assert dummy.envelopes[0].sender == "shop@example.com"


def test_attachments_and_inline_parts_reach_the_envelope(tm, dummy):
    with tm:
        dummy.send(
            message(
                attachments=[
                    Attachment("a.txt", "text/plain", "Attached"),
                    Attachment("b.bin", data=b"\0"),
                ]
            )
        )
    assert b"filename=a.txt" in dummy.envelopes[0].content.replace(b'"', b"")
