"""Campaigns: the same text to many chats, once each. app.start_campaign and app.cancel_campaign are what people call."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from pydantic import BaseModel
from tenacity import retry, stop_after_delay, wait_random_exponential

from handlers.rendering import BadTemplateError, Template, Text
from handlers.telegram import Later, NotSent, Outcome, Refused, Sent, Unknown
from howdah import Cancel, Discard, Job, Snooze, handler

T = TypeVar("T")

_PART = 1000  # recipients that are rendered and written at once
_LAST_WORDS = 2.0  # seconds that a cancelled attempt waits for the answer to what it has sent; a drain leaves it three


class StartCampaign(BaseModel):
    """Which campaign, and who starts it."""

    campaign_id: UUID
    started_by: str


@handler("start_campaign", transaction=True, timeout=1800)
async def start_campaign(job: Job[StartCampaign], connection: asyncpg.Connection) -> dict[str, Any] | Cancel | Discard:
    """Write every recipient's message and enqueue the sends, all in one commit. A campaign that has been started stays as it is."""
    campaign_id = job.payload.campaign_id
    campaign = await connection.fetchrow(
        """select c.status, c.batch_id, t.body from app.campaigns c join app.templates t on t.id = c.template_id where c.id = $1""",
        campaign_id,
    )
    if campaign is None:
        return Cancel("the campaign is gone")
    if campaign["status"] not in {"draft", "starting"}:
        return {"started": False, "status": campaign["status"]}
    try:
        await _write_messages(job, connection, campaign["batch_id"], Template(campaign["body"]))
    except BadTemplateError as error:
        return await _give_up(job, str(error))
    counts = await connection.fetchval("select app.release_campaign($1, $2)", campaign_id, job.payload.started_by)
    return Cancel("somebody has started or cancelled it meanwhile") if counts is None else {"started": True, **counts}


async def _write_messages(
    job: Job[StartCampaign], connection: asyncpg.Connection, batch_id: UUID, template: Template
) -> None:
    done, past = 0, ""
    while part := await connection.fetch(
        """select r.chat_id, r.variables from app.batch_recipients r
           where r.batch_id = $1 and r.chat_id > $2 order by r.chat_id limit $3""",
        batch_id,
        past,
        _PART,
    ):
        past = part[-1]["chat_id"]
        # In a thread: a thousand texts would hold up the other jobs of this worker.
        texts: list[Text] = await asyncio.to_thread(
            lambda rows: [template.render(row["variables"]) for row in rows], part
        )
        await connection.execute(
            """insert into app.messages (campaign_id, chat_id, text, error, status)
               select $1, r.chat_id, r.text, r.error, case when r.text is null then 'failed' else 'queued' end
               from unnest($2::text[], $3::text[], $4::text[]) r(chat_id, text, error)
               on conflict (campaign_id, chat_id) do nothing""",
            job.payload.campaign_id,
            [row["chat_id"] for row in part],
            [text.text for text in texts],
            [text.error for text in texts],
        )
        done += len(part)
        await job.report({"rendered": done})


async def _give_up(job: Job[StartCampaign], reason: str) -> Discard:
    """Write down why nothing can be sent. On a connection of its own, for the job's transaction is undone with it."""
    async with job.connection() as connection:
        await connection.execute(
            """with given_up as (
                 update app.campaigns set status = 'failed', error = $2 where id = $1 and status in ('draft', 'starting') returning id)
               insert into app.audit_log (actor, action, subject, details)
               select $3, 'campaign_failed', 'campaign:' || g.id, jsonb_build_object('reason', $2::text) from given_up g""",
            job.payload.campaign_id,
            reason,
            job.payload.started_by,
        )
    return Discard(reason)


class SendMessage(BaseModel):
    """Which message."""

    message_id: UUID


class TelegramError(Exception):
    """The Bot API did not take a message, and may when it is asked again."""


@handler("send_message", timeout=90, max_attempts=8)
async def send_message(job: Job[SendMessage]) -> dict[str, Any] | Cancel | Snooze:
    """Send one message and write down what came of it. Every attempt has passed the limits, so it asks the server once."""
    outcome = await _seen_through(_deliver(job))
    match outcome:
        case Cancel():
            return outcome
        case Later(seconds):
            return Snooze(seconds)
        case NotSent(reason):  # raised where no frame holds the token
            raise TelegramError(reason)
    status, external_id, error = _row(outcome)
    return {"status": status, "external_id": external_id, "error": error}


async def _deliver(job: Job[SendMessage]) -> Outcome | Cancel:
    message_id = job.payload.message_id
    async with job.connection() as connection:
        [message] = await connection.fetch("select * from app.begin_message($1)", message_id)
    match message["status"]:
        case "sending":
            outcome: Outcome = await job.resources["telegram"].send_message(
                message["token"], message["chat_id"], message["text"]
            )
            await _write_down(job, outcome)
            return outcome
        case "sent":  # by an attempt that did not come to say so
            return Sent(message["external_id"])
        case "quiet":
            return Later(message["wait"], "the server wants silence")
        case other:
            return Cancel(f"there is nothing to send: {other}")


# Whatever keeps the answer from being written, such as a database that is away for a moment: giving up means that it is sent again.
@retry(stop=stop_after_delay(15), wait=wait_random_exponential(0.1, max=2), reraise=True)
async def _write_down(job: Job[SendMessage], outcome: Outcome) -> None:
    status, external_id, error = _row(outcome)
    if isinstance(outcome, NotSent) and job.attempt >= job.max_attempts:
        status = "failed"
    async with job.connection() as connection:
        await connection.execute(
            "select app.end_message($1, $2, $3, $4)", job.payload.message_id, status, external_id, error
        )
        if isinstance(outcome, Later):
            await connection.execute("select app.quiet_channel($1, $2)", job.payload.message_id, outcome.seconds)


def _row(outcome: Outcome) -> tuple[str, str | None, str | None]:
    """Give a message's status, external_id and error."""
    match outcome:
        case Sent(external_id):
            return "sent", external_id, None
        case Refused(reason):
            return "failed", None, reason
        case Unknown(reason):
            return "unknown", None, reason
        case Later(_, reason) | NotSent(reason):
            return "queued", None, reason


async def _seen_through(work: Coroutine[Any, Any, T]) -> T:
    """Give what `work` gives, even if the attempt is cancelled meanwhile: what is on the wire cannot be called back."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_LAST_WORDS)
        if not task.done():
            raise
        return task.result()
    finally:
        task.cancel()


class FinishCampaign(BaseModel):
    """Which campaign."""

    campaign_id: UUID


@handler("finish_campaign", transaction=True, max_attempts=10)
async def finish_campaign(job: Job[FinishCampaign], connection: asyncpg.Connection) -> dict[str, Any] | Cancel:
    """End a campaign, all of whose sends have ended, with the counts of what came of them."""
    counts = await connection.fetchval("select app.finish_campaign($1)", job.payload.campaign_id)
    return Cancel("the campaign is gone") if counts is None else counts
