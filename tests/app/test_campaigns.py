"""Campaigns, run by real daemons against a Bot API server that keeps books."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from support.eventually import aeventually
from support.facts import count_ends, has_ended, is_empty

from demo.bot_api import Act, BotApi

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg
    from conftest import StartApp
    from support.daemon import Daemon
    from support.figures import Figures

TOKEN = "123456:CANARY-token_of-the-bot"
FINAL = {"completed", "cancelled", "failed"}


@pytest.fixture
def daemon(app_daemon: StartApp, bot: BotApi) -> StartApp:
    return partial(app_daemon, "campaigns", APP_TELEGRAM_URL=bot.url, APP_TELEGRAM_TIMEOUT=0.5)


async def test_each_message_ends_as_it_should_and_the_token_is_nowhere(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp
) -> None:
    worker = await daemon()
    names = ["fine", "blocked", "missing", "nameless", "broken", "echoed", "flooded", "silent", "cut", "gateway"]
    bot.blocked, bot.missing, bot.retry_after = {"blocked"}, {"missing"}, 1
    for chat, act in [("broken", Act.BREAK), ("echoed", Act.ECHO), ("flooded", Act.FLOOD)]:
        bot.acts[chat].append(act)
    for chat, act in [("silent", Act.HOLD), ("cut", Act.CUT), ("gateway", Act.GATEWAY)]:
        bot.acts[chat].append(act)
    campaign = await new_campaign(connection, {chat: {"name": chat} if chat != "nameless" else {} for chat in names})
    await start(connection, campaign)
    ended = await end_of(connection, campaign)

    found = {row["chat_id"]: row for row in await messages(connection, campaign)}
    assert {chat: row["status"] for chat, row in found.items()} == {
        "fine": "sent",
        "blocked": "failed",
        "missing": "failed",
        "nameless": "failed",
        "broken": "sent",
        "echoed": "sent",
        "flooded": "sent",
        "silent": "unknown",
        "cut": "unknown",
        "gateway": "unknown",
    }
    assert found["blocked"]["error"] == "403 Forbidden: bot was blocked by the user"
    assert found["missing"]["error"] == "400 Bad Request: chat not found"
    assert found["nameless"]["error"] == "a variable is missing: 'name' is undefined"
    assert (found["fine"]["text"], found["nameless"]["text"]) == ("Dear fine, hello", None)
    assert all(row["sent_at"] and row["external_id"] for row in found.values() if row["status"] == "sent")
    assert counts(ended) == {"total": 10, "sent": 4, "failed": 3, "unknown": 3, "cancelled": 0, "repeated": 0}
    assert (ended["status"], ended["completed_at"] > ended["started_at"]) == ("completed", True)
    # Once each, by the server's own books: asked again is only what was surely not delivered.
    assert bot.delivered == dict.fromkeys(["fine", "broken", "echoed", "flooded", "silent", "cut", "gateway"], 1)
    asked = {chat: [request.at for request in bot.requests if request.chat_id == chat] for chat in names}
    assert {chat for chat in names if len(asked[chat]) > 1} == {"broken", "echoed", "flooded"}
    assert asked["flooded"][1] - asked["flooded"][0] >= bot.retry_after
    # The sends are no failures: what can be known of them is known.
    assert await states(connection, "send_message") == {"completed": 9}
    assert await connection.fetchval(
        "select array_agg(action order by id) from app.audit_log where subject = $1", f"campaign:{campaign}"
    ) == ["campaign_created", "campaign_started", "campaign_ended"]

    assert await connection.fetchval("select count(*) from howdah.job_status where error like '%at /bot***%'") == 1
    assert await places_of(connection, "CANARY") == ["app.channels"]
    assert "CANARY" not in worker.output()


async def test_a_campaign_that_is_started_twice_sends_nothing_twice(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp
) -> None:
    chats = {f"chat{number}": {"name": number} for number in range(60)}
    campaign = await new_campaign(connection, chats)
    first, second = await start(connection, campaign), await start(connection, campaign)
    assert (first["created"], second["created"], first["job_id"]) == (True, False, second["job_id"])
    bot.acts["chat0"].append(Act.HOLD)
    await daemon(APP_TELEGRAM_TIMEOUT=20)
    await aeventually(lambda: bot.holding)
    answer = await start(connection, campaign)
    assert (answer["success"], answer["reason"]) == (False, "already_started")
    # Somebody who knows nothing of the function, while it runs and after its end.
    again = "select id from howdah.enqueue('start_campaign', $1)"
    payload = {"campaign_id": str(campaign), "started_by": "somebody"}
    jobs = [await connection.fetchval(again, payload)]
    await aeventually(lambda: has_ended(connection, *jobs))
    bot.released.set()
    ended = await end_of(connection, campaign)
    jobs.append(await connection.fetchval(again, payload))
    await aeventually(lambda: is_empty(connection))
    results = await connection.fetch("select result from howdah.job_status where id = any ($1) order by id", jobs)
    assert [row["result"] for row in results] == [
        {"started": False, "status": "running"},
        {"started": False, "status": "completed"},
    ]
    assert counts(ended)["sent"] == 60
    assert bot.delivered == dict.fromkeys(chats, 1)
    assert await states(connection, "send_message") == {"completed": 60}
    assert await states(connection, "finish_campaign") == {"completed": 1}


async def test_a_campaign_cancelled_half_way_sends_no_more_and_its_counts_are_true(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp
) -> None:
    bot.latency = 0.1
    chats = {f"chat{number}": {"name": number} for number in range(100)}
    campaign = await new_campaign(connection, chats, rate=60)
    await daemon(HOWDAH_QUEUES="default:5")
    await start(connection, campaign)
    await aeventually(lambda: len(bot.requests) >= 40)
    answer = await connection.fetchval("select app.cancel_campaign($1, 'Ada', 'wrong text')", campaign)
    on_the_wire = {request.chat_id for request in bot.requests}
    assert answer["success"]
    assert answer["cancelled"] + answer["sending"] >= 40
    await aeventually(lambda: is_empty(connection))
    ended = await campaign_row(connection, campaign)
    sent = sum(bot.delivered.values())
    # What was on the wire when it was cancelled is seen to its end, and counted by what came of it.
    assert 40 <= sent <= len(on_the_wire) + answer["sending"]
    assert counts(ended) == {
        "total": 100, "sent": sent, "failed": 0, "unknown": 0, "cancelled": 100 - sent, "repeated": 0
    }  # fmt: skip
    assert (ended["status"], ended["completed_at"]) == ("cancelled", None)
    assert max(bot.delivered.values()) == 1
    assert await connection.fetchval(
        "select array[actor, details ->> 'reason'] from app.audit_log where action = 'campaign_cancelled'"
    ) == ["Ada", "wrong text"]
    reasons = await connection.fetch(
        "select distinct cancelled_by, cancel_reason from howdah.job_status where kind = 'send_message' and state = 'cancelled'"
    )
    # A job that was at hand already asks first, and is told.
    assert {tuple(row) for row in reasons} - {("handler", "there is nothing to send: cancelled")} == {
        ("Ada", "wrong text")
    }
    assert (await start(connection, campaign))["reason"] == "cancelled"


async def test_an_answer_that_comes_while_the_database_is_away_is_not_forgotten(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp, handlers_url: str
) -> None:
    campaign = await new_campaign(connection, {"a": {"name": "Ada"}})
    bot.acts["a"].append(Act.HOLD)
    await daemon(APP_TELEGRAM_TIMEOUT=20)
    await start(connection, campaign)
    await aeventually(lambda: bot.holding)
    login = urlsplit(handlers_url).username
    await connection.execute(f"alter role {login} connection limit 0")
    await connection.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = $1", login)
    bot.released.set()
    await asyncio.sleep(0.3)  # for the first tries, which nobody can see
    await connection.execute(f"alter role {login} connection limit -1")
    ended = await end_of(connection, campaign)
    assert (counts(ended)["sent"], counts(ended)["repeated"]) == (1, 0)
    assert [request.chat_id for request in bot.requests] == ["a"]


@pytest.mark.long
async def test_a_channel_that_is_set_too_fast_is_calmed_by_the_server_and_loses_nobody(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp
) -> None:
    bot.rate = 20
    chats = {f"chat{number}": {"name": number} for number in range(100)}
    campaign = await new_campaign(connection, chats, rate=60)
    await asyncio.gather(daemon(), daemon())
    await start(connection, campaign)
    ended = await end_of(connection, campaign, 60)
    assert counts(ended) == {"total": 100, "sent": 100, "failed": 0, "unknown": 0, "cancelled": 0, "repeated": 0}
    assert bot.delivered == dict.fromkeys(chats, 1)
    refused = [request for request in bot.requests if request.status == 429]
    print(json.dumps({"asked": len(bot.requests), "refused": len(refused)}))  # noqa: T201
    assert 0 < len(refused) < 50


@pytest.mark.faults
@pytest.mark.fault(
    "Process",
    "killed while it sends a campaign of messages",
    "only messages on the wire may come twice, and are named; the rate holds",
)
async def test_a_killed_worker_costs_at_most_the_messages_on_the_wire_twice_and_the_rate_is_kept(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp, figures: Figures
) -> None:
    await two_workers_one_killed(connection, bot, daemon, recipients=100, rate=50, settle=20)
    figures.faults += 1
    await count_ends(connection, figures)


@pytest.mark.long
async def test_two_thousand_recipients_over_two_workers_one_killed(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp
) -> None:
    figures = await two_workers_one_killed(connection, bot, daemon, recipients=2000, rate=30, settle=120)
    print(json.dumps(figures))  # noqa: T201 - what a long test is run for


async def two_workers_one_killed(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp, *, recipients: int, rate: int, settle: float
) -> dict[str, Any]:
    """The short and the long form of one proof; gives its figures."""
    bot.rate, bot.latency = rate, 0.05
    chats = {f"chat{number}": {"name": number} for number in range(recipients)}
    campaign = await new_campaign(connection, chats, rate=rate)
    victim, _ = await asyncio.gather(daemon(), daemon())
    await start(connection, campaign)
    await aeventually(lambda: len(bot.requests) >= recipients // 3, settle)
    on_the_wire = await kill_with_messages_on_the_wire(connection, bot, victim)
    ended = await end_of(connection, campaign, settle * 2)
    await aeventually(lambda: is_empty(connection))

    assert counts(ended) | {"repeated": 0} == {
        "total": recipients, "sent": recipients, "failed": 0, "unknown": 0, "cancelled": 0, "repeated": 0
    }  # fmt: skip
    assert bot.delivered.keys() == chats.keys()
    twice = {chat for chat, times in bot.delivered.items() if times > 1}
    assert max(bot.delivered.values()) <= 2
    # The report is of the messages that may have arrived twice: those that did, and no more than were on the wire.
    repeated = {row["chat_id"] for row in await messages(connection, campaign) if row["repeated"]}
    assert twice <= repeated <= on_the_wire
    assert ended["repeated"] == len(repeated) == len(on_the_wire) > 0
    assert bot.most_in_a_second() <= rate
    assert all(request.status == 200 for request in bot.requests)
    assert await states(connection, "finish_campaign") == {"completed": 1}
    assert await connection.fetchval("select count(*) from app.audit_log where action = 'campaign_ended'") == 1
    return counts(ended) | {
        "twice": len(twice),
        "on the wire": len(on_the_wire),
        "most in a second": bot.most_in_a_second(),
        "seconds": round(bot.requests[-1].at - bot.requests[0].at, 1),
    }


async def kill_with_messages_on_the_wire(connection: asyncpg.Connection, bot: BotApi, victim: Daemon) -> set[str]:
    """Kill -9 a worker at a moment when it has messages on the wire, and give their chats."""
    mine = """select m.chat_id from app.messages m join howdah.jobs j on j.payload ->> 'message_id' = m.id::text
              where m.status = 'sending' and j.leased_by = $1 order by 1"""

    async def caught() -> set[str]:
        victim.freeze()
        before: list[str] | None = None
        while (held := [row["chat_id"] for row in await connection.fetch(mine, victim.worker)]) != before:
            before = held  # the server of the database may still be at what the worker has asked for
            await asyncio.sleep(0.02)
        if not set(held) & {request.chat_id for request in bot.requests}:
            victim.thaw()
        return set(held) & {request.chat_id for request in bot.requests}

    await aeventually(caught)
    victim.kill()
    return {row["chat_id"] for row in await connection.fetch(mine, victim.worker)}


async def test_a_template_that_cannot_be_read_sends_nothing_and_may_be_mended(
    connection: asyncpg.Connection, bot: BotApi, daemon: StartApp
) -> None:
    await daemon()
    campaign = await new_campaign(connection, {"a": {"name": "Ada"}}, body="Dear\n{% if %}")
    await start(connection, campaign)
    await aeventually(lambda: status_is(connection, campaign, "failed"))
    problem = "template, line 2: Expected an expression, got 'end of statement block'"
    assert (await campaign_row(connection, campaign))["error"] == problem
    await aeventually(lambda: is_empty(connection))
    assert await states(connection, "start_campaign") == {"dead": 1}
    assert not await messages(connection, campaign)
    await connection.execute("update app.templates set body = 'Dear {{ name }}'")
    assert (await start(connection, campaign))["created"]
    ended = await end_of(connection, campaign)
    assert (ended["status"], ended["error"], [request.text for request in bot.requests]) == (
        "completed",
        None,
        ["Dear Ada"],
    )


# -- words for the above ----------------------------------------------------------------------------------------------


async def new_campaign(
    connection: asyncpg.Connection,
    recipients: dict[str, dict[str, Any]],
    *,
    rate: float = 1000,
    body: str = "Dear {{ name }}, hello",
) -> UUID:
    channel = await connection.fetchval(
        "insert into app.channels (token, rate_per_second) values ($1, $2) returning id", TOKEN, rate
    )
    template = await connection.fetchval("insert into app.templates (body) values ($1) returning id", body)
    batch = await connection.fetchval("insert into app.batches default values returning id")
    await connection.execute(
        "insert into app.batch_recipients (batch_id, chat_id, variables) select $1, r.key, r.value from jsonb_each($2) r",
        batch,
        recipients,
    )
    campaign: UUID = await connection.fetchval(
        "select app.create_campaign($1, $2, $3, 'Ada')", batch, template, channel
    )
    return campaign


async def start(connection: asyncpg.Connection, campaign: UUID) -> dict[str, Any]:
    answer: dict[str, Any] = await connection.fetchval("select app.start_campaign($1, 'Ada')", campaign)
    return answer


async def campaign_row(connection: asyncpg.Connection, campaign: UUID) -> asyncpg.Record:
    [row] = await connection.fetch("select * from app.campaigns where id = $1", campaign)
    return row


async def status_is(connection: asyncpg.Connection, campaign: UUID, *wanted: str) -> bool:
    return (await campaign_row(connection, campaign))["status"] in wanted


async def end_of(connection: asyncpg.Connection, campaign: UUID, timeout: float = 15) -> asyncpg.Record:  # noqa: ASYNC109
    await aeventually(lambda: status_is(connection, campaign, *FINAL), timeout)
    return await campaign_row(connection, campaign)


def counts(campaign: asyncpg.Record) -> dict[str, int]:
    return {name: campaign[name] for name in ("total", "sent", "failed", "unknown", "cancelled", "repeated")}


async def messages(connection: asyncpg.Connection, campaign: UUID) -> list[asyncpg.Record]:
    return await connection.fetch("select * from app.messages where campaign_id = $1", campaign)


async def states(connection: asyncpg.Connection, kind: str) -> dict[str, int]:
    return dict(
        await connection.fetch("select state, count(*) from howdah.job_status where kind = $1 group by 1", kind)
    )


async def places_of(connection: asyncpg.Connection, text: str) -> list[str]:
    """Give the tables that have a row with this text in it."""
    tables = await connection.fetch(
        "select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname in ('app', 'howdah') order by 1"
    )
    like = f"%{text}%"
    return [
        table["name"]
        for table in tables
        if await connection.fetchval(f"select exists (select from {table['name']} t where t::text like $1)", like)
    ]
