"""The scene of the accounts part: students are made against an auth server that loses answers, and welcomed by mail."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from demo.auth_server import AuthServer
from demo.scene import Scene
from demo.smtp_server import MailServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from random import Random

    import asyncpg

STUDENTS, MODULES, KNOWN = 20, 3, 3


class Students(Scene):
    """Everybody is asked for twice; the second job finds the work of the first."""

    title = f"{STUDENTS} students, each asked for twice, with an auth server that loses answers"

    def __init__(self, pool: asyncpg.Pool, random: Random, folder: Path) -> None:
        super().__init__(pool, random, folder)
        self.auth = _ForgetfulAuthServer()
        self.mails = MailServer()
        self.password = secrets.token_urlsafe(16)  # what must never be seen

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[dict[str, str]]:
        """Run the auth server and the mail server."""
        async with self.auth.running(), self.mails.running():
            yield {
                "APP_AUTH_URL": self.auth.url,
                "APP_SMTP_HOST": self.mails.host,
                "APP_SMTP_PORT": str(self.mails.port),
            }

    async def play(self) -> None:
        """Enqueue the students as a sales manager's click would."""
        manager = await self.pool.fetchval(
            """with auth as (insert into app.auth_users (id, email) values (gen_random_uuid(), 'sales@example.org') returning id)
               insert into app.users (id, email, role) select id, 'sales@example.org', 'manager' from auth returning id"""
        )
        modules = [
            row["id"]
            for row in await self.pool.fetch(
                "insert into app.modules (title) select 'Module ' || n from generate_series(1, $1) n returning id",
                MODULES,
            )
        ]
        await self.pool.execute(
            "insert into app.lessons (module_id, position) select m, n from unnest($1::uuid[]) m, generate_series(1, 4) n",
            modules,
        )
        for number in range(KNOWN):
            self.auth.add({"email": _email(number), "password": "their own", "user_metadata": {}})
        await self.pool.executemany(
            """select howdah.enqueue('create_student', jsonb_build_object('email', $1::text, 'full_name', $2::text,
                 'password', $3::text, 'granted_by', $4::uuid, 'module_ids', to_jsonb($5::uuid[])))""",
            [
                (_email(number), f"Student {number}", self.password, manager, modules)
                for number in [*range(STUDENTS), *range(STUDENTS)]
            ],
        )

    async def prove(self) -> list[str]:
        """Count: of each there is one."""
        ids = {str(mail["Message-ID"]) for mail in self.mails.mails}
        self.shown = [
            ("students, each with one of everything", f"{STUDENTS}"),
            ("… the auth server was asked, and its answers lost", f"{self.auth.asked}, {self.auth.lost}"),
            ("… welcome mails, Message-IDs", f"{len(self.mails.mails)}, {len(ids)}"),
        ]
        wanted = {f"{_email(number)}" for number in range(STUDENTS)}
        found = await self.pool.fetch(_COUNTS)
        wrong = [
            f"there are {row['found']} {row['what']}, not {row['wanted'] * STUDENTS}"
            for row in found
            if row["found"] != row["wanted"] * STUDENTS
        ]
        if set(self.auth.users) != wanted:
            wrong.append(f"the auth server has {len(self.auth.users)} users, not {STUDENTS}")
        if sorted(self.mails.recipients) != sorted(wanted) or len(ids) != STUDENTS:
            wrong.append(
                f"{len(self.mails.recipients)} mails with {len(ids)} Message-IDs were sent to {STUDENTS} students"
            )
        if not self.auth.lost or KNOWN + self.auth.made != STUDENTS:
            wrong.append("the auth server lost no answer, so nothing was shown")
        return wrong + await self._seen()

    async def _seen(self) -> list[str]:
        """Look for the password everywhere."""
        rows = await self.pool.fetchval(
            """select count(*) from (select j::text from howdah.job_history j union all select j::text from howdah.jobs j
                 union all select s::text from howdah.steps s) as t(row) where strpos(t.row, $1) > 0""",
            self.password,
        )
        logs = [log.name for log in self.folder.glob("*.log") if self.password in log.read_text(errors="replace")]
        letters = [mail for mail in self.mails.mails if self.password in mail.as_string()]
        places = {f"{rows} rows": rows, ", ".join(logs): logs, f"{len(letters)} mails": letters}
        return [f"the password stands in {place}" for place, there in places.items() if there]


class _ForgetfulAuthServer(AuthServer):
    """Makes a user, and loses the answer, every fourth time."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.lost = 0

    async def after(self, user: dict[str, Any]) -> web.Response | None:  # noqa: ARG002 - whoever it is
        """Fail every fourth time, when the work is done."""
        self.made += 1
        if self.made % 4:
            return None
        self.lost += 1
        return web.json_response({}, status=502)


def _email(number: int) -> str:
    return f"student{number}@example.org"


_COUNTS = f"""
with ours as (select s.user_id from app.students s)
select what, found, wanted from (values
  ('students', (select count(*) from ours), 1),
  ('users of students', (select count(*) from app.users u join ours o on o.user_id = u.id), 1),
  ('student profiles', (select count(*) from app.student_profiles), 1),
  ('rows of progress', (select count(*) from app.student_progress p join ours o on o.user_id = p.student_user_id), {MODULES}),
  ('students with progress', (select count(distinct student_user_id) from app.student_progress), 1),
  ('notes of sales', (select count(*) from app.sales_activity_log), 1),
  ('students who are noted as welcomed', (select count(*) from app.students where welcome_email_sent), 1),
  ('jobs of welcome', (select count(*) from howdah.job_status where kind = 'send_welcome_email' and state = 'completed'), 1),
  ('jobs of making', (select count(*) from howdah.job_status where kind = 'create_student' and state = 'completed'), 2)
  ) t(what, found, wanted)"""
