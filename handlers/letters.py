"""Letters: what is sent by mail, written from handlers/templates, with nothing in a header that does not belong there.

A letter's Message-ID is made of its job's id and time of creation: every attempt at a job sends the same one, and no two jobs do,
whatever their database. Where a letter did arrive twice, mail programs know the second one as a copy.
"""

from __future__ import annotations

import re
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import formatdate, parseaddr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import NAMESPACE_URL, uuid5

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from pydantic import AfterValidator

from handlers.settings import settings
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from howdah import Job

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_ADDRESS = re.compile(r"[^@\s<>()\[\],;:\\\"]+@[^@\s<>()\[\],;:\\\"]+")

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
)


def _one_line(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("it has a line break or another control character in it")
    return text


def _address(text: str) -> str:
    if _ADDRESS.fullmatch(_one_line(text)) is None or len(text) > 254:
        raise ValueError("it is not an e-mail address, name@domain")
    return text


#: For payloads: a text that may stand in a header, and an address that a letter may go to.
OneLine = Annotated[str, AfterValidator(_one_line)]
EmailAddress = Annotated[str, AfterValidator(_address)]


class LetterError(Exception):
    """This letter can never be sent; the message says why, in the mail server's words if it was the server that refused."""


def write(job: Job[Any], template: str, *, to: str, name: str, subject: str, **values: Any) -> EmailMessage:
    """Write a letter: its text is `<template>.txt`, its HTML `<template>.html`. Raises LetterError, which says what is wrong."""
    try:
        recipient = Address(_one_line(name), *_address(to).rsplit("@", 1))
        title = _one_line(subject)
    except ValueError as error:
        raise LetterError(f"no letter can go to {to!r} ({name!r}) about {subject!r}: {error}") from None
    # Seven bits, so that no server on the way has to convert it.
    letter = EmailMessage((SMTP if to.isascii() else SMTPUTF8).clone(cte_type="7bit"))
    letter["From"], letter["To"], letter["Subject"] = sender(), recipient, title
    letter["Date"] = formatdate()
    letter["Message-ID"] = f"<{name_of(job)}@{sender().domain}>"
    letter["Auto-Submitted"] = "auto-generated"
    letter.set_content(_templates.get_template(f"{template}.txt").render(values))
    letter.add_alternative(_templates.get_template(f"{template}.html").render(values), subtype="html")
    return letter


def name_of(job: Job[Any]) -> str:
    """Give what names the work of a job to the world outside: the same in every attempt, and in no other job anywhere."""
    return str(uuid5(NAMESPACE_URL, f"howdah:{job.kind}/{job.id}/{job.created_at.isoformat()}"))


@cache
def sender() -> Address:
    """Give whom letters come from. Raises ConfigError."""
    name, address = parseaddr(settings().mail_from)
    try:
        return Address(_one_line(name), *_address(address).rsplit("@", 1))
    except ValueError as error:
        raise ConfigError("APP_MAIL_FROM", f"{settings().mail_from!r}: {error}") from None
