"""A certificate authority for tests, made with the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

#: What a server's certificate is for, where nothing else is said.
LOCAL = "DNS:localhost,IP:127.0.0.1,IP:::1"

_CA = """\
[req]
distinguished_name = name
x509_extensions = ca
prompt = no
[name]
CN = An authority for tests
[ca]
{extensions}
"""

#: What RFC 5280 wants of an authority's certificate, and of a server's.
OF_AN_AUTHORITY = {
    "basicConstraints": "critical,CA:TRUE",
    "keyUsage": "critical,keyCertSign,cRLSign",
    "subjectKeyIdentifier": "hash",
}
OF_A_SERVER = {
    "basicConstraints": "critical,CA:FALSE",
    "keyUsage": "critical,digitalSignature",
    "subjectKeyIdentifier": "hash",
    "authorityKeyIdentifier": "keyid",
}


def _lines(extensions: Mapping[str, str], changes: Mapping[str, str]) -> str:
    """The extensions as openssl reads them; an empty one in `changes` is left out."""
    changed = {**extensions, **changes}
    return "".join(f"{name} = {value}\n" for name, value in changed.items() if value)


class Authority:
    """An authority whose files are below `folder`."""

    def __init__(self, folder: Path, name: str = "ca", **extensions: str) -> None:
        """`extensions` are other ones than `OF_AN_AUTHORITY`; an empty one is left out."""
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl command to make certificates with")
        self.folder = folder / name
        self.folder.mkdir()
        self.cafile, self._key = self.folder / "ca.pem", self.folder / "ca.key"
        self._count = 0
        self._write("ca.cnf", _CA.format(extensions=_lines(OF_AN_AUTHORITY, extensions)))
        self._openssl(
            *("req", "-x509", "-config", "ca.cnf", "-days", "2"),
            *(*self._new_key("ca.key"), "-out", "ca.pem"),
        )

    def issue(
        self,
        names: str = LOCAL,
        *,
        days: int = 2,
        subject: str = "/CN=localhost",
        **extensions: str,
    ) -> tuple[Path, Path]:
        """Certificate and key for `names`; one that has expired if `days` is below 0.

        Without `names` it has no subject alternative names. `extensions` are other ones than
        `OF_A_SERVER`; an empty one is left out.
        """
        self._count += 1
        stem = f"leaf{self._count}"
        lines = _lines(OF_A_SERVER, {"subjectAltName": names, **extensions})
        self._write(f"{stem}.ext", lines)
        self._openssl(
            *("req", "-new", "-subj", subject),
            *(*self._new_key(f"{stem}.key"), "-out", f"{stem}.csr"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{stem}.csr", "-out", f"{stem}.pem", "-days", str(days)),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{stem}.ext"),
        )
        return self.folder / f"{stem}.pem", self.folder / f"{stem}.key"

    def server(
        self, names: str = LOCAL, *, days: int = 2, demand: bool = False, **more: str
    ) -> ssl.SSLContext:
        """A server's context with a new certificate; with `demand` clients need one of ours.

        `more` is for `issue`.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(names, days=days, **more))
        if demand:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.cafile)
        return context

    def _new_key(self, name: str) -> tuple[str, ...]:
        return (
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            name,
        )

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.folder)
