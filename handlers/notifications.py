"""Notifications: what somebody is told goes where their settings say, by mail, to a webhook of their own, or to both."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, TypeGuard
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field

from handlers.fetching import Fetcher, HopelessFetchError, TryLaterError
from handlers.letters import LetterError, OneLine, name_of, write
from handlers.mail import send
from howdah import Discard, Job, Snooze, handler


class SendNotification(BaseModel):
    """Who is told what."""

    user_id: UUID
    title: Annotated[OneLine, Field(min_length=1, max_length=200)]
    body: Annotated[str, Field(max_length=20_000)]


@handler("send_notification", priority=2, timeout=180, max_attempts=8)
async def send_notification(job: Job[SendNotification]) -> Any:
    """Tell somebody something, once in each channel that their settings name.

    One channel never waits for the other. What a channel refuses for good stands in the result; where nothing else was
    delivered, the job is dead with the reason.
    """
    async with job.connection() as connection:
        wanted = await connection.fetchrow(_WANTED, job.payload.user_id)
    channels = {
        name: job.step(name, deliver, job, wanted)
        for name, deliver in (("email", _mail), ("push", _push))
        if wanted is not None and wanted[name] is not None
    }
    answers = await asyncio.gather(*channels.values(), return_exceptions=True)
    said: dict[str, Any] = dict(zip(channels, answers, strict=True))
    for failure in sorted(filter(_is_error, answers), key=lambda failure: isinstance(failure, TryLaterError)):
        delay = failure.snooze_for(job.created_at, datetime.now(UTC)) if isinstance(failure, TryLaterError) else None
        if delay is None:
            raise failure
        return Snooze(delay)
    if said and "sent" not in said.values():
        return Discard("; ".join(f"{name}: {answer['refused']}" for name, answer in said.items()))
    return {"email": None, "push": None, **said}


_WANTED = """
select n.email, n.push_url as push, u.full_name
from app.notification_settings n join app.users u on u.id = n.user_id where n.user_id = $1"""


def _is_error(answer: Any) -> TypeGuard[BaseException]:
    return isinstance(answer, BaseException)


# Each is a step of its own, so it is done once: `sent`, or why it never will be.


async def _mail(job: Job[SendNotification], wanted: asyncpg.Record) -> Any:
    title, body = job.payload.title, job.payload.body
    try:
        letter = write(
            job, "notification", to=wanted["email"], name=wanted["full_name"], subject=title, title=title, body=body
        )
        await send(job, letter)
    except LetterError as error:
        return {"refused": str(error)}
    return "sent"


async def _push(job: Job[SendNotification], wanted: asyncpg.Record) -> Any:
    fetcher: Fetcher = job.resources["fetcher"]
    told = {"user_id": str(job.payload.user_id), "title": job.payload.title, "body": job.payload.body}
    try:
        # Whoever takes the key knows a second delivery for what it is: one is sent where the first one's answer was lost.
        await fetcher.post(wanted["push"], json=told, headers={"Idempotency-Key": name_of(job)})
    except HopelessFetchError as error:
        return {"refused": str(error)}
    return "sent"
