"""Accounts: new students, what they are told, and what is known of everybody's doings."""

from datetime import date, timedelta
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field, JsonValue

from handlers.auth import UserRefusedError, ensure_user
from handlers.letters import EmailAddress, LetterError, OneLine, write
from handlers.mail import send
from handlers.outside import BusyError
from howdah import Cancel, Job, Schedule, Snooze, handler


class CreateStudent(BaseModel):
    """Who becomes a student, who granted it, and where they begin."""

    email: EmailAddress
    full_name: Annotated[OneLine, Field(min_length=1, max_length=200)]
    password: Annotated[str, Field(min_length=6, max_length=200)]
    granted_by: UUID
    module_ids: list[UUID]


@handler("create_student", secret=("password",), timeout=60, max_attempts=5, discard_for=[UserRefusedError])
async def create_student(job: Job[CreateStudent]) -> Any:
    """Make somebody a student: a user of the auth server, then everything that is ours in one transaction.

    Not transaction=True: a slow auth server would then hold connections that all handlers share. The SQL is safe to repeat
    instead, and the step says, under the fence, that the job is still ours when it is over.
    """
    new = job.payload
    try:
        user_id = await job.step(
            "auth user", ensure_user, job.resources["http"], new.email, new.full_name, new.password
        )
    except BusyError as busy:
        return Snooze(busy.delay)
    async with job.connection() as connection:
        [student] = await connection.fetch(
            "select * from app.create_student($1, $2, $3, $4, $5)",
            UUID(user_id), new.email, new.full_name, new.granted_by, new.module_ids,
        )  # fmt: skip
    return {"user_id": user_id, **student}


class SendWelcomeEmail(BaseModel):
    """Who is welcomed: a person's id, not a student's number."""

    user_id: UUID


@handler("send_welcome_email", timeout=180, max_attempts=12, discard_for=[LetterError])
async def send_welcome_email(job: Job[SendWelcomeEmail]) -> Any:
    """Welcome a student by mail, and note that it was done. Killed while the mail is on the wire, it sends the same one again."""
    async with job.connection() as connection:
        student = await connection.fetchrow(_STUDENT, job.payload.user_id)
    if student is None:
        return Cancel(f"no student has the user id {job.payload.user_id} any more")
    if student["welcome_email_sent"]:
        return {"sent": False}
    letter = write(
        job, "welcome", to=student["email"], name=student["full_name"], subject=f"Welcome, {student['full_name']}",
        email=student["email"], full_name=student["full_name"], modules=student["modules"],
    )  # fmt: skip
    message_id = await job.step("mail", send, job, letter)
    async with job.connection() as connection:
        await connection.execute("select app.mark_welcomed($1)", job.payload.user_id)
    return {"sent": True, "message_id": message_id}


_STUDENT = """
select s.email, s.full_name, s.welcome_email_sent,
  array(select m.title from app.student_progress p join app.modules m on m.id = p.module_id
        where p.student_user_id = s.user_id order by m.title) as modules
from app.students s where s.user_id = $1"""


class LogUserActivity(BaseModel):
    """Who did what."""

    user_id: UUID
    action: Annotated[str, Field(min_length=1, max_length=200)]
    details: dict[str, JsonValue] = {}


@handler("log_user_activity", transaction=True, timeout=30)
async def log_user_activity(job: Job[LogUserActivity], connection: asyncpg.Connection) -> None:
    """Append to the log of what people do: once, however often it is tried."""
    await connection.execute(
        "insert into app.user_activity_log (user_id, action, details, created_at) values ($1, $2, $3, $4)",
        job.payload.user_id, job.payload.action, job.payload.details, job.created_at,
    )  # fmt: skip


class RollUpTraffic(BaseModel):
    """Which day, such as 2026-07-01; yesterday if none is named, counted from the schedule's slot."""

    day: date | None = None


# A day on which no worker ran is summed later: a job for each.
@handler("roll_up_traffic", transaction=True, timeout=600, schedule=Schedule("15 0 * * *", missed="all"))
async def roll_up_traffic(job: Job[RollUpTraffic], connection: asyncpg.Connection) -> dict[str, int]:
    """Make the sums of a day equal to its events, however often it runs, also beside itself."""
    day = job.payload.day or ((job.slot or job.created_at) - timedelta(days=1)).date()
    return {"targetologists": await connection.fetchval("select app.roll_up_traffic($1)", day)}


class AuditReferences(BaseModel):
    """Nothing: all of schema app."""


@handler("audit_references", timeout=3600, schedule=Schedule("0 4 * * MON", overlap="skip"))
async def audit_references(job: Job[AuditReferences]) -> dict[str, Any]:
    """Tell of every reference between the application's tables whether it is kept and indexed, the worst first."""
    async with job.connection() as connection:
        found = [dict(row) for row in await connection.fetch("select * from app.audit_references()")]
    found.sort(key=lambda reference: _SEVERITIES.index(reference["severity"]))
    counts = {name: sum(reference["severity"] == name for reference in found) for name in _SEVERITIES}
    return {"counts": counts, "references": found}


_SEVERITIES = ("error", "warning", "info", "ok")
