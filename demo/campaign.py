"""A campaign: one text to many chats, by a Bot API server that counts, at the rate that it allows."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

from demo.bot_api import BotApi
from demo.errors import DemoError
from demo.scene import Scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

RECIPIENTS, BLOCKED, RATE = 300, 5, 75
_LATENCY = 0.03
_PATIENCE = 30.0
_LOOK = 0.1


class Campaign(Scene):
    """Three hundred messages, some of them to people who have blocked the bot."""

    title: ClassVar[str] = f"a campaign to {RECIPIENTS} chats at {RATE} messages a second"

    _campaign: UUID

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[dict[str, str]]:
        """Run a Bot API server that answers 429 above the rate."""
        async with BotApi(rate=RATE, latency=_LATENCY).running() as self._bot:
            yield {"APP_TELEGRAM_URL": self._bot.url}

    async def play(self) -> None:
        """Make the campaign, start it twice, and wait for its end."""
        self._bot.blocked = {_chat(number) for number in self.random.sample(range(1, RECIPIENTS + 1), BLOCKED)}
        self._campaign = await self.pool.fetchval(
            """with channel as (
                 insert into app.channels (token, rate_per_second) values ('123456:demo', $1) returning id),
               template as (
                 insert into app.templates (body) values ('Hello {{ name }}, the new course is out.') returning id),
               batch as (
                 insert into app.batches default values returning id),
               recipients as (
                 insert into app.batch_recipients (batch_id, chat_id, variables)
                 select b.id, 1000 + n, jsonb_build_object('name', 'reader ' || n) from batch b, generate_series(1, $2) n)
               select app.create_campaign(b.id, t.id, c.id, 'demo') from batch b, template t, channel c""",
            RATE,
            RECIPIENTS,
        )
        for _ in range(2):
            await self.pool.execute("select app.start_campaign($1, 'demo')", self._campaign)
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while await self.pool.fetchval("select status from app.campaigns where id = $1", self._campaign) != "completed":
            if asyncio.get_running_loop().time() > deadline:
                raise DemoError(f"the campaign has not ended after {_PATIENCE:g} s")
            await asyncio.sleep(_LOOK)

    async def prove(self) -> list[str]:
        """Compare the campaign with the books of the server."""
        [campaign] = await self.pool.fetch("select * from app.campaigns where id = $1", self._campaign)
        got, most = self._bot.delivered, self._bot.most_in_a_second()
        everybody = {_chat(number) for number in range(1, RECIPIENTS + 1)}
        counted = {name: campaign[name] for name in ("total", "sent", "failed", "unknown", "cancelled")}
        true = {"total": RECIPIENTS, "sent": got.total(), "failed": BLOCKED, "unknown": 0, "cancelled": 0}
        self.shown = [
            ("messages sent, each recipient once", f"{got.total():,}"),
            ("… refused: the bot was blocked", f"{campaign['failed']:,}"),
            (f"… requests in the busiest second, {RATE} allowed", f"{most:,}"),
        ]
        sentences = []
        if missing := everybody - got.keys() - self._bot.blocked:
            sentences.append(f"{len(missing)} recipients got no message")
        if twice := [chat for chat, times in got.items() if times > 1]:
            sentences.append(f"{len(twice)} recipients got their message more than once")
        if most > RATE:
            sentences.append(f"the Bot API was asked {most} times in one second, and {RATE} are allowed")
        if counted != true:
            sentences.append(f"the campaign counts {counted}, and true is {true}")
        return sentences


def _chat(number: int) -> str:
    return str(1000 + number)
