"""The accounts part's jobs: against a real auth server and a real mail server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from support.auth_server import FaultyAuthServer
from support.daemon import howdah
from support.eventually import aeventually
from support.facts import end_of, is_empty
from support.jobs import enqueue, refused
from support.people import create, new_module, new_user, one_of_each, rows_of
from support.smtp import FaultyMailServer

from handlers import settings
from handlers.accounts import audit_references, create_student, log_user_activity, roll_up_traffic, send_welcome_email
from handlers.mail import Mailer
from howdah.testing import run_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg
    from conftest import StartApp

    from howdah.testing import Database, JobOutcome

    Json = dict[str, Any]

PASSWORD = "cAnArY\\'é-9xq"


@pytest.fixture
async def auth() -> AsyncIterator[FaultyAuthServer]:
    async with FaultyAuthServer().running() as server:
        yield server


@pytest.fixture
async def mails() -> AsyncIterator[FaultyMailServer]:
    async with FaultyMailServer().running() as server:
        yield server


@pytest.fixture
def here(auth: FaultyAuthServer, mails: FaultyMailServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let handlers that are called in this process find the servers."""
    monkeypatch.setenv("APP_AUTH_URL", auth.url)
    monkeypatch.setenv("APP_AUTH_TOKEN", "the-service-token")
    monkeypatch.setenv("APP_SMTP_PORT", str(mails.port))
    settings.settings.cache_clear()
    yield
    settings.settings.cache_clear()


# -- by a real worker -------------------------------------------------------------------------------------------------


async def test_a_student_is_made_welcomed_and_noted_and_the_password_is_shown_nowhere(
    connection: asyncpg.Connection,
    database: Database,
    app_daemon: StartApp,
    auth: FaultyAuthServer,
    mails: FaultyMailServer,
    tmp_path: Path,
) -> None:
    manager, module = await new_user(connection), await new_module(connection)
    weak = {"msg": f"Password {PASSWORD!r} is known to be weak"}
    auth.answers = {
        "weak": [(422, weak, {})],
        "twice": [(500, {"msg": f"cannot write {PASSWORD}"}, {})] * 3,
        "later": [(429, {}, {"Retry-After": "0"})],
    }
    daemon = await app_daemon(
        "accounts", app_auth_url=auth.url, app_smtp_port=mails.port, howdah_log_level="debug", howdah_lease_ttl=30
    )
    names = ("ada", "weak", "twice", "later")
    jobs = {name: await enqueue(connection, "create_student", student(name, manager, module)) for name in names}
    # What ended, and what is tried again: an operator looks while the password is still there.
    await end_of(connection, jobs["weak"])
    later = "select howdah.reschedule(id, now() + '1 hour') from howdah.jobs where id = $1 and state = 'retrying'"
    await aeventually(lambda: connection.fetch(later, jobs["twice"]))
    shown = [
        howdah(*command, "--database-url", database.url, folder=tmp_path).stdout
        for command in (("show", str(jobs["twice"])), ("show", str(jobs["weak"])), ("jobs", "--json"))
    ]
    shown += [(await daemon.get(path))[1] for path in ("/stats", "/metrics", "/health/queue")]
    await connection.execute("select howdah.reschedule($1, now())", jobs["twice"])

    for name in ("ada", "twice", "later"):
        made = await end_of(connection, jobs[name])
        assert (made["state"], made["result"]["created"]) == ("completed", True)
        assert auth.passwords[f"{name}@example.org"] == PASSWORD
        assert await rows_of(connection, made["result"]["user_id"]) == one_of_each()
        assert "password" not in made["payload"]
    await aeventually(lambda: is_empty(connection))
    assert sorted(mail["To"].addresses[0].username for mail in mails.mails) == ["ada", "later", "twice"]
    assert len({mail["Message-ID"] for mail in mails.mails}) == 3
    assert mails.mails[0]["Subject"].startswith("Welcome, ")
    students = await connection.fetch("select email, welcome_email_sent, welcome_email_sent_at from app.students")
    assert all(row["welcome_email_sent"] and row["welcome_email_sent_at"] for row in students)

    dead = await end_of(connection, jobs["weak"])
    assert (dead["state"], dead["attempt"]) == ("dead", 1)
    assert "is known to be weak" in dead["error"]
    assert "500 cannot write ***" in (await end_of(connection, jobs["twice"]))["errors"][0]["message"]
    assert (await end_of(connection, jobs["later"]))["attempt"] == 1
    # The login of the handlers has the rights for the other kinds, too.
    user = str(await connection.fetchval("select id from app.users limit 1"))
    for kind, payload in (
        ("log_user_activity", {"user_id": user, "action": "signed_in"}),
        ("roll_up_traffic", {"day": "2026-07-01"}),
        ("audit_references", {}),
    ):
        other = await end_of(connection, await enqueue(connection, kind, payload))
        assert other["state"] == "completed", other["error"]
    await daemon.stop()
    async with connection.transaction():
        await connection.execute("set local role howdah_reader")
        listing = await connection.fetch("select s::text from howdah.job_status s")
    kept = await connection.fetch("select errors::text, result::text, progress::text from howdah.job_history")
    steps = await connection.fetch("select s::text from howdah.steps s")
    mail_text = [mail.as_string() for mail in mails.mails]
    for place in (daemon.output(), *shown, str(listing), str(kept), str(steps), *mail_text):
        assert place
        assert "cAnArY" not in place, place[place.index("cAnArY") - 300 :]
        assert "9xq" not in place

    # What is wrong in a payload is said to whoever enqueues, by the field's name; or by the worker, before any work.
    for field in ("email", "full_name", "password", "granted_by", "module_ids"):
        payload = student("eve", manager, module)
        del payload[field]
        with refused("JB003", naming=field):
            await enqueue(connection, "create_student", payload)
    with refused("JB003", naming="full_name"):
        await enqueue(connection, "create_student", {**student("eve", manager), "full_name": None})


async def test_a_sender_that_is_no_address_ends_the_worker_with_a_line_that_names_the_setting(
    app_daemon: StartApp,
) -> None:
    daemon = await app_daemon("accounts", ready=False, app_mail_from="nobody")
    assert await daemon.wait() == 78
    assert "APP_MAIL_FROM: 'nobody': it is not an e-mail address, name@domain" in daemon.output()


def student(name: str, manager: UUID, *modules: UUID) -> Json:
    """Give a payload."""
    return {
        "email": f"{name}@example.org", "full_name": name.title(), "password": PASSWORD,
        "granted_by": str(manager), "module_ids": [str(module) for module in modules],
    }  # fmt: skip


# -- one attempt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("email", "eve@example.org\r\nBcc: all@example.org", "email: .*line break"),
        ("email", "eve", "email: .*not an e-mail address"),
        ("full_name", "Eve\nBcc: all@example.org", "full_name: .*line break"),
        ("full_name", "", "full_name: "),
        ("password", "123", "password: .*secret"),
        ("granted_by", "me", "granted_by: "),
        ("module_ids", ["one"], "module_ids.0: "),
    ],
)
async def test_a_payload_that_is_wrong_in_itself_is_dead_at_once_and_tells_the_field(
    field: str, value: object, why: str
) -> None:
    outcome = await run_job(create_student, {**student("eve", uuid4()), field: value})
    assert outcome.outcome == "dead"
    with pytest.raises(Exception, match=why):
        outcome.check()


@pytest.mark.usefixtures("here")
async def test_somebody_whom_the_auth_server_knows_already_keeps_id_and_password(
    connection: asyncpg.Connection, auth: FaultyAuthServer
) -> None:
    manager, known = await new_user(connection), str(uuid4())
    # The server's filter finds parts of addresses, a page at a time.
    for n in range(7):
        auth.users[f"x{n}ada@example.org"] = {"id": str(uuid4()), "email": f"x{n}ada@example.org"}
    auth.users["ada@example.org"] = {"id": known, "email": "ada@example.org"}
    made = await attempt(connection, {**student("ada", manager), "email": "Ada@example.org"})
    assert made.check().result["user_id"] == known
    assert "ada@example.org" not in auth.passwords
    assert await rows_of(connection, known) == one_of_each(progress=0)


@pytest.mark.usefixtures("here")
async def test_a_lost_answer_of_the_auth_server_makes_no_second_user(
    connection: asyncpg.Connection, auth: FaultyAuthServer
) -> None:
    async def lose(_: Json) -> aiohttp.web.Response:
        return aiohttp.web.json_response({}, status=502)

    auth.after = lose  # type: ignore[method-assign]
    made = await attempt(connection, student("ada", await new_user(connection)))
    assert made.check().result["user_id"] == auth.users["ada@example.org"]["id"]
    assert (auth.asked, len(auth.users)) == (2, 1)


@pytest.mark.usefixtures("here")
async def test_every_step_that_fails_fails_the_attempt(
    connection: asyncpg.Connection, auth: FaultyAuthServer, mails: FaultyMailServer
) -> None:
    # Never again (c): an error was logged, and the job called done.
    manager, module = await new_user(connection), await new_module(connection)
    auth.answers = {"down": [(500, {}, {})] * 3, "token": [(401, {"msg": "bad token"}, {})], "odd": [(200, {}, {})]}
    for name, why in (("down", "500"), ("token", "401 bad token"), ("odd", "gave no id")):
        failed = await attempt(connection, student(name, manager, module))
        assert failed.outcome == "retried", name
        assert why in str(failed.error)
    await connection.execute(
        "create function app.fail() returns trigger language plpgsql as $$ begin raise 'no %', tg_table_name; end $$"
    )
    tables = ("auth_users", "users", "students", "student_profiles", "student_progress", "sales_activity_log")
    for table in (*(f"app.{name}" for name in tables), "howdah.jobs"):
        await connection.execute(
            f"create trigger fail before insert on {table} for each row execute function app.fail()"
        )
        failed = await attempt(connection, student("ada", manager, module))
        assert failed.outcome == "retried", table
        assert f"no {table.partition('.')[2]}" in str(failed.error)
        assert await rows_of(connection, auth.users["ada@example.org"]["id"]) == dict.fromkeys(one_of_each(), 0)
        await connection.execute(f"drop trigger fail on {table}")
    made = await attempt(connection, student("ada", manager, module))
    user = made.check().result["user_id"]
    assert await rows_of(connection, user) == one_of_each()

    mails.recipient_answers = ["451 later"] * 3
    assert "451 later" in str((await welcome(connection, user, mails)).error)
    await connection.execute(
        "create trigger fail before update on app.students for each row execute function app.fail()"
    )
    failed = await welcome(connection, user, mails)
    assert failed.outcome == "retried"
    assert "no students" in str(failed.error)
    await connection.execute("drop trigger fail on app.students")
    # The mail has gone, and the step knows it.
    assert (await welcome(connection, user, mails, failed.steps)).check().result["sent"] is True
    assert len(mails.mails) == 1


@pytest.mark.usefixtures("here")
async def test_a_busy_auth_server_is_left_alone_for_as_long_as_it_asks(
    connection: asyncpg.Connection, auth: FaultyAuthServer
) -> None:
    auth.answers = {"ada": [(429, {}, {"Retry-After": "17"})]}
    outcome = await attempt(connection, student("ada", await new_user(connection)))
    assert outcome.snoozed is not None
    assert outcome.snoozed.total_seconds() == 17
    assert auth.asked == 1


@pytest.mark.usefixtures("here")
async def test_a_manager_or_a_module_that_is_not_there_is_dead_at_once_by_name(connection: asyncpg.Connection) -> None:
    manager, module = await new_user(connection), uuid4()
    for payload, why in (
        (student("ada", uuid4()), "granted_by"),
        (student("ada", manager, module), f"module {module}"),
    ):
        outcome = await attempt(connection, payload)
        assert outcome.outcome == "dead"
        assert why in str(outcome.error)


@pytest.mark.usefixtures("here")
async def test_a_welcome_goes_to_the_person_once_and_notes_it_where_it_belongs(
    connection: asyncpg.Connection, mails: FaultyMailServer
) -> None:
    users, module = [uuid4(), uuid4()], await new_module(connection)
    for user in users:
        await create(connection, user, None, module)
    first = await welcome(connection, users[1], mails)
    assert first.check().result == {"sent": True, "message_id": mails.mails[0]["Message-ID"]}
    assert (await welcome(connection, users[1], mails)).check().result == {"sent": False}
    assert len(mails.mails) == 1
    [mail] = mails.mails
    text, html = (part.get_content() for part in mail.iter_parts())
    assert mail["To"].addresses[0].addr_spec == f"{users[1]}@example.org"
    assert "Welcome, Ada!" in text
    assert "- Module" in text
    assert "<li>Module</li>" in html
    flags = dict(await connection.fetch("select user_id, welcome_email_sent from app.students"))
    assert flags == {users[0]: False, users[1]: True}
    await connection.execute("delete from app.auth_users where id = $1", users[0])
    assert "no student has the user id" in str((await welcome(connection, users[0], mails)).reason)


@pytest.mark.usefixtures("here")
async def test_an_address_that_would_write_headers_is_refused_for_good_with_a_reason(
    connection: asyncpg.Connection, mails: FaultyMailServer
) -> None:
    user = uuid4()
    await create(connection, user, None)
    await connection.execute("update app.students set email = e'ada@example.org\\nBcc: all@example.org'")
    outcome = await welcome(connection, user, mails)
    assert outcome.outcome == "dead"
    assert "line break" in str(outcome.error)
    assert mails.connections == 0


async def test_the_small_jobs_do_what_they_say(connection: asyncpg.Connection) -> None:
    user = await new_user(connection)
    activity = {"user_id": str(user), "action": "signed_in", "details": {"from": "here"}}
    for commit in (False, True):
        done = await run_job(log_user_activity, activity, connection=connection, commit=commit)
        assert done.check().completed
    logged = await connection.fetch("select user_id, action, details from app.user_activity_log")
    assert [tuple(row) for row in logged] == [(user, "signed_in", {"from": "here"})]
    gone = await run_job(log_user_activity, {**activity, "user_id": str(uuid4())}, connection=connection)
    assert gone.outcome == "dead"
    rolled = await run_job(roll_up_traffic, {"day": "2026-07-01"}, connection=connection)
    assert rolled.check().result == {"targetologists": 0}
    assert (await run_job(roll_up_traffic, {"day": "yesterday"}, connection=connection)).outcome == "dead"
    # A schedule's job is about the day before its slot, however late it runs.
    events = "insert into app.traffic_events (targetologist_id, day, clicks) select $1, '2026-07-01'::date + n, 5 from generate_series(0, 2) n"
    add = "insert into app.traffic_targetologists (user_id) values ($1) returning id"
    await connection.execute(events, await connection.fetchval(add, user))
    late = {"schedule": {"name": "roll_up_traffic", "slot": "2026-07-02T00:15:00Z"}}
    assert (await run_job(roll_up_traffic, headers=late, connection=connection, commit=True)).check().completed
    assert await connection.fetchval("select array_agg(day::text) from app.traffic_analytics") == ["2026-07-01"]
    await connection.execute("create table app.loose (user_id uuid); insert into app.loose values (gen_random_uuid())")
    report = (await run_job(audit_references, connection=connection)).check().result
    assert report["references"][0]["table"] == "app.loose"
    assert (report["references"][0]["severity"], report["references"][0]["dangling"]) == ("error", 1)
    assert sum(report["counts"].values()) == len(report["references"])


async def attempt(connection: asyncpg.Connection, payload: Json) -> JobOutcome:
    """Run one attempt at making a student."""
    async with aiohttp.ClientSession() as session:
        outcome = await run_job(create_student, payload, connection=connection, resources={"http": session})
    assert not isinstance(outcome.error, KeyError)
    return outcome


async def welcome(
    connection: asyncpg.Connection, user: UUID | str, mails: FaultyMailServer, steps: Json | None = None
) -> JobOutcome:
    """Run one attempt at welcoming somebody."""
    assert settings.settings().smtp_port == mails.port
    mailer = Mailer(settings.settings())
    outcome = await run_job(
        send_welcome_email, {"user_id": str(user)}, connection=connection, resources={"mailer": mailer}, steps=steps
    )
    await mailer.close()
    return outcome
