"""The file transport: whole files with names of ours, or nothing."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from letters import SENDER, letter, statuses
from zope.interface.verify import verifyObject

from txmail import Envelope, Mailer, transport_from_url
from txmail.exceptions import (
    ConfigurationError,
    DeliveryUnavailable,
    PartialDelivery,
    TransportError,
)
from txmail.interfaces import ISession, ITransport
from txmail.transports.local import folder as file
from txmail.transports.local.folder import FileTransport, Folder

CONTENT = (
    b"From: a@example.com\r\nDate: x\r\nMessage-ID: <1@example.com>\r\n"
    b"Subject: x\r\n\r\nFrom here\r\n.\r\n\r\n"
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mails"


def envelope(*recipients, sender=SENDER, content=CONTENT):
    return Envelope(sender, recipients or ("ann@example.com",), content)


def send(folder, *envelopes, strict=False):
    session = FileTransport(folder).open()
    return list(session.send(envelopes or [envelope()], strict=strict))


def mails(folder):
    """The content of all files that are there, whatever they are called, in their order."""
    return [(folder / name).read_bytes() for name in sorted(os.listdir(folder))]


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_message_is_a_file_with_its_envelope_in_front(folder):
    (outcome,) = send(folder, envelope("ann@example.com", "bob@example.com"))[:1]
    assert outcome.status == "accepted"
    assert mails(folder) == [
        b"Return-Path: <app@example.com>\r\n"
        b"X-Envelope-To: ann@example.com\r\n"
        b"X-Envelope-To: bob@example.com\r\n" + CONTENT
    ]
    (name,) = os.listdir(folder)
    assert outcome.reason == f"kept as {name}"
    assert name.endswith(".eml")


def test_the_null_sender_is_an_empty_path(folder):
    send(folder, envelope(sender="<>"))
    assert mails(folder)[0].startswith(b"Return-Path: <>\r\n")


def test_names_are_ours_and_sort_by_time(folder):
    for number in range(5):
        send(folder, envelope(content=CONTENT.replace(b"Subject: x", b"Subject: ../%d" % number)))
    assert [m.split(b"../")[1][:1] for m in mails(folder)] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_only_we_may_read_whatever_the_umask(folder, umask):
    previous = os.umask(umask)
    try:
        send(folder)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (name,) = os.listdir(folder)
    assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_the_mode_of_a_folder_that_is_there_is_its_owners_business(folder):
    folder.mkdir(mode=0o750)
    folder.chmod(0o750)
    send(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_parents_are_made_too(tmp_path):
    send(tmp_path / "a" / "b" / "c")
    assert len(mails(tmp_path / "a" / "b" / "c")) == 1


@pytest.mark.parametrize("there", [True, False], ids=["to a folder", "dangling"])
def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path, folder, there):
    target = tmp_path / "target"
    if there:
        target.mkdir()
    folder.symlink_to(target)
    with pytest.raises(TransportError) as caught:
        FileTransport(folder).open()
    assert caught.value.temporary is False
    assert not there or os.listdir(target) == []


def test_a_folder_that_becomes_a_link_is_not_followed_either(tmp_path, folder):
    target = tmp_path / "target"
    target.mkdir()
    session = FileTransport(folder).open()
    folder.rmdir()
    folder.symlink_to(target)
    (outcome,) = session.send([envelope()])
    assert (outcome.status, outcome.action) == ("deferred", "stop_route")
    assert os.listdir(target) == []


@pytest.mark.parametrize("prefix", ["", "."], ids=["its name", "its hidden name"])
@pytest.mark.parametrize("link", [True, False])
def test_what_has_the_name_already_is_left_alone(tmp_path, folder, prefix, link):
    folder.mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"other")
    taken = folder / (f".{'x.eml'}.tmp" if prefix else "x.eml")
    if link:
        taken.symlink_to(other)
    else:
        taken.write_bytes(b"other")
    session = FileTransport(folder, name=lambda: "x.eml").open()
    (outcome,) = session.send([envelope()])
    assert outcome.status == "deferred"
    assert taken.read_bytes() == other.read_bytes() == b"other"
    assert os.listdir(folder) == [taken.name]


# -- what goes wrong


@pytest.mark.parametrize("call", ["write", "fsync", "link", "unlink", "fchmod"])
def test_a_full_disk_defers_and_leaves_nothing(folder, monkeypatch, call):
    session = FileTransport(folder).open()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        outcomes = list(session.send([envelope(), envelope("bob@example.com")]))
    if call == "unlink":
        # Nothing can be taken away any more, not even the name it has already.
        assert statuses(outcomes) == ["in_doubt", "in_doubt"]
        return
    assert statuses(outcomes) == ["deferred", "unsent"]
    assert (outcomes[0].scope, outcomes[0].action) == ("route", "defer")
    assert "No space left" in outcomes[0].reason
    assert os.listdir(folder) == []


def test_a_folder_that_cannot_be_synced_takes_the_file_back(folder, monkeypatch):
    session = FileTransport(folder).open()
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert statuses(session.send([envelope()])) == ["deferred"]
    assert os.listdir(folder) == []


def test_a_disk_that_is_really_full_leaves_nothing_half_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        large = CONTENT + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 2000
        outcomes = send(disk / "mails", envelope(), envelope(content=large), envelope())
        assert statuses(outcomes) == ["accepted", "deferred", "unsent"]
        assert outcomes[1].action == "defer"
        assert len(mails(disk / "mails")) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("number", "action"),
    [
        (errno.ENOSPC, "defer"),
        (errno.EDQUOT, "defer"),
        (errno.EIO, "defer"),
        (errno.EROFS, "stop_route"),
        (errno.EACCES, "stop_route"),
    ],
)
def test_what_another_try_may_mend_is_told_from_what_a_person_has_to(
    folder, monkeypatch, number, action
):
    session = FileTransport(folder).open()

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    (outcome,) = session.send([envelope()])
    assert (outcome.status, outcome.action) == ("deferred", action)


def test_an_interruption_leaves_no_file(folder, keyboard, monkeypatch):
    session = FileTransport(folder).open()
    real = os.link

    def link(*arguments, **options):
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        list(session.send([envelope(), envelope("bob@example.com")]))
    assert os.listdir(folder) == []
    assert statuses(session.unsettled()) == ["unsent", "unsent"]


def test_no_descriptor_is_left_open(folder, monkeypatch):
    send(folder)
    before = sorted(os.listdir("/proc/self/fd"))
    send(folder)
    for call in ("write", "fsync", "link", "unlink"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, no_space)
            send(folder)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_is_a_file_is_found_out_at_open(folder):
    folder.write_text("")
    with pytest.raises(TransportError) as caught:
        FileTransport(folder).open()
    assert caught.value.temporary is False


# -- in a transaction


def test_files_are_written_in_the_vote_and_an_abort_leaves_nothing(folder, tm):
    mailer = Mailer(FileTransport(folder), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    tm.abort()
    assert not folder.exists()
    tm.begin()
    mailer.send(letter("two"))
    mailer.send(letter("three"))
    assert not folder.exists()
    tm.commit()
    assert [b"Subject: two" in mail for mail in mails(folder)] == [True, False]


def test_a_manager_that_says_no_before_the_vote_leaves_nothing(folder, tm):
    class Refusing:
        transaction_manager = tm

        def sortKey(self):
            return "a"

        def tpc_vote(self, transaction):
            raise ValueError("no")

        def _nothing(self, transaction):
            pass

        abort = tpc_begin = commit = tpc_finish = tpc_abort = _nothing

    mailer = Mailer(FileTransport(folder), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    tm.get().join(Refusing())
    with pytest.raises(ValueError, match="no"):
        tm.commit()
    assert mails(folder) == []


def test_a_commit_that_fails_says_whether_anything_was_kept(folder, tm, monkeypatch):
    mailer = Mailer(FileTransport(folder), transaction_manager=tm)
    kept, real = [], os.link

    def link(*arguments, **options):
        if kept:
            no_space()
        kept.append(real(*arguments, **options))

    monkeypatch.setattr(os, "link", link)
    tm.begin()
    mailer.send(letter("one"))
    mailer.send(letter("two"))
    with pytest.raises(PartialDelivery) as caught:
        tm.commit()
    assert statuses(caught.value.outcomes) == ["accepted", "deferred"]
    tm.abort()
    tm.begin()
    mailer.send(letter("three"))
    with pytest.raises(DeliveryUnavailable):
        tm.commit()
    assert len(mails(folder)) == 1


# -- contract and URL


def test_it_keeps_the_contracts(folder):
    transport = FileTransport(folder)
    assert verifyObject(ITransport, transport)
    session = transport.open()
    assert verifyObject(ISession, session)
    assert session.preflight([envelope()]) == []
    assert transport.asks_server is False


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///var/mail/out", "/var/mail/out"),
        ("file:/var/mail/out/", "/var/mail/out"),
        ("file://localhost/var/mail%20out", "/var/mail out"),
    ],
)
def test_a_url_names_the_folder(url, path):
    transport = transport_from_url(url)
    assert transport.path == path
    assert transport.name == f"file://{path}"


@pytest.mark.parametrize(
    "url", ["file:", "file:///", "file:mails", "file://mails", "file:///a?b=c", "file:///a%00b"]
)
def test_a_url_that_names_no_folder_is_refused(url):
    with pytest.raises(ConfigurationError, match=r"^url"):
        transport_from_url(url)


def test_a_relative_path_is_that_of_the_moment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transport = FileTransport(Path("mails"))
    monkeypatch.chdir("/")
    assert transport.path == str(tmp_path / "mails")


@pytest.mark.parametrize("path", ["", "a\0b", b"mails"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigurationError, match=r"^path"):
        FileTransport(path)


def test_addresses_of_others_cannot_add_lines(tmp_path):
    folder = Folder(str(tmp_path))
    folder.keep("x.eml", "a\r\nX: y", ["b\nc", "\ud800"], CONTENT)
    (mail,) = mails(tmp_path)
    assert mail.startswith(
        b"Return-Path: <a\\r\\nX: y>\r\nX-Envelope-To: b\\nc\r\nX-Envelope-To: \\ud800\r\nFrom:"
    )
    assert file.RETURN_PATH in mail.decode()
