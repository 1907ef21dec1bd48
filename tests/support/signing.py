"""Signatures of messages, made and verified by the programs that people use."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def _run(*command, octets=b"", **options):
    return subprocess.run(
        [str(word) for word in command], input=octets, capture_output=True, timeout=60, **options
    )


def program(name: str) -> str:
    """Where the program is; the test is skipped where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} command")
    return path


class SMime:
    """A key and a certificate, and the openssl command."""

    protocol, micalg = "application/pkcs7-signature", "sha-256"

    def __init__(self, folder: Path) -> None:
        self._openssl = program("openssl")
        self.folder = folder
        self._key, self._certificate = folder / "key.pem", folder / "certificate.pem"
        subject = ("-subj", "/CN=Ann/emailAddress=ann@example.com")
        usage = ("-addext", "extendedKeyUsage=emailProtection")
        made = _run(
            *(self._openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", self._key, "-out", self._certificate, *subject, *usage),
        )
        assert made.returncode == 0, made.stderr

    def sign(self, entity: bytes) -> bytes:
        """The detached signature over `entity`."""
        made = _run(
            *(self._openssl, "smime", "-sign", "-binary", "-outform", "DER"),
            *("-signer", self._certificate, "-inkey", self._key),
            octets=entity,
        )
        assert made.returncode == 0, made.stderr
        return made.stdout

    def message(self, entity: bytes, *options: str) -> bytes:
        """The MIME entity that openssl itself makes of `entity` and its signature."""
        made = _run(
            *(self._openssl, "smime", "-sign", *options),
            *("-signer", self._certificate, "-inkey", self._key),
            octets=entity,
        )
        assert made.returncode == 0, made.stderr
        return made.stdout

    def verifies(self, entity: bytes, signature: bytes) -> bool:
        file = self.folder / "signature"
        file.write_bytes(signature)
        return self._verified(
            "-inform", "DER", "-in", file, "-content", "/dev/stdin", octets=entity
        )

    def verifies_message(self, content: bytes) -> bool:
        """True if openssl, which reads the MIME structure itself, says so."""
        return self._verified(octets=content)

    def _verified(self, *options, octets: bytes) -> bool:
        return _run(
            *(self._openssl, "smime", "-verify", "-binary", *options),
            *("-CAfile", self._certificate, "-purpose", "any"),
            octets=octets,
        ).returncode == 0  # fmt: skip


class Pgp:
    """A key in a GnuPG home of its own, and the gpg command."""

    protocol, micalg = "application/pgp-signature", "pgp-sha512"

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        self.folder = folder
        self._options = (program("gpg"), "--batch", "--quiet", "--homedir", folder)
        self._options += ("--passphrase", "", "--pinentry-mode", "loopback")
        made = self._gpg(
            *("--quick-generate-key", "Ann <ann@example.com>", "ed25519", "sign", "never")
        )
        assert made.returncode == 0, made.stderr

    def sign(self, entity: bytes) -> bytes:
        """The detached signature over `entity`."""
        options = ("--armor", "--digest-algo", "sha512", "--detach-sign")
        made = self._gpg(*options, octets=entity)
        assert made.returncode == 0, made.stderr
        return made.stdout

    def verifies(self, entity: bytes, signature: bytes) -> bool:
        file = self.folder / "signature"
        file.write_bytes(signature)
        return self._gpg("--verify", file, "-", octets=entity).returncode == 0

    def close(self) -> None:
        """End the agent that gpg has started."""
        _run(program("gpgconf"), "--homedir", self.folder, "--kill", "all")

    def _gpg(self, *arguments, octets: bytes = b""):
        return _run(*self._options, *arguments, octets=octets)


class Octets:
    """A signature that is the entity itself: it verifies only if not an octet has changed."""

    protocol, micalg = "application/x-octets", "none"

    def sign(self, entity: bytes) -> bytes:
        return entity

    def verifies(self, entity: bytes, signature: bytes) -> bool:
        return entity == signature


def raw_parts(content: bytes, media_type: str) -> list[bytes]:
    """The parts of the first multipart of this type, read off the octets without a parser."""
    assert b"\n" not in content.replace(b"\r\n", b"")
    header = re.search(rb"Content-Type: %b;(?:[^\r]|\r\n[ \t])*" % media_type.encode(), content)
    assert header, content.decode("latin-1")
    boundary = re.search(rb'boundary="?([^";\r]+)', header[0])[1]
    delimiter = rb"(?:\A|\r\n)--%b(?:--)?\r\n" % re.escape(boundary)
    return re.split(delimiter, content[header.end() :])[1:-1]


def signed_entity(content: bytes) -> tuple[bytes, bytes]:
    """What was signed in `content`, and the signature."""
    entity, signature = raw_parts(content, "multipart/signed")
    return entity, base64.b64decode(signature.partition(b"\r\n\r\n")[2])
