"""The demonstration's mail server, with faults: it can refuse, hold a mail before or after it has taken it, or hang up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from demo.smtp_server import MailServer

if TYPE_CHECKING:
    from email.message import EmailMessage


class FaultyMailServer(MailServer):
    """Each fault happens as often as it is set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: What the next recipients, and the next mails, are answered.
        self.recipient_answers: list[str] = []
        self.mail_answers: list[str] = []
        #: While set: a mail waits before it is taken.
        self.hold_mail = False
        #: The mail of this number, from 1, waits when it has been taken, before anybody hears of it.
        self.hold_taken = 0
        #: The connection breaks after the next mail was taken, instead of a word.
        self.break_after = 0
        self.held = 0
        self._free = asyncio.Event()

    def let_go(self) -> None:
        """Hold nothing any more."""
        self.hold_mail, self.hold_taken = False, 0
        self._free.set()

    async def on_recipient(self, address: str) -> str | None:  # noqa: ARG002 - the same for all
        """Answer in the server's place."""
        return self.recipient_answers.pop(0) if self.recipient_answers else None

    async def on_mail(self, mail: EmailMessage) -> str | None:  # noqa: ARG002 - the same for all
        """Answer in the server's place, or wait."""
        if self.hold_mail:
            await self._wait()
        return self.mail_answers.pop(0) if self.mail_answers else None

    async def on_taken(self, mail: EmailMessage) -> str | None:  # noqa: ARG002 - the same for all
        """Wait, or break."""
        if self.hold_taken == len(self.mails):
            await self._wait()
        if self.break_after:
            self.break_after -= 1
            self.hang_up()
        return None

    async def _wait(self) -> None:
        self.held += 1
        self._free.clear()
        await self._free.wait()
