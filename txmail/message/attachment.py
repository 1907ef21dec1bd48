"""`Attachment`: a file, or a body with more to say about itself than its text."""

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
from .mime.parts import Part

#: What a Content-Transfer-Encoding may be (RFC 2045 section 6.1); binary needs BINARYMIME.
TRANSFER_ENCODINGS = ("base64", "quoted-printable", "7bit", "8bit")

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105
_VALUE = re.compile(rf"\s*({_TOKEN}(?:/{_TOKEN})?)\s*", re.ASCII)
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")\s*', re.ASCII)
# Restricted names of RFC 6838 section 4.2.
_RESTRICTED = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_SLASH = re.compile(r"[/\\]", re.ASCII)
_PAIR = re.compile(r"\\(.)", re.ASCII)
_MEDIA_TYPE = re.compile(f"{_RESTRICTED}/{_RESTRICTED}", re.ASCII)
_DISPOSITION = re.compile(_RESTRICTED, re.ASCII)
#: Characters of a parameter's name.
_LONGEST_NAME = 60
#: Types of what a name like ``data.csv.gz`` stands for, by the encodings of `mimetypes`.
_COMPRESSED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]{1,200}", re.ASCII)


class Attachment:
    """A file to go with a message, or its body in full control.

    `filename`
        The name the receiver sees; of a path only the last component is kept.
    `content_type`
        Media type with parameters, ``"text/csv; charset=utf-8"``; guessed from the file name
        otherwise, and ``application/octet-stream`` if that does not help. Text is encoded in its
        charset; of octets it is a label, and may be one that Python does not know.
    `data`
        Text, octets, or a file: it is read to its end here and now and left open there.
    `disposition`
        ``attachment`` or ``inline``, with parameters. If nothing is said, what is shown is inline:
        a body, and what the HTML calls by its content id; all else is an attachment.
    `transfer_encoding`
        ``base64`` (the default), ``quoted-printable``, ``7bit`` or ``8bit``. A text in a charset
        such as UTF-16, in which line ends are other octets, is base64 where it says
        ``quoted-printable``.
    `content_id`
        What the HTML body calls it after ``cid:``, with or without angle brackets.

    Attributes may be changed until the message is sent. They are checked when it is, or by
    `validate`; a file that gives neither text nor octets is an `InvalidMessage` at once.
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
        """Text or octets. A file that is set is read, from where it stands to its end."""
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
        """What was said, ``attachment`` if nothing was."""
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
        """Raise `BadHeaders` or `InvalidMessage`, naming the argument, for what cannot be sent."""
        self._headers("application/octet-stream", body=False)
        self._encoding()
        if self._data is None:
            raise InvalidMessage("there is none", field="data")

    @property
    def cid(self) -> str | None:
        """The content id without angle brackets, or None. Raises `BadHeaders` if it is not one."""
        if self.content_id is None:
            return None
        check_value(self.content_id, "content_id")
        bracketed = self.content_id.startswith("<") and self.content_id.endswith(">")
        cid = self.content_id[1:-1] if bracketed else self.content_id
        if _CONTENT_ID.fullmatch(cid) is None or "=?" in cid:
            raise BadHeaders("not a content id", field="content_id", value=self.content_id)
        return cid

    @property
    def inline(self) -> bool:
        """True if it is to be shown in its place, not listed as a file."""
        return ascii_lower(ascii_strip(self.disposition.partition(";")[0])) == "inline"

    @property
    def text(self) -> str:
        """`data` as text. Octets are read in the charset of `content_type`, as far as they can be.

        Raises `BadHeaders` if the content type is not one.
        """
        if not isinstance(self._data, bytes):
            return self._data or ""
        charset = _parse(self.content_type or "text/plain", "content_type")[1].get("charset", "")
        charset = charset.strip("'")
        return self._data.decode(charset if is_charset(charset) else "utf-8", "replace")

    def to_part(
        self,
        default_type: str | None = None,
        *,
        shown: bool = False,
        parameters: Mapping[str, str] | None = None,
    ) -> Part:
        """The MIME part to be written; as a body of `default_type` if that is given.

        `shown` says that it is shown in another part. `parameters` are those of `default_type`
        that are not in the content type.
        """
        if self._data is None:
            raise InvalidMessage("there is none", field="data")
        body = default_type is not None
        media_type, options, headers = self._headers(
            default_type or "application/octet-stream", body=body, shown=shown or body
        )
        if ascii_lower(media_type) == default_type:
            options = {**(parameters or {}), **options}
        if ascii_lower(media_type) == "text/calendar" and (method := calendar_method(self.text)):
            # The part has to say it too (RFC 5545 section 8.1).
            options = {"method": method, **options}
        kind = ascii_lower(media_type.partition("/")[0])
        if kind == "text" and isinstance(self._data, str):
            options.setdefault("charset", "utf-8")
        encoding, data = self._encoding(), self._data
        charset = options.get("charset", "utf-8")
        if kind == "text" and not has_ascii_line_ends(charset):
            if encoding in ("7bit", "8bit"):
                problem = f"{echo(charset)} cannot be carried as {encoding}, but as base64"
                raise InvalidMessage(problem, field="transfer_encoding")
            if encoding == "quoted-printable" and isinstance(data, str):
                data = crlf_lines(data)
            encoding = "base64"
        octets = _encoded(data, charset)
        if kind == "message" and encoding in ("base64", "quoted-printable"):
            # RFC 2046 section 5.2.1 forbids to encode a message in a message.
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
        """Media type, its parameters, and the other headers of the part."""
        said = self._disposition or ("inline" if shown else "attachment")
        disposition, options = _parse(said, "disposition")
        if _DISPOSITION.fullmatch(disposition) is None:
            raise BadHeaders("not a disposition", field="disposition", value=self.disposition)
        filename = self._filename(options.pop("filename", None))
        content_type = self.content_type
        if content_type is None and filename and not body:
            content_type = _guessed(filename)
        media_type, parameters = _parse(content_type or default_type, "content_type")
        if _MEDIA_TYPE.fullmatch(media_type) is None or ascii_lower(media_type).startswith(
            "multipart/"
        ):
            raise BadHeaders("not the type of a file", field="content_type", value=content_type)
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
            raise BadHeaders("not the name of a file", field="filename", value=filename)
        return last


def _encoded(data: str | bytes, charset: str) -> bytes:
    """`data` in octets. Those of a text are in `charset`; octets are what they are."""
    if isinstance(data, bytes):
        return data
    if not is_charset(charset):
        problem = "Python cannot encode text in this charset; give the data as octets"
        raise InvalidMessage(problem, field="content_type", value=charset)
    try:
        return data.encode(charset)
    except UnicodeError:
        raise InvalidMessage(f"the text has no form in {charset}", field="data") from None


def _guessed(filename: str) -> str | None:
    """The type that a file of this name has; where it is compressed, that of the compression."""
    media_type, compression = mimetypes.guess_type(filename)
    return _COMPRESSED.get(compression) if compression else media_type


def _parse(text: str, field: str) -> tuple[str, dict[str, str]]:
    """A value and its parameters, by a closed grammar (RFC 2045 section 5.1)."""
    check_value(text, field, parameter=True)
    found = _VALUE.match(text)
    parameters: dict[str, str] = {}
    position = found.end() if found else 0
    while found and position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None:
            break
        name = ascii_lower(found[1])
        if "*" in name or name in parameters or len(name) > _LONGEST_NAME:
            raise BadHeaders("a parameter of an improper name", field=field, value=text)
        parameters[name] = found[2] or _PAIR.sub(r"\1", found[3] or "")
        position = found.end()
    if found is None:
        raise BadHeaders("not a value with parameters", field=field, value=text)
    value = text[: text.find(";")] if ";" in text else text
    return ascii_strip(value), parameters
