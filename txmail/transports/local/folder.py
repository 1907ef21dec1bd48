"""The file transport: keeps each envelope as an ``.eml`` file, for development and for archives.

A file is there as a whole or not at all. The transport writes it under a hidden name in the same
folder, syncs it, and gives it its name by a link, which never replaces a file. The content has the
same octets as the envelope's. Before it stand the addresses of the envelope, as in a final delivery
(RFC 5321 section 4.4)::

    Return-Path: <shop@example.com>
    X-Envelope-To: ann@example.com

The name is X-Envelope-To and not Delivered-To, because Postfix takes the latter for a loop when
such a file is sent again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from zope.interface import implementer

from ...common import system
from ...common.private_folder import WritableByAll, make_private_folder
from ...common.shown import printable
from ...envelope import Envelope
from ...exceptions import ConfigurationError, TransportError
from ...interfaces import ITransport
from ...outcome import Action, Status
from .session import LocalSession, Result, deferred, in_doubt

#: Names of the headers before the content. A program that sends such a file again has to remove
#: them: they tell who had a blind copy.
RETURN_PATH = "Return-Path"
ENVELOPE_TO = "X-Envelope-To"

#: Errors after which another try may succeed although no person has acted.
_PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EAGAIN,
        errno.EINTR,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
    }
)
#: Flags that not every system has. `FileTransport.open` needs the first two.
_DIRECTORY, _NOFOLLOW, _CLOEXEC = (
    getattr(os, name, 0) for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
)
_FOLDER_FLAGS = os.O_RDONLY | _DIRECTORY | _NOFOLLOW | _CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC


def reason_of(error: OSError) -> str:
    """The reason why a folder could not be made, with the path if another folder is the cause."""
    if isinstance(error, WritableByAll):
        return f"{error.strerror}: {printable(error.filename)}; take the right away (chmod o-w)"
    return error.strerror or type(error).__name__


class LeftBehind(OSError):
    """An error came after a file had its name, and the name could not be removed."""


def new_name() -> str:
    """A new file name. Names sort by time (UTC), and have nothing of a message in them."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(8)}.eml"


class Folder:
    """A folder of ``.eml`` files. The files have mode 0600."""

    def __init__(self, path: str) -> None:
        """`path` is an absolute path; see `make`."""
        self.path = path

    def make(self) -> None:
        """See `make_private_folder`. The last component may not be a link. Raises OSError."""
        above, name = os.path.split(self.path)
        make_private_folder(os.path.join(os.path.realpath(above), name))
        with self.opened():
            pass

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The folder's file descriptor. A link in the last component is not followed."""
        folder = os.open(self.path, _FOLDER_FLAGS)
        try:
            yield folder
        finally:
            os.close(folder)

    def keep(self, name: str, sender: str, recipients: Sequence[str], content: bytes) -> None:
        """Write the file `name`, and sync it to the disk.

        Raises OSError, and leaves no file then, or `LeftBehind`.
        """
        octets = _head(sender, recipients) + content
        with self.opened() as folder:
            hidden = f".{name}.tmp"
            file = os.open(hidden, _FILE_FLAGS, 0o600, dir_fd=folder)
            named = False
            try:
                _write(file, octets)
                named = True
                try:
                    os.link(
                        hidden, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False
                    )
                except OSError:
                    named = False  # a file of that name is another program's
                    raise
                os.unlink(hidden, dir_fd=folder)
                os.fsync(folder)
            except BaseException as error:
                _remove(folder, hidden)
                gone = not named or _remove(folder, name)
                if not gone and isinstance(error, OSError):
                    raise LeftBehind(f"{name} may be there: {error.strerror}") from error
                raise

    def has(self, name: str) -> bool:
        """True if there is a file `name`, or if that cannot be found out."""
        try:
            with self.opened() as folder:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True


def _head(sender: str, recipients: Sequence[str]) -> bytes:
    lines = [f"{RETURN_PATH}: <{printable(sender)}>"]
    lines += [f"{ENVELOPE_TO}: {printable(recipient)}" for recipient in recipients]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "backslashreplace")


def _write(file: int, octets: bytes) -> None:
    """Write `octets`, sync, and close `file`."""
    try:
        os.fchmod(file, 0o600)
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _remove(folder: int, name: str) -> bool:
    """Remove `name`; True if it is not there any more."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@implementer(ITransport)
class FileTransport:
    """Keeps envelopes as files in a folder. See `ITransport`."""

    #: there is no server to ask: writing the file is the delivery
    asks_server = False

    def __init__(self, path: str | os.PathLike[str], name: Callable[[], str] = new_name) -> None:
        """`path` is the folder, which `open` makes. Raises `ConfigurationError`."""
        text = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text:
            raise ConfigurationError("the path of a folder is needed", field="path", value=text)
        # Now: the working directory may change. Links are not resolved.
        self.path = os.path.abspath(text)
        self._folder = Folder(self.path)
        self._name = name

    @property
    def name(self) -> str:
        """Such as ``file:///var/mail/out``."""
        return f"file://{printable(self.path)}"

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> FileSession:
        """See `ITransport`. Raises `TransportError` if the folder cannot be made or written to.

        Raises `ConfigurationError` on a system that lacks what it needs.
        """
        if problem := system.lacks("O_DIRECTORY", "O_NOFOLLOW", "dir_fd"):
            raise ConfigurationError(problem, field=self.name)
        try:
            self._folder.make()
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "this user may not write to it")
        except OSError as error:
            raise TransportError(
                f"{self.name}: {reason_of(error)}", temporary=error.errno in _PASSING
            ) from error
        return FileSession(self._folder, self._name, self.name)

    def close(self) -> None:
        """See `ITransport`. Nothing is open."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class FileSession(LocalSession):
    """See `ISession`."""

    def __init__(self, folder: Folder, name: Callable[[], str], host: str) -> None:
        super().__init__(host)
        self._folder = folder
        self._name = name

    def hand_over(self, envelope: Envelope, seconds: float | None) -> None:
        """See `LocalSession`. A write to the disk has no time limit."""
        name = self._name()
        try:
            self._folder.keep(name, envelope.sender, envelope.recipients, envelope.content)
            self.result = Result(Status.ACCEPTED, reason=f"kept as {name}")
        except LeftBehind as error:
            self.result = in_doubt(f"{self.host}: {error}")
        except OSError as error:
            action = Action.DEFER if error.errno in _PASSING else Action.STOP_ROUTE
            self.result = deferred(f"{self.host}: {error.strerror}", action)
        except BaseException:
            if self._folder.has(name):
                self.result = in_doubt(f"{self.host}: interrupted when {name} was there")
            raise
