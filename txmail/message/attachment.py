"""`Attachment`: a file that goes with a message, or a body with its own type and encoding."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from typing import Any

from ..common.ascii_text import ascii_lower, ascii_strip
from ..common.shown import echo, shown
from ..exceptions import BadHeaders, InvalidMessage
from ..types import Data
from .icalendar import calendar_method
from .mime.encodings import carries, crlf, crlf_lines, encode_body
from .mime.header_check import check_value, has_ascii_line_ends, is_charset
from .mime.header_write import parameter_header
from .mime.parameters import parse_parameters
from .mime.parts import Part

#: Content-Transfer-Encodings (RFC 2045 section 6.1). ``binary`` would need BINARYMIME.
TRANSFER_ENCODINGS = ("base64", "quoted-printable", "7bit", "8bit")

# Restricted names of RFC 6838 section 4.2.
_RESTRICTED = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_SLASH = re.compile(r"[/\\]", re.ASCII)
_MEDIA_TYPE = re.compile(f"{_RESTRICTED}/{_RESTRICTED}", re.ASCII)
_DISPOSITION = re.compile(_RESTRICTED, re.ASCII)
#: The types of compressed files such as ``data.csv.gz``, by the encodings of `mimetypes`.
_COMPRESSED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,200}", re.ASCII)


class Attachment:
    """A file that goes with a message, or a body with its own type and encoding.

    `filename`
        The name that the receiver sees. Of a path only the last component stays.
    `content_type`
        Media type with parameters, ``"text/csv; charset=utf-8"``. The default is guessed from the
        file name; it is ``application/octet-stream`` for an unknown one. Text is encoded in the
        charset. For octets the charset is a label only: Python need not know it.
    `data`
        Text, octets, or a file. The constructor reads the file to its end and leaves it open.
    `disposition`
        ``attachment`` or ``inline``, with parameters. The default is inline for a body and for a
        file that the HTML shows by its content id. For all other files it is attachment.
    `transfer_encoding`
        ``base64`` (the default), ``quoted-printable``, ``7bit`` or ``8bit``. Text in a charset such
        as UTF-16, whose line ends are other octets, becomes base64 in place of
        ``quoted-printable``.
    `content_id`
        The name that the HTML body uses after ``cid:``, with or without angle brackets.

    Attributes may change until the message is sent. `validate` and sending check them. A file that
    gives neither text nor octets raises `InvalidMessage` at once.
    """

    def __init__(
        self,
        filename: str | None = None,
        content_type: str | None = None,
        data: Data | None = None,
        disposition: str | None = None,
        transfer_encoding: str | None = None,
        content_id: str | None = None,
    ) -> None:
        self.filename = filename
        self.content_type = content_type
        self.disposition = disposition
        self.transfer_encoding = transfer_encoding or "base64"
        self.content_id = content_id
        self.data: Any = data

    @property
    def data(self) -> str | bytes | None:
        """Text or octets. Setting a file reads it, from its position to its end."""
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        if hasattr(data, "read"):
            data = data.read()
        if isinstance(data, (bytearray, memoryview)):
            data = bytes(data)
        if data is not None and not isinstance(data, (str, bytes)):
            raise InvalidMessage("text, octets or a file is needed", field="data", value=data)
        self._data = data

    @property
    def disposition(self) -> str:
        """The disposition that was given; ``attachment`` without one."""
        return self._disposition or "attachment"

    @disposition.setter
    def disposition(self, disposition: str | None) -> None:
        self._disposition = disposition or None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attachment):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        size = "no data" if self._data is None else f"{len(self._data)} long"
        name = None if self.filename is None else echo(self.filename)
        return shown(f"<{type(self).__name__} {name} {self.content_type or '-'} {size}>")

    def validate(self) -> None:
        """Raise `BadHeaders` or `InvalidMessage` for a wrong argument, which the error names."""
        self._headers("application/octet-stream", body=False)
        self._encoding()
        if self._data is None:
            raise InvalidMessage("there is no data; give text, octets or a file", field="data")

    @property
    def cid(self) -> str | None:
        """The content id without angle brackets, or None. Raises `BadHeaders` for a bad one."""
        if self.content_id is None:
            return None
        check_value(self.content_id, "content_id")
        bracketed = self.content_id.startswith("<") and self.content_id.endswith(">")
        cid = self.content_id[1:-1] if bracketed else self.content_id
        if _CONTENT_ID.fullmatch(cid) is None or "=?" in cid:
            raise BadHeaders(
                "not a content id (RFC 2392)", field="content_id", value=self.content_id
            )
        return cid

    @property
    def inline(self) -> bool:
        """True if the disposition is ``inline``: mail programs show it in its place."""
        return ascii_lower(ascii_strip(self.disposition.partition(";")[0])) == "inline"

    @property
    def text(self) -> str:
        """`data` as text. Octets are decoded in the charset of `content_type`, bad ones to U+FFFD.

        Raises `BadHeaders` for a bad content type.
        """
        if not isinstance(self._data, bytes):
            return self._data or ""
        charset = parse_parameters(self.content_type or "text/plain", "content_type")[1].get(
            "charset", ""
        )
        charset = charset.strip("'")
        return self._data.decode(charset if is_charset(charset) else "utf-8", "replace")

    def to_part(
        self,
        default_type: str | None = None,
        *,
        shown: bool = False,
        parameters: Mapping[str, str] | None = None,
    ) -> Part:
        """The MIME part: an attachment, or a body if `default_type` is given.

        `shown` says that the HTML shows it. `parameters` are defaults for a part of `default_type`.
        Raises `BadHeaders` or `InvalidMessage`, which names the argument, if it cannot be sent.
        """
        if self._data is None:
            raise InvalidMessage("there is no data; give text, octets or a file", field="data")
        body = default_type is not None
        media_type, options, headers = self._headers(
            default_type or "application/octet-stream", body=body, shown=shown or body
        )
        if ascii_lower(media_type) == default_type:
            options = {**(parameters or {}), **options}
        if ascii_lower(media_type) == "text/calendar" and (method := calendar_method(self.text)):
            # The part repeats the method (RFC 5545 section 8.1).
            options = {"method": method, **options}
        kind = ascii_lower(media_type.partition("/")[0])
        if kind == "text" and isinstance(self._data, str):
            options.setdefault("charset", "utf-8")
        encoding, data = self._encoding(), self._data
        charset = options.get("charset", "utf-8")
        if kind == "text" and not has_ascii_line_ends(charset):
            data = _base64_text(data, encoding, charset)
            encoding = "base64"
        octets = _encode_text(data, charset)
        if kind == "message" and encoding in ("base64", "quoted-printable"):
            # RFC 2046 section 5.2.1: a message in a message cannot be encoded.
            encoding = "7bit" if carries(crlf(octets)) else encoding
            if encoding != "7bit" and ascii_lower(media_type) == "message/rfc822":
                media_type = "application/octet-stream"
        encoded = encode_body(octets, encoding, text=kind in ("text", "message"), field="data")
        first = (
            parameter_header("Content-Type", media_type, options),
            f"Content-Transfer-Encoding: {encoding}\r\n",
        )
        return Part(first + headers, encoded)

    def _encoding(self) -> str:
        encoding = self.transfer_encoding
        if not isinstance(encoding, str) or ascii_lower(encoding) not in TRANSFER_ENCODINGS:
            known = ", ".join(TRANSFER_ENCODINGS)
            raise BadHeaders(f"not one of {known}", field="transfer_encoding", value=encoding)
        return ascii_lower(encoding)

    def _headers(
        self, default_type: str, *, body: bool, shown: bool = False
    ) -> tuple[str, dict[str, str], tuple[str, ...]]:
        """The media type, its parameters, and the other headers of the part."""
        said = self._disposition or ("inline" if shown else "attachment")
        disposition, options = parse_parameters(said, "disposition")
        if _DISPOSITION.fullmatch(disposition) is None:
            raise BadHeaders(
                "not a disposition; use attachment or inline",
                field="disposition",
                value=self.disposition,
            )
        filename = self._filename(options.pop("filename", None))
        content_type = self.content_type
        if content_type is None and filename and not body:
            content_type = _guess_type(filename)
        media_type, parameters = parse_parameters(content_type or default_type, "content_type")
        if _MEDIA_TYPE.fullmatch(media_type) is None or ascii_lower(media_type).startswith(
            "multipart/"
        ):
            raise BadHeaders(
                "not a media type that a file can have, such as text/csv",
                field="content_type",
                value=content_type,
            )
        if "charset" in parameters:
            parameters["charset"] = parameters["charset"].strip("'")
        if filename:
            parameters["name"] = options["filename"] = filename
        headers = []
        if filename or not body or self._disposition:
            headers.append(parameter_header("Content-Disposition", disposition, options))
        if self.cid is not None:
            headers.append(f"Content-ID: <{self.cid}>\r\n")
        return media_type, parameters, tuple(headers)

    def _filename(self, in_disposition: str | None) -> str | None:
        filename = self.filename if self.filename is not None else in_disposition
        if not filename:
            return None
        check_value(filename, "filename", parameter=True)
        last = _SLASH.split(filename)[-1].strip(" ")
        if last in ("", ".", ".."):
            raise BadHeaders("not a file name", field="filename", value=filename)
        return last


def _base64_text(data: str | bytes, encoding: str, charset: str) -> str | bytes:
    """`data` as it goes into base64, in a charset whose line ends are not those of ASCII.

    Raises `InvalidMessage` if `encoding` is 7bit or 8bit: they need line ends of ASCII.
    """
    if encoding in ("7bit", "8bit"):
        problem = f"text in {echo(charset)} cannot be sent as {encoding}; use base64"
        raise InvalidMessage(problem, field="transfer_encoding")
    if encoding == "quoted-printable" and isinstance(data, str):
        return crlf_lines(data)
    return data


def _encode_text(data: str | bytes, charset: str) -> bytes:
    """`data` as octets. Text is encoded in `charset`; octets stay as they are."""
    if isinstance(data, bytes):
        return data
    if not is_charset(charset):
        problem = "Python cannot encode text in this charset; give the data as octets"
        raise InvalidMessage(problem, field="content_type", value=charset)
    try:
        return data.encode(charset)
    except UnicodeError:
        raise InvalidMessage(
            f"the text has characters that {charset} lacks; use utf-8", field="data"
        ) from None


def _guess_type(filename: str) -> str | None:
    """The media type of a file with this name; of a compressed file, that of the compression."""
    media_type, compression = mimetypes.guess_type(filename)
    return _COMPRESSED.get(compression) if compression else media_type
