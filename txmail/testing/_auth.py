"""The server's side of SMTP AUTH (RFC 4954).

An exchange is a generator: it yields challenges, receives the client's answers, and returns True if
they are right. An answer that is not base64 raises ValueError.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Generator, Mapping
from functools import partial

Exchange = Generator[bytes, bytes, bool]

#: Iterations of the hash: the minimum of RFC 7677 section 4.
ITERATIONS = 4096


def _decode(answer: bytes) -> bytes:
    return b"" if answer == b"=" else base64.b64decode(answer, validate=True)


def _right(credentials: Mapping[str, str], user: bytes, password: bytes) -> bool:
    expected = credentials.get(user.decode("utf-8", "replace"))
    return expected is not None and hmac.compare_digest(expected.encode("utf-8"), password)


def _plain(
    credentials: Mapping[str, str], initial: bytes | None, binding: bytes | None
) -> Exchange:
    answer = initial if initial is not None else (yield b"")
    _, _, rest = _decode(answer).partition(b"\0")
    user, _, password = rest.partition(b"\0")
    return _right(credentials, user, password)


def _login(
    credentials: Mapping[str, str], initial: bytes | None, binding: bytes | None
) -> Exchange:
    user = initial if initial is not None else (yield b"Username:")
    password = yield b"Password:"
    return _right(credentials, _decode(user), _decode(password))


def _cram_md5(
    credentials: Mapping[str, str], initial: bytes | None, binding: bytes | None
) -> Exchange:
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


def _xoauth2(
    credentials: Mapping[str, str], initial: bytes | None, binding: bytes | None
) -> Exchange:
    answer = _decode(initial if initial is not None else (yield b""))
    user, _, rest = answer.removeprefix(b"user=").partition(b"\1auth=Bearer ")
    token, end, _ = rest.partition(b"\1\1")
    if end and _right(credentials, user, token):
        return True
    yield b'{"status":"401","schemes":"bearer"}'
    return False


def _scram(
    credentials: Mapping[str, str], initial: bytes | None, binding: bytes | None, *, plus: bool
) -> Exchange:
    """SCRAM-SHA-256 (RFC 5802, RFC 7677); `binding` is the connection's tls-unique."""
    first = _decode(initial if initial is not None else (yield b""))
    flag, _, rest = first.partition(b",")
    authzid, _, bare = rest.partition(b",")
    fields = _fields(bare)
    user = fields.get(b"n", b"").replace(b"=2C", b",").replace(b"=3D", b"=")
    password = credentials.get(user.decode("utf-8", "replace"))
    # A client that says "y" believes that the server offers no channel binding. If the server does,
    # an attacker in between took the offer away.
    allowed = [b"p=tls-unique"] if plus else [b"n"] if binding else [b"n", b"y"]
    if flag not in allowed or password is None or not fields.get(b"r"):
        return False

    nonce = fields[b"r"] + secrets.token_urlsafe(12).encode("ascii")
    salt = secrets.token_bytes(12)
    challenge = b"r=%b,s=%b,i=%d" % (nonce, base64.b64encode(salt), ITERATIONS)
    final = _decode((yield challenge))
    without_proof, _, proof = final.rpartition(b",p=")
    bound = flag + b"," + authzid + b"," + ((binding or b"") if plus else b"")
    if without_proof != b"c=" + base64.b64encode(bound) + b",r=" + nonce:
        return False

    signed = b",".join((bare, challenge, without_proof))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("utf-8"), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    signature = hmac.digest(stored, signed, "sha256")
    key = bytes(a ^ b for a, b in zip(_decode(proof), signature, strict=True))
    if not hmac.compare_digest(hashlib.sha256(key).digest(), stored):
        return False
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    yield b"v=" + base64.b64encode(hmac.digest(server_key, signed, "sha256"))
    return True


def _fields(message: bytes) -> dict[bytes, bytes]:
    pairs = (part.partition(b"=") for part in message.split(b","))
    return {key: value for key, _, value in pairs}


#: The mechanisms by their names in the EHLO reply, strongest first. Arguments: user names with
#: passwords (for XOAUTH2: tokens), the initial response, and the channel binding data, or None.
MECHANISMS: Mapping[str, Callable[[Mapping[str, str], bytes | None, bytes | None], Exchange]] = {
    "SCRAM-SHA-256-PLUS": partial(_scram, plus=True),
    "SCRAM-SHA-256": partial(_scram, plus=False),
    "CRAM-MD5": _cram_md5,
    "PLAIN": _plain,
    "LOGIN": _login,
    "XOAUTH2": _xoauth2,
}
