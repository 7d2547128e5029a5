"""Every wrong use of a command is one line that says what to do, with the right exit code, and never a traceback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from support.cluster import connect_to, new_database
from support.commands import cli

from howdah.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.cluster import Database

FAILED, USAGE, CONFIGURATION = 1, 2, 78

#: One call of every command that speaks to the database and does not wait for one.
CALLS = [
    ("check",),
    ("enqueue", "work"),
    ("enqueue", "--many", "-"),
    ("jobs",),
    ("jobs", "--group-by", "error"),
    ("show", "1"),
    ("explain", "1"),
    ("retry", "1"),
    ("retry", "--kind", "work", "--yes"),
    ("cancel", "1"),
    ("cancel", "--kind", "work", "--dry-run"),
    ("wait", "1"),
    ("wait", "--kind", "work"),
    ("pause", "mail"),
    ("resume", "mail"),
    ("stats",),
    ("schedule", "list"),
    ("schedule", "next", "nightly"),
    ("schedule", "add", "nightly", "0 3 * * *", "work"),
    ("schedule", "pause", "nightly"),
    ("schedule", "resume", "nightly"),
    ("schedule", "remove", "nightly"),
]


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """A migrated database for the whole module: what is refused changes nothing."""
    yield from lent(empty=False)


@pytest.fixture(scope="module")
def bare() -> Iterator[Database]:
    """A database without the engine's schema."""
    yield from lent(empty=True)


def lent(*, empty: bool) -> Iterator[Database]:
    with asyncio.Runner() as runner:
        held = new_database(empty=empty)
        yield runner.run(held.__aenter__())  # type: ignore[arg-type]
        runner.run(held.__aexit__(None, None, None))  # type: ignore[arg-type]


def address(url: str, where: str) -> str | None:
    """Make an address that leads somewhere wrong."""
    parts = urlsplit(url)
    return {
        "unset": None,
        "nothing listens": "postgresql://somebody:secret@127.0.0.1:1/jobs",
        "no such host": "postgresql://nowhere.invalid/jobs",
        "no address": "jobs",
        "no port": "postgresql://localhost:many/jobs",
        "strange option": f"{url}?sslmode=perhaps",
        "no such database": parts._replace(path="/nowhere").geturl(),
        "wrong password": parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":wrong@")).geturl(),
    }[where]


async def complains(url: str | None, *arguments: str, given: str = "") -> tuple[int, str]:
    """Call a command that must fail, and give its code and its one line."""
    said = await cli(*arguments, url=url, given=given)
    assert "secret" not in said.err
    return said.code, said.complaint


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
async def test_every_command_says_that_the_schema_is_missing(bare: Database, arguments: tuple[str, ...]) -> None:
    code, line = await complains(bare.url, *arguments, given='{"kind": "work"}')
    assert code == CONFIGURATION
    assert "run howdah migrate" in line


@pytest.mark.parametrize(
    ("where", "code", "words"),
    [
        ("unset", CONFIGURATION, "HOWDAH_DATABASE_URL: is not set"),
        ("nothing listens", FAILED, "no database answers at 127.0.0.1:1: connection refused"),
        ("no such host", FAILED, "no database answers at nowhere.invalid"),
        ("no address", CONFIGURATION, "HOWDAH_DATABASE_URL: must begin with postgresql://"),
        ("no port", CONFIGURATION, "HOWDAH_DATABASE_URL: cannot be read"),
        ("strange option", CONFIGURATION, "HOWDAH_DATABASE_URL: `sslmode`"),
        ("no such database", CONFIGURATION, 'HOWDAH_DATABASE_URL: database "nowhere" does not exist'),
        ("wrong password", CONFIGURATION, "HOWDAH_DATABASE_URL: password authentication failed"),
    ],
)
@pytest.mark.parametrize("arguments", [("migrate",), ("jobs",), ("wait", "1")], ids=" ".join)
async def test_a_wrong_address_is_told_apart_from_a_database_that_is_away(
    database: Database, arguments: tuple[str, ...], where: str, code: int, words: str
) -> None:
    found, line = await complains(address(database.url, where), *arguments)
    assert (found, line[: len(words)]) == (code, words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("nonsense", USAGE, "No such command 'nonsense' (see howdah --help)"),
        ("--nonsense", USAGE, "No such option '--nonsense' (see howdah --help)"),
        ("jobs --nonsense", USAGE, "No such option '--nonsense'"),
        ("jobs extra", USAGE, "Got unexpected extra argument (extra) (see howdah jobs --help)"),
        ("jobs --state tired", USAGE, "--state: 'tired' is not one of"),
        ("jobs --since soon", USAGE, "--since: 'soon' is not a time; say '2 hours' (ago)"),
        ("jobs --limit 0", USAGE, "--limit: 0 is not in the range"),
        ("show", USAGE, "Missing argument 'JOB' (see howdah show --help)"),
        ("show x", USAGE, "JOB: 'x' is not an id; say a number"),
        ("show 9223372036854775808", USAGE, "JOB: '9223372036854775808' is not an id"),
        ("show 9223372036854775807", FAILED, "there is no job 9223372036854775807; its history may"),
        ("explain 99", FAILED, "there is no job 99 (its history may have been dropped)"),
        ("wait 99", FAILED, "there is no job 99; its history may have been dropped"),
        ("wait", USAGE, "for what? A job, or --subject, --kind or --queue"),
        ("wait 1 --kind work", USAGE, "a job, or a subject, kind or queue, not both"),
        ("wait 1 --timeout soon", USAGE, "--timeout: 'soon' is not a duration; say 90, '10 minutes'"),
        ("retry", USAGE, "which jobs? Name them, or use a filter"),
        ("retry 1 --kind work", USAGE, "name jobs or use filters, not both"),
        ("retry --kind work", USAGE, "nobody can be asked here: add --yes, or look first with --dry-run"),
        ("retry 99", FAILED, "job 99 not retried: there is no job 99"),
        ("cancel", USAGE, "which jobs? Name them, or use a filter"),
        ("cancel --queue mail", USAGE, "nobody can be asked here: add --yes"),
        ("cancel 99", FAILED, "job 99 not cancelled: there is no job 99"),
        ("cancel --state dead --yes", USAGE, "--state: 'dead' is not one of"),
        ("enqueue", USAGE, "which kind? Say howdah enqueue KIND [PAYLOAD], or --many FILE"),
        ("enqueue work [1]", USAGE, "PAYLOAD: must be a JSON object, such as '{\"id\": 1}', not array"),
        ("enqueue work null", USAGE, "PAYLOAD: must be a JSON object, such as '{\"id\": 1}', not null"),
        ("enqueue work {", USAGE, "PAYLOAD: not JSON: unexpected end of data at line 1 column 2"),
        (
            "enqueue work {'a':1}",
            USAGE,
            "PAYLOAD: not JSON: unexpected character, expected a string key at line 1 column 2, near",
        ),
        ('enqueue work {"a":"\\u0000"}', FAILED, "unsupported Unicode escape sequence"),
        ("enqueue work --headers 3", USAGE, "--headers: must be a JSON object"),
        ("enqueue work --priority 11", USAGE, "--priority: 11 is not in the range"),
        ("enqueue work --delay soon", USAGE, "--delay: 'soon' is not a duration"),
        ("enqueue work --run-at soon", USAGE, "--run-at: 'soon' is not a time; say 2026-01-31T09:00"),
        ("enqueue work --run-at 2030-01-01 --delay 5", USAGE, "--run-at and --delay are both given"),
        ("enqueue work --timeout 0", FAILED, "timeout is 00:00:00 (more than nothing)"),
        ("enqueue work --on-conflict maybe", USAGE, "--on-conflict: 'maybe' is not one of"),
        ("enqueue work --depends-on x", USAGE, "--depends-on: 'x' is not an id"),
        ("enqueue work --many nowhere.jsonl", USAGE, "--many: 'nowhere.jsonl': No such file or directory"),
        ("pause", USAGE, "say which queue, or --all"),
        ("pause a\nb", USAGE, "QUEUE: 'a\\nb' is no queue's name: one to 100 characters, none a control character"),
        ("schedule nonsense", USAGE, "No such command 'nonsense' (see howdah schedule --help)"),
        ("schedule pause", USAGE, "Missing argument 'NAME' (see howdah schedule pause --help)"),
        ("schedule pause nightly", FAILED, "there is no schedule 'nightly' (howdah schedule list names them)"),
        ("schedule resume nightly", FAILED, "there is no schedule 'nightly'"),
        ("schedule remove nightly", FAILED, "there is no schedule 'nightly'"),
        ("schedule next nightly", FAILED, "there is no schedule 'nightly' (howdah schedule list names them)"),
        ("schedule next nightly --count 0", USAGE, "--count: 0 is not in the range"),
        ("schedule next @daily", FAILED, "there is no schedule '@daily'"),
        (
            "schedule add nightly daily work",
            USAGE,
            "CRON: 'daily' is no cron expression: wrong number of fields; say minute",
        ),
        (
            "schedule add nightly 60_*_*_*_* work",
            USAGE,
            "CRON: '60 * * * *' is no cron expression: bad minute; say minute",
        ),
        ("schedule next 0_0_30_2_*", USAGE, "'0 0 30 2 *' is no cron expression: bad day-of-month"),
        (
            "schedule add x 0_3_*_*_* work --time-zone Berlin",
            USAGE,
            "--time-zone: 'Berlin' is no time zone: say one such",
        ),
        ("schedule add x 0_3_*_*_* work --missed some", USAGE, "--missed: 'some' is not one of"),
        ("schedule add x 0_3_*_*_* work [1]", USAGE, "PAYLOAD: must be a JSON object"),
        ("schedule add x 0_3_*_*_* work --jitter 2d", FAILED, "jitter is 2 days (from nothing to a day)"),
        ("healthcheck --http-port many", USAGE, "--http-port: 'many' is not a valid integer range"),
        ("run --max-jobs 0", USAGE, "--max-jobs: 0 is not in the range"),
        ("run --queues mail:many", CONFIGURATION, "HOWDAH_QUEUES: 'mail:many' is not like mail:10"),
        ("run --queues a\x1bb:3", CONFIGURATION, "HOWDAH_QUEUES: 'a\\x1bb' is no queue's name"),
        ("migrate --app nowhere", USAGE, "--app: Directory 'nowhere' does not exist"),
    ],
)
async def test_wrong_use_is_one_line_that_says_what_to_do(
    database: Database, arguments: str, code: int, words: str
) -> None:
    # In one argument a blank is written as _.
    found, line = await complains(
        database.url,
        *(word.replace("_", " ") if "_*" in word else word for word in arguments.split(" ")),
    )
    assert (found, line[: len(words)]) == (code, words)


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ('{"kind": "a"}\n{"kind"', USAGE, "line 2: not JSON: unexpected end of data at line 1 column 8; nothing"),
        ('{"kind": "a"}\n\n7', USAGE, "line 3: must be a JSON object"),
        ('{"kind": "a"}\n\n{"payload": {}}', FAILED, "line 3: kind is NULL"),
        ('{"kind": "a"}\n\n{"kind": "b", "run_at": "soon"}', FAILED, 'line 3: run_at is "soon"'),
        ('{"kind": "a"}\n\n{"kind": "b", "retries": 3}', FAILED, "line 3: has an unknown argument 'retries'"),
        ('{"kind": "a"}\n' * 1500 + "[]", USAGE, "line 1501: must be a JSON object"),
        ('{"kind": "a"}\n' * 1500 + "{}", FAILED, "line 1501: kind is NULL"),
    ],
    ids=range(7),
)
async def test_one_wrong_line_of_many_is_named_and_nothing_is_enqueued(
    database: Database, lines: str, code: int, words: str
) -> None:
    found, line = await complains(database.url, "enqueue", "--many", "-", given=lines)
    assert (found, line[: len(words)]) == (code, words)
    assert "nothing was enqueued" in line
    assert (await cli("jobs", url=database)).err == "no jobs yet\n"


async def test_a_role_without_the_right_is_told_so(database: Database) -> None:
    role, parts = f"{database.name}_nobody", urlsplit(database.url)
    connection = await connect_to(database)
    await connection.execute(f"create role {role} login password 'x'")
    try:
        said = await cli("jobs", url=parts._replace(netloc=f"{role}:x@{parts.hostname}:{parts.port}").geturl())
    finally:
        await connection.execute(f"drop role {role}")
        await connection.close()
    assert said.code == FAILED
    assert "permission denied" in said.complaint
    assert "may not do this" in said.complaint


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_command_has_a_help_that_shows_how_to_call_it(name: str) -> None:
    said = await cli(name, "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: howdah {name} ")
    assert name == "version" or f"  howdah {name}" in said.out
    assert "\\b" not in said.out
    command = main.commands[name]
    assert all(
        getattr(option, "help", "")
        for option in command.params
        if option.param_type_name == "option" and not option.hidden
    )


async def test_the_list_of_commands_loads_none_of_them() -> None:
    said = await cli("--help")
    assert all(f"\n  {name} " in said.out for name in COMMANDS)
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in said.out
