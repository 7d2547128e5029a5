"""The campaigns as the database keeps them: who may be started, what may be sent, and what the end is."""

from __future__ import annotations

from traceback import walk_tb
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from support.jobs import Held, ack, cancelled, claim, completed, dead

from demo.bot_api import Act
from handlers.campaigns import send_message, start_campaign
from howdah.testing import JobOutcome, run_job

if TYPE_CHECKING:
    from demo.bot_api import BotApi
    from handlers.telegram import Telegram

TOKEN = "123456:CANARY-token_of-the-bot"


# -- channels ---------------------------------------------------------------------------------------------------------


async def test_a_channels_limit_follows_its_row(connection: asyncpg.Connection) -> None:
    channel = await new_channel(connection, rate=30)
    assert await limit_of(connection, f"channel:{channel}") == (27, 1)
    await connection.execute("update app.channels set rate_per_second = 200 where id = $1", channel)
    assert await limit_of(connection, f"channel:{channel}") == (180, 2)
    await connection.execute("delete from app.channels where id = $1", channel)
    assert await limit_of(connection, f"channel:{channel}") is None
    assert await limit_of(connection, "chat:*") == (1, 1)


async def test_a_wrong_channel_is_refused_and_the_error_never_shows_the_token(connection: asyncpg.Connection) -> None:
    await new_channel(connection)
    for column, value, problem in [
        ("token", "''", "the token is empty"),
        ("token", "null", "the token is empty"),
        ("token", "'CANARY token'", "characters that no token has"),
        ("rate_per_second", "0", "rate_per_second is 0"),
        ("rate_per_second", "null", "rate_per_second is null"),
        ("rate_per_second", "'NaN'", "rate_per_second is NaN"),
        ("kind", "'pigeon'", "kind is 'pigeon'"),
    ]:
        with pytest.raises(asyncpg.CheckViolationError, match=problem) as refused:
            await connection.execute(f"update app.channels set {column} = {value}")
        assert "CANARY" not in repr(refused.value.as_dict())


# -- start and cancel -------------------------------------------------------------------------------------------------


async def test_a_campaign_that_is_not_there_is_an_answer(connection: asyncpg.Connection) -> None:
    for call in ("start_campaign($1, 'Ada')", "cancel_campaign($1, 'Ada', 'why')"):
        answer = await connection.fetchval(f"select app.{call}", uuid4())
        assert (answer["success"], answer["reason"]) == (False, "campaign_not_found")


async def test_a_campaign_that_was_cancelled_before_its_start_never_starts(connection: asyncpg.Connection) -> None:
    campaign = await new_campaign(connection)
    assert (await begin(connection, campaign))["created"]
    answer = await connection.fetchval("select app.cancel_campaign($1, 'Ada', 'wrong text')", campaign)
    assert (answer["success"], answer["cancelled"]) == (True, 0)
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    assert (await begin(connection, campaign))["reason"] == "cancelled"
    again = await connection.fetchval("select app.cancel_campaign($1, 'Ada', 'wrong text')", campaign)
    assert again["reason"] == "already_cancelled"


async def test_a_campaign_cancelled_while_it_is_being_written_sends_nothing(connection: asyncpg.Connection) -> None:
    campaign = await new_campaign(connection)
    await connection.execute("update app.campaigns set status = 'cancelled'")
    assert await connection.fetchval("select app.release_campaign($1, 'Ada')", campaign) is None
    assert await connection.fetchval("select count(*) from howdah.jobs") == 0
    outcome = await run_job(start_campaign, payload(campaign), connection=connection, commit=True)
    assert outcome.result == {"started": False, "status": "cancelled"}


async def test_what_cannot_be_rendered_fails_for_its_recipient_alone(connection: asyncpg.Connection) -> None:
    body = "{{ 'x' * n }}{{ 1 / n }}{{ tail }}"
    variables = [{"n": 1, "tail": "!"}, {"n": 0, "tail": "!"}, {"n": 5000, "tail": ""}, {"n": 1}, {"tail": ""}]
    campaign = await new_campaign(connection, body=body, variables=variables)
    outcome = await run_job(start_campaign, payload(campaign), connection=connection, commit=True)
    assert outcome.check().result == {"started": True, "total": 5, "failed": 4}
    rows = await connection.fetch("select text, status, error from app.messages order by chat_id")
    assert [tuple(row) for row in rows] == [
        ("x1.0!", "queued", None),
        (None, "failed", "template: ZeroDivisionError: division by zero"),
        (None, "failed", "the text has 5006 characters, and a message holds 4096"),
        (None, "failed", "a variable is missing: 'tail' is undefined"),
        (None, "failed", "a variable is missing: 'n' is undefined"),
    ]


async def test_a_template_reaches_nothing_but_its_variables(connection: asyncpg.Connection) -> None:
    for body in ("{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{{ '\\x00' }}a", " "):
        await running_campaign(connection, body=body)
    rows = await connection.fetch("select distinct text, status from app.messages")
    assert [tuple(row) for row in rows] == [(None, "failed")]


async def test_an_empty_campaign_is_over_at_once(connection: asyncpg.Connection) -> None:
    campaign = await new_campaign(connection, variables=[])
    (await run_job(start_campaign, payload(campaign), connection=connection, commit=True)).check()
    assert await connection.fetchval("select seen from howdah.settle()") == 1
    [held] = await claim(connection, kinds=["finish_campaign"])
    assert await finish(connection, campaign) == ("completed", {"total": 0})
    await ack(connection, completed(held))


# -- a message --------------------------------------------------------------------------------------------------------


async def test_a_message_is_on_the_wire_before_the_server_is_asked_and_again_is_counted(
    connection: asyncpg.Connection,
) -> None:
    await running_campaign(connection)
    message = await only_message(connection)
    begun = [await begin_message(connection, message) for _ in range(3)]
    assert [row["status"] for row in begun] == ["sending"] * 3
    assert (begun[0]["token"], begun[0]["chat_id"], begun[0]["text"]) == (TOKEN, "1", "Hello")
    assert await connection.fetchval("select repeated from app.messages") == 2
    # What was surely not delivered is asked for again, and that is no repetition.
    await end_message(connection, message, "queued")
    await begin_message(connection, message)
    assert await connection.fetchval("select repeated from app.messages") == 2


async def test_a_message_that_has_ended_is_not_sent_again(
    connection: asyncpg.Connection, bot: BotApi, bot_client: Telegram
) -> None:
    await running_campaign(connection)
    message = await only_message(connection)
    for ended in ("failed", "unknown", "cancelled"):
        await connection.execute("update app.messages set status = $1", ended)
        outcome = await attempt(connection, message, bot_client)
        assert (outcome.outcome, outcome.reason) == ("cancelled", f"there is nothing to send: {ended}")
    # The worker died between the answer and its own word of it.
    await connection.execute("update app.messages set status = 'sent', external_id = '7'")
    outcome = await attempt(connection, message, bot_client)
    assert outcome.result == {"status": "sent", "external_id": "7", "error": None}
    assert bot.requests == []


async def test_that_it_was_delivered_is_believed_whoever_says_it_and_anything_else_only_in_time(
    connection: asyncpg.Connection,
) -> None:
    await running_campaign(connection)
    message = await only_message(connection)
    await begin_message(connection, message)
    await end_message(connection, message, "unknown", error="no answer")
    await end_message(connection, message, "queued")  # somebody who was frozen meanwhile
    assert await statuses(connection) == {"1": "unknown"}
    await end_message(connection, message, "sent", external_id="7")
    await end_message(connection, message, "unknown")
    await end_message(connection, message, "sent", external_id="8")
    assert tuple(await connection.fetchrow("select status, external_id, error from app.messages")) == (
        "sent",
        "7",
        None,
    )


async def test_a_quiet_channel_sends_nothing_and_says_for_how_long(
    connection: asyncpg.Connection, bot: BotApi, bot_client: Telegram
) -> None:
    await running_campaign(connection)
    message = await only_message(connection)
    await connection.execute("select app.quiet_channel($1, 3600)", message)
    begun = await begin_message(connection, message)
    assert (begun["status"], begun["token"]) == ("quiet", None)
    assert 50 < begun["wait"] <= 60  # after a minute one asks again: it may have been meant for one chat
    await connection.execute("select app.quiet_channel($1, 5)", message)
    assert (await begin_message(connection, message))["wait"] > 50
    outcome = await attempt(connection, message, bot_client)
    assert outcome.snoozed is not None
    assert (outcome.snoozed.total_seconds() > 50, bot.requests) == (True, [])
    assert await statuses(connection) == {"1": "queued"}


async def test_a_server_that_stays_broken_fails_the_message_with_the_last_attempt(
    connection: asyncpg.Connection, bot: BotApi, bot_client: Telegram
) -> None:
    await running_campaign(connection)
    message = await only_message(connection)
    bot.acts["1"].extend([Act.BREAK, Act.BREAK])
    assert (await attempt(connection, message, bot_client, number=7)).outcome == "retried"
    assert await statuses(connection) == {"1": "queued"}
    outcome = await attempt(connection, message, bot_client, number=8)
    assert (outcome.outcome, str(outcome.error)) == ("dead", "500 Internal Server Error")
    assert await statuses(connection) == {"1": "failed"}
    assert await connection.fetchval("select repeated from app.messages") == 0
    # No frame of what was raised holds the token, for those who report errors with their variables.
    assert outcome.error is not None
    frames = [frame for frame, _ in walk_tb(outcome.error.__traceback__)]
    assert frames
    assert not any("CANARY" in repr(frame.f_locals) for frame in frames)


async def test_a_message_that_is_gone_cancels_its_job(connection: asyncpg.Connection, bot_client: Telegram) -> None:
    outcome = await attempt(connection, uuid4(), bot_client)
    assert (outcome.outcome, outcome.reason) == ("cancelled", "there is nothing to send: gone")


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_the_end_writes_what_dead_and_cancelled_jobs_could_not(connection: asyncpg.Connection) -> None:
    campaign = await running_campaign(connection, chats=6)
    await connection.execute("update howdah.jobs set limits = null, gate = null")  # here they are claimed as any others
    jobs = {job.row["payload"]["message_id"]: job for job in await claim(connection, kinds=["send_message"], count=10)}
    ids = await connection.fetch("select id, chat_id from app.messages order by chat_id")
    held: dict[str, Held] = {row["chat_id"]: jobs[str(row["id"])] for row in ids}
    message: dict[str, UUID] = {row["chat_id"]: row["id"] for row in ids}
    for chat in ("1", "2", "6"):
        await begin_message(connection, message[chat])
    await end_message(connection, message["1"], "sent", external_id="7")
    await ack(
        connection,
        completed(held["1"]),
        dead(held["2"], "its worker died twice"),
        dead(held["3"], "it took too long"),
        cancelled(held["4"], "Ada", "not this one"),
        dead(held["5"]),
        cancelled(held["6"], "Ada", "nor this"),
    )
    assert await finish(connection, campaign) == (
        "completed",
        {"total": 6, "sent": 1, "failed": 2, "unknown": 2, "cancelled": 1},
    )
    rows = await connection.fetch("select chat_id, status, error from app.messages order by chat_id")
    assert [tuple(row) for row in rows] == [
        ("1", "sent", None),
        ("2", "unknown", "its worker died twice"),
        ("3", "failed", "it took too long"),
        ("4", "cancelled", "not this one"),
        ("5", "failed", "hopeless"),
        ("6", "unknown", "nor this"),
    ]


async def test_a_campaign_whose_jobs_somebody_cancels_by_their_subject_ends_with_true_counts(
    connection: asyncpg.Connection,
) -> None:
    campaign = await running_campaign(connection, chats=3)
    assert await connection.fetchval("select howdah.cancel_subject($1, 'Ada', 'enough')", f"campaign:{campaign}") == 3
    assert await connection.fetchval("select seen from howdah.settle()") == 1
    assert len(await claim(connection, kinds=["finish_campaign"])) == 1
    assert await finish(connection, campaign) == ("completed", {"total": 3, "cancelled": 3})
    assert await connection.fetchval("select array_agg(distinct error) from app.messages") == ["enough"]


async def test_a_campaign_ends_once(connection: asyncpg.Connection) -> None:
    campaign = await running_campaign(connection)
    await end_message(connection, await only_message(connection), "sent", external_id="7")
    first = await finish(connection, campaign)
    ended_at = await connection.fetchval("select completed_at from app.campaigns")
    assert await finish(connection, campaign) == first == ("completed", {"total": 1, "sent": 1})
    assert await connection.fetchval("select completed_at from app.campaigns") == ended_at
    assert await connection.fetchval("select count(*) from app.audit_log where action = 'campaign_ended'") == 1
    answer = await connection.fetchval("select app.cancel_campaign($1, 'Ada', 'too late')", campaign)
    assert answer["reason"] == "already_completed"


# -- words for the above ----------------------------------------------------------------------------------------------


async def new_channel(connection: asyncpg.Connection, rate: float = 1000) -> UUID:
    channel: UUID = await connection.fetchval(
        "insert into app.channels (token, rate_per_second) values ($1, $2) returning id", TOKEN, rate
    )
    return channel


async def new_campaign(
    connection: asyncpg.Connection, *, body: str = "Hello", variables: list[dict[str, Any]] | None = None
) -> UUID:
    """A campaign to the chats 1, 2, …, one for each of `variables`; one if nothing is said."""
    variables = [{}] if variables is None else variables
    template = await connection.fetchval("insert into app.templates (body) values ($1) returning id", body)
    batch = await connection.fetchval("insert into app.batches default values returning id")
    await connection.execute(
        "insert into app.batch_recipients select $1, r.place, r.value from jsonb_array_elements($2) with ordinality r(value, place)",
        batch,
        variables,
    )
    campaign: UUID = await connection.fetchval(
        "select app.create_campaign($1, $2, $3)", batch, template, await new_channel(connection)
    )
    return campaign


async def running_campaign(connection: asyncpg.Connection, *, body: str = "Hello", chats: int = 1) -> UUID:
    campaign = await new_campaign(connection, body=body, variables=[{}] * chats)
    (await run_job(start_campaign, payload(campaign), connection=connection, commit=True)).check()
    return campaign


def payload(campaign: UUID) -> dict[str, str]:
    return {"campaign_id": str(campaign), "started_by": "Ada"}


async def begin(connection: asyncpg.Connection, campaign: UUID) -> dict[str, Any]:
    answer: dict[str, Any] = await connection.fetchval("select app.start_campaign($1, 'Ada')", campaign)
    return answer


async def only_message(connection: asyncpg.Connection) -> UUID:
    [row] = await connection.fetch("select id from app.messages")
    return row["id"]


async def begin_message(connection: asyncpg.Connection, message: UUID) -> asyncpg.Record:
    [row] = await connection.fetch("select * from app.begin_message($1)", message)
    return row


async def end_message(
    connection: asyncpg.Connection, message: UUID, status: str, external_id: str | None = None, error: str | None = None
) -> None:
    await connection.execute("select app.end_message($1, $2, $3, $4)", message, status, external_id, error)


async def attempt(connection: asyncpg.Connection, message: UUID, client: Telegram, number: int = 1) -> JobOutcome:
    return await run_job(
        send_message,
        {"message_id": str(message)},
        connection=connection,
        resources={"telegram": client},
        attempt=number,
    )


async def statuses(connection: asyncpg.Connection) -> dict[str, str]:
    return dict(await connection.fetch("select chat_id, status from app.messages"))


async def finish(connection: asyncpg.Connection, campaign: UUID) -> tuple[str, dict[str, int]]:
    """End a campaign, and give its status and the counts that are not nothing."""
    counts = await connection.fetchval("select app.finish_campaign($1)", campaign)
    return counts.pop("status"), {name: number for name, number in counts.items() if number or name == "total"}


async def limit_of(connection: asyncpg.Connection, name: str) -> tuple[float, int] | None:
    """Give a limit's rate and burst."""
    row = await connection.fetchrow("select rate, burst from howdah.limits where name = $1", name)
    return tuple(row) if row else None
