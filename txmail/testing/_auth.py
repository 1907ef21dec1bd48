"""The server's side of SMTP AUTH (RFC 4954): PLAIN, LOGIN and CRAM-MD5.

An exchange is a generator: it yields challenges, is sent the client's answers, and returns whether
they were right. Answers that are not base64 raise ValueError.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable, Generator, Mapping

Exchange = Generator[bytes, bytes, bool]


def _decode(answer: bytes) -> bytes:
    return b"" if answer == b"=" else base64.b64decode(answer, validate=True)


def _right(credentials: Mapping[str, str], user: bytes, password: bytes) -> bool:
    expected = credentials.get(user.decode("utf-8", "replace"))
    return expected is not None and hmac.compare_digest(expected.encode("utf-8"), password)


def _plain(credentials: Mapping[str, str], initial: bytes | None) -> Exchange:
    answer = initial if initial is not None else (yield b"")
    _, _, rest = _decode(answer).partition(b"\0")
    user, _, password = rest.partition(b"\0")
    return _right(credentials, user, password)


def _login(credentials: Mapping[str, str], initial: bytes | None) -> Exchange:
    user = initial if initial is not None else (yield b"Username:")
    password = yield b"Password:"
    return _right(credentials, _decode(user), _decode(password))


def _cram_md5(credentials: Mapping[str, str], initial: bytes | None) -> Exchange:
    if initial is not None:
        return False
    challenge = f"<{secrets.token_hex(8)}@txmail.invalid>".encode("ascii")
    answer = yield challenge
    user, _, digest = _decode(answer).rpartition(b" ")
    password = credentials.get(user.decode("utf-8", "replace"))
    if password is None:
        return False
    expected = hmac.new(password.encode("utf-8"), challenge, "md5").hexdigest()
    return hmac.compare_digest(expected.encode("ascii"), digest)


#: The mechanisms by their names in the EHLO reply, strongest first.
MECHANISMS: Mapping[str, Callable[[Mapping[str, str], bytes | None], Exchange]] = {
    "CRAM-MD5": _cram_md5,
    "PLAIN": _plain,
    "LOGIN": _login,
}
