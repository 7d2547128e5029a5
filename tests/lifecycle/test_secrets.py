"""The value of a secret field is nowhere but in the payload itself: in no log line, no error, no answer of the port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon

SECRET = "sEsAm\\'é-o9penX"

HANDLERS = """
from pydantic import field_validator, model_validator, Field
import json

class Deep(BaseModel):
    pin: int

class Payload(BaseModel):
    how: str
    token: str = Field("sEsAm-default", max_length=40)
    keys: dict[str, Deep] = {}

    @field_validator("token")
    @classmethod
    def check_token(cls, token):
        if token.startswith("refused"):
            raise ValueError(f"{token} is no token")
        return token

    @model_validator(mode="after")
    def check_all(self):
        if self.how == "refuse":
            raise ValueError(f"{self.token} does not fit")
        if self.how == "break":
            raise RuntimeError(f"{self.token} breaks")
        return self

@handler("work", secret=("token", "keys"), max_attempts=1)
async def work(job: Job[Payload]) -> Any:
    job.log.warning("at work on %r", job)
    match job.payload.how:
        case "raise": raise ValueError(f"cannot use {job.payload.token!r}")
        case "note": raise LookupError(json.dumps(job.payload.token))
        case "discard": return Discard(f"{job.payload.token} is used up")
        case "key":
            async with job.connection() as connection:
                await connection.execute("insert into public.children values ($1)", job.payload.token)
        case "wait":
            Path("begun").touch()
            while not Path("enough").exists(): await asyncio.sleep(0.01)

@handler("process", secret=("token",), max_attempts=1, runs_in="process")
def in_process(job: Job) -> Any:
    raise ValueError(job.payload["token"])

@handler("commit", secret=("token",), max_attempts=1, transaction=True)
async def commit(job: Job, connection: asyncpg.Connection) -> Any:
    return 1
"""


@pytest.mark.fault(
    "Security",
    "secret fields in errors of every sort, refusals of PostgreSQL among them",
    "*** in their place, everywhere",
)
async def test_a_secret_fields_value_is_shown_nowhere(daemon: StartDaemon, connection: asyncpg.Connection) -> None:
    await connection.execute(
        """create table public.parents (token text primary key);
        create table public.children (token text references public.parents)"""
    )
    worker = await daemon(HANDLERS, log_level="debug")
    await connection.execute("update howdah.kinds set fields = '{}'")  # let through what enqueue would refuse
    jobs = [
        await enqueue(connection, "work", {"how": how, "token": SECRET})
        for how in ("", "raise", "note", "discard", "key", "refuse", "break")
    ]
    jobs += [
        await enqueue(connection, "work", {"how": "", "token": f"refused {SECRET}"}),
        await enqueue(connection, "work", {"how": "", "token": SECRET * 9}),
        await enqueue(connection, "work", {"how": "", "token": {SECRET: SECRET}}),
        await enqueue(connection, "work", {"how": "", "keys": {SECRET: {"pin": SECRET}}}),
        await enqueue(connection, "process", {"token": SECRET}),
    ]
    for job in jobs:
        await end_of(connection, job)
    # What PostgreSQL says of a row that it refuses shows all of it.
    await connection.execute(
        "alter table howdah.job_history add constraint odd check (state = 'dead' or created_at < 'epoch') not valid"
    )
    for kind in ("work", "commit"):
        jobs.append(await enqueue(connection, kind, {"how": "", "token": SECRET}))
        assert (await end_of(connection, jobs[-1]))["state"] == "dead"
    await enqueue(connection, "work", {"how": "wait", "token": SECRET})
    await aeventually(lambda: (worker.folder / "begun").exists())
    shown = "".join([(await worker.get(path))[1] for path in ("/stats", "/metrics", "/readyz", "/health/queue")])
    (worker.folder / "enough").touch()
    await worker.stop()

    errors = await connection.fetch("select id, errors::text, result::text, progress::text from howdah.job_history")
    kinds = await connection.fetchval("select string_agg(k::text, ' ') from howdah.kinds k")
    for place in (worker.output(), shown, str([tuple(row) for row in errors]), kinds):
        assert "sEsAm" not in place, place[place.index("sEsAm") - 300 :]
        assert "o9penX" not in place
    messages = {row["id"]: row["errors"] for row in errors}
    assert [job for job in jobs if messages[job] is None] == jobs[:1]
    assert "cannot use" in messages[jobs[1]]
    assert "***" in messages[jobs[1]]
    assert "token: value error" in messages[jobs[7]]
    assert "at work on <Job" in worker.output()
