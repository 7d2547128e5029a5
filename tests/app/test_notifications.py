"""Notifications go where the settings say, once in each channel."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from support.eventually import aeventually
from support.facts import count_ends, end_of, is_empty
from support.jobs import enqueue
from support.people import new_user
from support.smtp import FaultyMailServer
from support.web import Web, website

from handlers.addresses import Allowed
from handlers.fetching import opened
from handlers.mail import Mailer
from handlers.notifications import send_notification
from handlers.settings import Settings
from howdah.testing import run_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    import asyncpg
    from conftest import StartApp

    from howdah.testing import JobOutcome

    Json = dict[str, Any]

    from support.figures import Figures


class Hook:
    """Somebody's webhook: keeps what comes, and answers what stands in `answers`, then 204."""

    def __init__(self, site: Web) -> None:
        self.url = site.put("/hook", self._answer)
        self.got: list[tuple[str, Json]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def _answer(self, request: web.Request) -> web.Response:
        self.got.append((request.headers["Idempotency-Key"], await request.json()))
        await self.free.wait()
        status, headers = self.answers.pop(0) if self.answers else (204, {})
        return web.Response(status=status, headers=headers)


@pytest.fixture
async def mails() -> AsyncIterator[FaultyMailServer]:
    async with FaultyMailServer().running() as server:
        yield server


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with website() as site:
        yield Hook(site)


async def test_each_channel_that_the_settings_name_gets_it_and_no_other(
    connection: asyncpg.Connection, mails: FaultyMailServer, hook: Hook
) -> None:
    for email, push_url in (
        (None, None),
        ("ada@example.org", None),
        (None, hook.url),
        ("ada@example.org", hook.url),
    ):
        mails.mails.clear()
        hook.got.clear()
        user = await somebody(connection, email, push_url)
        outcome = (await tell(connection, mails, user)).check()
        assert outcome.result == {"email": "sent" if email else None, "push": "sent" if push_url else None}
        assert [mail["Subject"] for mail in mails.mails] == (["News"] if email else [])
        told = {"user_id": str(user), "title": "News", "body": "It <rains>."}
        assert [body for _, body in hook.got] == ([told] if push_url else [])
    nobody = await new_user(connection)
    assert (await tell(connection, mails, nobody)).check().result == {"email": None, "push": None}


async def test_a_channel_that_fails_neither_keeps_the_other_back_nor_sends_it_twice(
    connection: asyncpg.Connection, mails: FaultyMailServer, hook: Hook
) -> None:
    user = await somebody(connection, "ada@example.org", hook.url)
    hook.answers = [(500, {})]
    failed = await tell(connection, mails, user)
    assert failed.outcome == "retried"
    assert (len(mails.mails), len(hook.got)) == (1, 1)
    assert failed.steps == {"email": "sent"}
    assert (await tell(connection, mails, user, failed.steps)).check().result == {"email": "sent", "push": "sent"}
    assert (len(mails.mails), len(hook.got)) == (1, 2)


async def test_what_a_channel_refuses_for_good_is_told_and_kills_the_job_only_if_nothing_was_delivered(
    connection: asyncpg.Connection, mails: FaultyMailServer, hook: Hook
) -> None:
    user = await somebody(connection, "ada@example.org", hook.url)
    mails.recipient_answers = ["550 no such user"]
    half = (await tell(connection, mails, user)).check()
    assert half.result["push"] == "sent"
    assert "550 no such user" in half.result["email"]["refused"]
    mails.recipient_answers, hook.answers = ["550 no such user"], [(410, {})]
    outcome = await tell(connection, mails, user)
    assert outcome.outcome == "dead"
    assert "email: the mail server refused it: 550 no such user; push: " in str(outcome.discarded)
    assert "410" in str(outcome.discarded)


async def test_a_webhook_that_leads_into_our_own_network_is_refused(
    connection: asyncpg.Connection, mails: FaultyMailServer, hook: Hook
) -> None:
    for address in (hook.url, "http://169.254.169.254/latest", "file:///etc/passwd"):
        user = await somebody(connection, None, address)
        outcome = await tell(connection, mails, user, allowed=[])
        assert outcome.outcome == "dead", address
        assert str(outcome.discarded).startswith("push: ")
    assert hook.got == []


async def test_a_webhook_that_is_busy_is_left_alone_for_as_long_as_it_asks(
    connection: asyncpg.Connection, mails: FaultyMailServer, hook: Hook
) -> None:
    user = await somebody(connection, None, hook.url)
    hook.answers = [(429, {"Retry-After": "33"})]
    outcome = await tell(connection, mails, user)
    assert outcome.snoozed is not None
    assert outcome.snoozed.total_seconds() == 33


async def test_a_title_or_an_address_that_would_write_headers_is_refused(
    connection: asyncpg.Connection, mails: FaultyMailServer
) -> None:
    user = await somebody(connection, "ada@example.org\r\nBcc: all@example.org", None)
    outcome = await run_job(send_notification, {"user_id": str(user), "title": "a\nBcc: b", "body": ""})
    assert "title: " in str(outcome.error)
    outcome = await tell(connection, mails, user)
    assert "line break" in str(outcome.discarded)
    assert mails.connections == 0


@pytest.mark.faults
@pytest.mark.fault(
    "Process", "killed while a webhook answers", "no second mail; a second call says that it is the same"
)
async def test_a_worker_killed_while_it_tells_somebody_tells_nobody_twice_without_saying_that_it_is_the_same(
    connection: asyncpg.Connection, app_daemon: StartApp, mails: FaultyMailServer, hook: Hook, figures: Figures
) -> None:
    hook.free.clear()
    settings = {"app_smtp_port": mails.port, "app_fetch_allow": "127.0.0.0/8"}
    victim = await app_daemon("notifications", **settings)
    user = await somebody(connection, "ada@example.org", hook.url)
    job = await enqueue(connection, "send_notification", {"user_id": str(user), "title": "News", "body": "It rains."})
    # The mail is sent and kept as sent; the webhook has heard, and has not answered.
    await aeventually(lambda: connection.fetchval("select count(*) from howdah.steps where name = 'email'"))
    await aeventually(lambda: hook.got)
    await app_daemon("notifications", **settings)
    victim.kill()
    hook.free.set()
    ended = await end_of(connection, job, 20)
    assert (ended["state"], ended["result"]) == ("completed", {"email": "sent", "push": "sent"})
    assert ended["priority"] == 2
    assert Counter(mails.recipients) == {"ada@example.org": 1}
    assert [key for key, _ in hook.got] == [hook.got[0][0]] * 2
    assert await is_empty(connection)
    figures.faults += 1
    await count_ends(connection, figures)


# -- words for the above ----------------------------------------------------------------------------------------------


async def somebody(connection: asyncpg.Connection, email: str | None, push_url: str | None) -> UUID:
    """Add a user with settings."""
    user = await new_user(connection)
    await connection.execute(
        "insert into app.notification_settings (user_id, email, push_url) values ($1, $2, $3)", user, email, push_url
    )
    return user


async def tell(
    connection: asyncpg.Connection,
    mails: FaultyMailServer,
    user: UUID,
    steps: Json | None = None,
    allowed: list[str] | None = None,
) -> JobOutcome:
    """Run one attempt at telling somebody."""
    mailer = Mailer(Settings(smtp_port=mails.port))
    hosts = ["127.0.0.0/8"] if allowed is None else allowed
    async with opened(Allowed(hosts), timeout=5, limit=1000) as fetcher:
        outcome = await run_job(
            send_notification,
            {"user_id": str(user), "title": "News", "body": "It <rains>."},
            connection=connection,
            resources={"mailer": mailer, "fetcher": fetcher},
            steps=steps,
        )
    await mailer.close()
    return outcome
