"""A mail server on loopback that keeps what it is given."""

from __future__ import annotations

import asyncio
import email
from contextlib import asynccontextmanager
from email.policy import default
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import SMTP, Envelope, Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from email.message import EmailMessage


class MailServer:
    """The mails that came, in order. `on_*` may answer in the server's place, or take their time."""

    def __init__(self, **options: Any) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.connections = 0
        self._options = options
        self._open: list[asyncio.BaseTransport] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listen on a free port for the length of a `with`."""
        server = await asyncio.get_running_loop().create_server(self._answer, self.host, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.hang_up()

    def hang_up(self) -> None:
        """Break all connections without a word."""
        for transport in self._open:
            transport.close()
        self._open.clear()

    async def on_recipient(self, address: str) -> str | None:
        """Happens when a recipient is named."""

    async def on_mail(self, mail: EmailMessage) -> str | None:
        """Happens when a mail has come as a whole, and is not taken yet."""

    async def on_taken(self, mail: EmailMessage) -> str | None:
        """Happens when a mail has been taken, and nobody has heard of it yet."""

    def _answer(self) -> SMTP:
        return _Dialogue(self, hostname="mail.example", enable_SMTPUTF8=True, **self._options)

    def note_connection(self, transport: asyncio.BaseTransport) -> None:
        """Count who comes in."""
        self.connections += 1
        self._open.append(transport)

    # What aiosmtpd calls.

    async def handle_RCPT(  # noqa: N802 - the library's
        self,
        server: SMTP,  # noqa: ARG002 - the library's
        session: Session,  # noqa: ARG002 - the library's
        envelope: Envelope,
        address: str,
        rcpt_options: list[str],
    ) -> str:
        """Take a recipient."""
        answer = await self.on_recipient(address)
        if answer is None:
            envelope.rcpt_tos.append(address)
            envelope.rcpt_options.extend(rcpt_options)
        return answer or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802 - the library's
        """Take a mail."""
        content = envelope.content
        mail = email.message_from_bytes(
            content.encode() if isinstance(content, str) else content or b"", policy=default
        )
        answer = await self.on_mail(mail)
        if answer is not None:
            return answer
        self.mails.append(mail)
        self.recipients += envelope.rcpt_tos
        return await self.on_taken(mail) or "250 OK"


class _Dialogue(SMTP):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.event_handler.note_connection(transport)
