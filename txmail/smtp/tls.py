"""Makes TLS contexts for SMTP, and says what a server has to prove (RFC 3207, RFC 8314)."""

from __future__ import annotations

import errno
import ssl
from dataclasses import dataclass
from enum import StrEnum

from ..exceptions import ConfigurationError, TransportError


class TlsMode(StrEnum):
    """When a connection is encrypted, and whether the server has to prove who it is."""

    #: STARTTLS; without it nothing is sent
    REQUIRED = "required"
    #: TLS from the first octet (RFC 8314)
    IMPLICIT = "implicit"
    #: STARTTLS where it is offered, with any certificate (RFC 7435)
    OPPORTUNISTIC = "opportunistic"
    OFF = "off"

    @property
    def verified(self) -> bool:
        """True if the server has to prove that it is the host of the URL."""
        return self in (TlsMode.REQUIRED, TlsMode.IMPLICIT)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificates and keys: files in PEM form."""

    #: certificates of the authorities to trust; None trusts the authorities of the system
    cafile: str | None = None
    #: the client's certificate, with its chain, for servers that ask for one
    certfile: str | None = None
    #: its private key; None if it is in `certfile`
    keyfile: str | None = None


NO_FILES = TlsFiles()


class SpeaksInClear(TransportError, ConfigurationError):
    """A server speaks first, in clear, although the URL says that TLS begins at once.

    The mail can wait, as after any `TransportError`, until a person corrects the URL.
    """

    def __init__(self, url: str) -> None:
        """`url` is the printable name of the server."""
        right = url.replace("smtps://", "smtp://")
        super().__init__(
            f"{url}: the server speaks first, in clear, and TLS begins with STARTTLS: say {right}"
        )
        self.field = url


def client_context(
    mode: TlsMode, files: TlsFiles, *, x509_strict: bool = True
) -> ssl.SSLContext | None:
    """The context for `mode`; None if the mode is `off`. Takes some 20 milliseconds.

    TLS 1.2 or later. The context verifies certificate and host name unless the mode is
    opportunistic, which proves nothing but is better than clear text. The host has to be among the
    subject alternative names (RFC 9525 section 6.3). With `x509_strict` all certificates of the
    chain have to be as RFC 5280 wants them. Raises `ConfigurationError`, naming the option, for a
    file that cannot be used.
    """
    if mode is TlsMode.OFF:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.cafile)
    except OSError as error:
        raise _unusable("cafile", error) from None
    context.options |= ssl.OP_NO_RENEGOTIATION  # so that reading never has to write
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.hostname_checks_common_name = False
    # Python 3.13 sets both of these by default, and earlier ones neither.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if not x509_strict:
        context.verify_flags ^= ssl.VERIFY_X509_STRICT
    if not mode.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if files.certfile is not None:
        try:
            # Without a password callback OpenSSL would ask at the terminal.
            context.load_cert_chain(files.certfile, files.keyfile, password=_no_password)
        except OSError as error:
            raise _unusable("certfile", error) from None
    elif files.keyfile is not None:
        raise ConfigurationError("a keyfile needs a certfile", field="keyfile")
    return context


def _no_password() -> str:
    raise OSError(errno.EACCES, "an encrypted key is not supported")


def _unusable(field: str, error: OSError) -> ConfigurationError:
    reason = getattr(error, "reason", None) or error.strerror or "it cannot be read"
    with_key = " with its keyfile" if field == "certfile" else ""
    return ConfigurationError(f"it{with_key} cannot be used ({reason})", field=field)
