"""`Template`: a message with fields. Nothing else reads ``{{ }}``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Self, TypedDict, Unpack

from ...common.shown import echo
from ...exceptions import InvalidMessage
from ...interfaces import ITemplateEngine
from ...types import Several
from ..addresses import AddressLike
from ..attachment import Attachment
from ..message import Message
from .compiled import CompiledTemplate
from .default_engine import default_engine
from .template_parts import HeaderTemplate, MailboxTemplate, render_uris, uri_templates
from .template_values import plain_fields

#: Arguments that are URIs, or lists of them (`txmail.message.list_headers`).
URI_FIELDS = (
    "list_help",
    "list_unsubscribe",
    "list_subscribe",
    "list_post",
    "list_owner",
    "list_archive",
)


class Constants(TypedDict, total=False):
    """Arguments of `Message` that are the same for all messages of a template."""

    recipients: Several[AddressLike] | None
    cc: Several[AddressLike] | None
    bcc: Several[AddressLike] | None
    attachments: Iterable[Attachment] | None
    envelope_sender: str | None
    calendar: str | Attachment | None
    list_id: str | tuple[str, str] | None
    one_click: bool
    auto_submitted: str | None


class Template:
    """The common text of many messages, with fields where they differ.

    `subject`, `text`, `html`
        Templates. `text` is the body of the message. Fields in `html` are escaped. `text` or
        `html` must be given.
    `sender`, `reply_to`
        As in `Message`. The display name is a template, the address is not.
    `extra_headers`
        As in `Message`. The values are templates, the names are not.
    `list_help`, `list_unsubscribe`, `list_subscribe`, `list_post`, `list_owner`, `list_archive`
        As in `Message`, URIs with fields in them, which are percent-encoded:
        ``"https://example.com/leave?token={{ token }}"``. A field alone is a whole URI.
    `engine`
        An `ITemplateEngine`. The default is the sandboxed one of `txmail.integrations.jinja2`.

    All other arguments are those of `Message`; fields are not read in them. `recipients` are the
    default of `render`. A template does not change. Any number of threads can share one.

    Raises `TemplateError`, which names part and line, for a template that cannot be read,
    `ConfigurationError` if there is no engine, and what `Message` raises for its arguments.
    """

    def __init__(
        self,
        subject: str | None = None,
        text: str | None = None,
        html: str | None = None,
        sender: AddressLike | None = None,
        *,
        extra_headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        reply_to: AddressLike | list[AddressLike] | None = None,
        list_help: str | list[str] | None = None,
        list_unsubscribe: str | list[str] | None = None,
        list_subscribe: str | list[str] | None = None,
        list_post: str | list[str] | None = None,
        list_owner: str | list[str] | None = None,
        list_archive: str | list[str] | None = None,
        engine: ITemplateEngine | None = None,
        **constants: Unpack[Constants],
    ) -> None:
        if not (text or html):
            raise InvalidMessage("neither text nor html: give one", field="text")
        for name in constants:
            if name not in Constants.__annotations__:
                raise TypeError(f"Template() got an unexpected keyword argument {echo(name)}")
        # `Message` copies lists, and refuses values that are no lists.
        given = Message(extra_headers=extra_headers, **constants)
        self.constants: dict[str, Any] = {name: getattr(given, name) for name in constants}
        self._engine = engine
        using = engine or default_engine.get()
        self.subject = HeaderTemplate.of(subject or "", "subject", using)
        self.text = using.compile(text, "text") if text else None
        self.html = using.compile(html, "html", html=True) if html else None
        self.sender = None if sender is None else MailboxTemplate.of(sender, "sender", using)
        entries = reply_to if isinstance(reply_to, list) else [reply_to] if reply_to else []
        self.reply_to = [MailboxTemplate.of(entry, "reply_to", using) for entry in entries]
        self.headers = [
            (name, HeaderTemplate.of(value, name, using)) for name, value in given.header_pairs()
        ]
        values = (list_help, list_unsubscribe, list_subscribe, list_post, list_owner, list_archive)
        self.uris = {
            field: uri_templates(value, field, using)
            for field, value in zip(URI_FIELDS, values, strict=True)
            if value
        }
        self._sources: dict[str, Any] = {
            "subject": subject,
            "text": text,
            "html": html,
            "sender": sender,
            "extra_headers": given.extra_headers,
            "reply_to": entries,
            **dict(zip(URI_FIELDS, values, strict=True)),
        }

    def render(
        self,
        fields: Mapping[str, Any] | None = None,
        recipients: Several[AddressLike] | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
    ) -> Message:
        """The `Message` to `recipients` with `fields` in it.

        `fields` is plain data: text, numbers, booleans, None, `Decimal`, dates, and lists and
        mappings of them. `message_id` and `date` are those of `Message`.

        Raises `TemplateError` for a value of another type (it names the field) and for a missing
        field (it names part and field), and `BadHeaders` for a value that its header cannot have.
        """
        data = plain_fields(fields)
        options = {**self.constants}
        for field, uris in self.uris.items():
            options[field] = render_uris(uris, data)
        if recipients is not None:
            options["recipients"] = recipients
        return Message(
            self.subject.render(data),
            body=self.text.render(data) if self.text else None,
            html=self.html.render(data) if self.html else None,
            sender=self.sender.render(data) if self.sender else None,
            extra_headers=[(name, header.render(data)) for name, header in self.headers],
            reply_to=[named.render(data) for named in self.reply_to] or None,
            message_id=message_id,
            date=date,
            **options,
        )

    def compile(
        self,
        *,
        default_sender: AddressLike | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> CompiledTemplate:
        """This template, compiled for many messages. See `CompiledTemplate`.

        The arguments are those of `Message.to_envelope`. A mailer does not render these messages,
        so its settings have to be given here.
        """
        return CompiledTemplate(self, default_sender=default_sender, html_to_text=html_to_text)

    def __reduce__(self) -> tuple[Callable[[], Template], tuple[()]]:
        return partial(type(self), **self._sources, **self.constants, engine=self._engine), ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {echo(self._sources['subject'] or '')}>"
