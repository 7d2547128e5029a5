"""Mail: letters are handed to the SMTP server over one connection, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiosmtplib
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from handlers import letters
from handlers.letters import LetterError
from handlers.settings import Settings, settings
from howdah import lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from email.message import EmailMessage

    from howdah import Job

_TIMEOUT, _GOODBYE, _TRIES = 30.0, 2.0, 3
_START_TLS = {"always": True, "auto": None, "never": False}


class MailError(Exception):
    """The letter could not be handed over now. `unsure`: perhaps it was, the server's last word is lost."""

    def __init__(self, problem: str, *, unsure: bool) -> None:
        super().__init__(f"the mail server: {problem}")
        self.unsure = unsure


@lifespan
async def mailer() -> AsyncIterator[Mailer]:
    """One connection for all mails of a worker, made when the first is sent."""
    letters.sender()  # a wrong setting ends the worker now, not the first mail
    shared = Mailer(settings())
    yield shared
    await shared.close()


async def send(job: Job[Any], letter: EmailMessage) -> str:
    """Hand a letter over and give its Message-ID. Call it in a step: what is kept is not sent again.

    What surely was not taken is tried again within some seconds. Raises LetterError for what is final, MailError.
    """
    shared: Mailer = job.resources["mailer"]
    retrying = AsyncRetrying(
        stop=stop_after_attempt(_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=2.0),
        retry=retry_if_exception(lambda error: isinstance(error, MailError) and not error.unsure),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            await shared.hand_over(letter)
    return str(letter["Message-ID"])


class Mailer:
    """The connection to the mail server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: aiosmtplib.SMTP | None = None
        self._one_by_one = asyncio.Lock()

    async def hand_over(self, letter: EmailMessage) -> None:
        """Try once. Raises LetterError, MailError."""
        sender, recipient = (letter[name].addresses[0].addr_spec for name in ("From", "To"))
        said_all = False
        async with self._one_by_one:
            try:
                client = await self._connected()
                encoding = "ascii" if recipient.isascii() else "utf-8"
                options = [] if recipient.isascii() else ["SMTPUTF8"]
                await client.mail(sender, options=options, encoding=encoding)
                await client.rcpt(recipient, encoding=encoding)
                said_all = True  # from here on it may arrive, whether or not we hear of it
                await client.data(letter.as_bytes())
            except BaseException as error:
                # Nobody knows where the dialogue stands, the least after a cancellation: the next letter begins a new one.
                self._drop()
                if isinstance(error, (aiosmtplib.SMTPException, OSError)):
                    raise _meaning(error, said_all=said_all) from None
                raise

    async def _connected(self) -> aiosmtplib.SMTP:
        if self._client is None or not self._client.is_connected:
            password = self._settings.smtp_password
            client = aiosmtplib.SMTP(
                hostname=self._settings.smtp_host,
                port=self._settings.smtp_port,
                start_tls=_START_TLS[self._settings.smtp_starttls],
                username=self._settings.smtp_username,
                password=None if password is None else password.get_secret_value(),
                timeout=_TIMEOUT,
            )
            self._client = client  # before it is connected: whatever happens, it is closed
            await client.connect()
        return self._client

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def close(self) -> None:
        """Say goodbye if there is a connection."""
        if self._client is not None and self._client.is_connected:
            with suppress(aiosmtplib.SMTPException, OSError):
                await self._client.quit(timeout=_GOODBYE)
        self._drop()


def _meaning(error: Exception, *, said_all: bool) -> Exception:
    """Tell what is final for this letter from what may pass. A refusal is certain; silence after its last line is not."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        words = f"{error.code} {' '.join(str(error.message).split())}"
        if error.code >= 500 and isinstance(error, (aiosmtplib.SMTPRecipientRefused, aiosmtplib.SMTPDataError)):
            return LetterError(f"the mail server refused it: {words}")
        return MailError(words, unsure=False)
    return MailError(" ".join(str(error).split()) or type(error).__name__, unsure=said_all)
