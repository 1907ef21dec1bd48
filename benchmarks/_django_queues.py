"""The queues of Django that are compared: django-mailer and django-post_office.

Django is configured once in a process: for a SQLite file, and for PostgreSQL where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _harness import Skip, is_installed
from _queues import PRAGMAS, SENDER, Mail, Queue

_SMTP = "django.core.mail.backends.smtp.EmailBackend"
#: How many mails django-post_office takes at once: more than its 100, which makes it faster.
BATCH = 5000


class _Router:
    """Sends both applications of Django to the database that is measured."""

    alias = "default"

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self.alias

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return self.alias


ROUTER = _Router()


def _django(folder: Path, postgresql_url: str | None) -> None:
    """Configure Django, and make its tables."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    databases: dict[str, Any] = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(folder / "django.sqlite"),
            "OPTIONS": {"init_command": PRAGMAS, "transaction_mode": "IMMEDIATE"},
        }
    }
    if postgresql_url is not None:
        import sqlalchemy as sa

        url = sa.make_url(postgresql_url)
        databases["postgresql"] = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.database,
            "USER": url.username,
            "PASSWORD": url.password or "",
            "HOST": url.host or url.query.get("host", ""),
            "PORT": url.port or "",
        }
    settings.configure(
        DATABASES=databases,
        DATABASE_ROUTERS=[ROUTER],
        INSTALLED_APPS=["django.contrib.contenttypes", "mailer", "post_office"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DEFAULT_FROM_EMAIL=SENDER,
        EMAIL_BACKEND=_SMTP,
        EMAIL_HOST="127.0.0.1",
        MAILER_EMAIL_BACKEND=_SMTP,
        MAILER_LOCK_PATH=str(folder / "django-mailer"),
        POST_OFFICE={"BACKENDS": {"default": _SMTP}, "BATCH_SIZE": BATCH},
        SECRET_KEY="not one",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        USE_TZ=True,
    )
    django.setup()
    for alias in databases:
        call_command("migrate", database=alias, verbosity=0)


class _DjangoQueue:
    """What both have in common; `alias` is the database."""

    table = ""
    #: what it writes when mail is sent
    log = ""
    #: which rows have still to be sent: django-mailer deletes what it has sent
    unsent = ""

    def __init__(self, name: str, alias: str = "default") -> None:
        self.name = name
        self._alias = alias

    def _atomic(self) -> Any:
        from django.db import transaction

        ROUTER.alias = self._alias
        return transaction.atomic(using=self._alias)

    def ready(self, mails: Sequence[Mail]) -> Sequence[Mail]:
        """See `Queue`: nothing can be made beforehand."""
        return mails

    def _execute(self, statement: str) -> Any:
        from django.db import connections

        cursor = connections[self._alias].cursor()
        cursor.execute(statement)
        return cursor

    def count(self) -> int:
        """See `Queue`."""
        return int(self._execute(f"SELECT count(*) FROM {self.table}").fetchone()[0])

    def count_left(self) -> int:
        """The mails that have still to be sent."""
        return int(self._execute(f"SELECT count(*) FROM {self.table} {self.unsent}").fetchone()[0])

    def clear(self) -> None:
        """See `Queue`."""
        if self._alias == "default":
            self._execute(f"DELETE FROM {self.log}")
            self._execute(f"DELETE FROM {self.table}")
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            self._execute(f"TRUNCATE {self.table} CASCADE")
            self._execute("CHECKPOINT")


class DjangoMailer(_DjangoQueue):
    """django-mailer by its e-mail backend, which inserts many rows with one statement.

    `send_mail` and `send_mass_mail`, its other way, ask the database for every recipient.
    """

    table, log = "mailer_message", "mailer_messagelog"

    def put(self, made: Sequence[Mail]) -> None:
        """See `Queue`: pickles of messages that have neither a Message-ID nor octets yet."""
        from django.core.mail import EmailMessage
        from mailer.backend import DbBackend

        messages = [EmailMessage(m.subject, m.text, SENDER, [m.recipient]) for m in made]
        with self._atomic():
            DbBackend().send_messages(messages)

    def drain(self, port: int) -> None:
        """Send all there is to `port`, as ``manage.py send_mail`` does."""
        from django.conf import settings
        from mailer.engine import send_all

        ROUTER.alias = self._alias
        settings.EMAIL_PORT = port
        send_all()


class DjangoMailerSendMail(DjangoMailer):
    """django-mailer by `send_mail`, as in its manual."""

    def put(self, made: Sequence[Mail]) -> None:
        """See `Queue`."""
        from mailer import send_mail

        with self._atomic():
            for mail in made:
                send_mail(mail.subject, mail.text, SENDER, [mail.recipient])


class PostOffice(_DjangoQueue):
    """django-post_office by `send_many`, its fastest."""

    table, log = "post_office_email", "post_office_log"
    unsent = "WHERE status IS NULL OR status = 2"

    def put(self, made: Sequence[Mail]) -> None:
        """See `Queue`."""
        from post_office import mail

        asked = [
            {"recipients": [m.recipient], "sender": SENDER, "subject": m.subject, "message": m.text}
            for m in made
        ]
        with self._atomic():
            mail.send_many(asked)

    def drain(self, port: int) -> None:
        """Send all there is to `port`, as ``manage.py send_queued_mail`` does."""
        from django.conf import settings
        from post_office.connections import connections
        from post_office.mail import get_queued, send_queued

        ROUTER.alias = self._alias
        settings.EMAIL_PORT = port
        connections.close()
        while get_queued().exists():
            send_queued()


def django_queues(folder: Path, postgresql_url: str | None) -> list[Queue]:
    """Those that are installed; raises `Skip` if none can be."""
    for package in ("django", "mailer", "post_office"):
        if not is_installed(package):
            raise Skip(f"{package}, of Django, is not installed")
    _django(folder, postgresql_url)
    queues: list[Queue] = [
        DjangoMailer("django-mailer, its backend"),
        DjangoMailerSendMail("django-mailer, send_mail"),
        PostOffice("django-post_office"),
    ]
    if postgresql_url is not None:
        queues.append(DjangoMailer("django-mailer, PostgreSQL", "postgresql"))
        queues.append(PostOffice("django-post_office, PostgreSQL", "postgresql"))
    return queues
