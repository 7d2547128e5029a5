"""Each of a worker's connections is broken by itself, and then all at once: the worker makes it anew, and nobody notices."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from support.checker import Checker
from support.eventually import aeventually
from support.facts import end_of
from support.jobs import enqueue
from support.proxy import Proxy, proxied
from support.wire_work import CONNECTIONS, handlers, work_through

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg
    from conftest import StartDaemon
    from support.cluster import Database
    from support.daemon import Daemon
    from support.figures import Figures

TTL = 2
#: Work goes on within so many seconds, where nothing was said of the fault: a call waits for half of the ttl. A handler's statement
#: waits for its own timeout, a second here, and then its connection gets two seconds to undo what it did, and two to come back.
SILENT, HANDLERS_SILENT = TTL / 2 + 2.0, 7.0
#: Where the break is heard of.
HEARD = 2.0

FAULTS: dict[str, tuple[Callable[..., int], float]] = {
    "cut": (Proxy.cut, HEARD),
    "half-open": (Proxy.half_open, SILENT),
    "answers vanish": (partial(Proxy.half_open, questions=False), SILENT),
    "questions vanish": (partial(Proxy.half_open, answers=False), SILENT),
}
#: The whole is long. Those by which jobs come, run, end and are held are short.
EACH = tuple((name,) for name in CONNECTIONS)
SOME: tuple[tuple[str, ...], ...] = (("claim",), ("ack",), ("beat",))


def case(fault: str, of: str, promise: str, names: tuple[tuple[str, ...], ...], *marks: pytest.MarkDecorator) -> Any:
    mark = pytest.mark.fault("Connections", f"{fault}: {of}", promise)
    return pytest.param(fault, names, marks=[mark, *marks], id=f"{fault}, {of}")


NOTICED = "noticed after half of the ttl; the worker never looks dead"


@pytest.mark.parametrize(
    ("fault", "which"),
    [
        case(
            "cut",
            "each alone, then all",
            "made anew; work goes on within 2 s, the worker never looks dead",
            (*EACH, ()),
        ),
        case("half-open", "claim, ack, beat", NOTICED, SOME),
        case(
            "half-open",
            "each of the others, then all",
            NOTICED,
            (*(name for name in EACH if name not in SOME), ()),
            pytest.mark.long,
        ),
        case("answers vanish", "each alone, then all", NOTICED, (*EACH, ()), pytest.mark.long),
        case("questions vanish", "each alone, then all", NOTICED, (*EACH, ()), pytest.mark.long),
    ],
)
async def test_a_connection_that_breaks_is_made_anew_and_no_job_and_no_other_worker_notices(
    fault: str,
    which: tuple[tuple[str, ...], ...],
    daemon: StartDaemon,
    connection: asyncpg.Connection,
    database: Database,
    figures: Figures,
) -> None:
    checker = await Checker(connection).install()
    await connection.execute("select howdah.set_limit('pair', 2)")
    do, bound = FAULTS[fault]
    async with proxied(database.url) as wire:
        worker = await daemon(handlers(database), url=wire.url, lease_ttl=TTL, queues="default:30")
        await work_through(connection, figures, 5)
        await everything_is_open(worker, wire)
        figures.recovery = None
        for names in which:
            before = await worker.metrics()
            broken = do(wire, *names)
            assert broken or names == ("count",), f"no connection {names} was there: {wire.names()}"
            figures.faults += broken
            within = HANDLERS_SILENT if bound == SILENT and names in {("handler",), ()} else bound
            await told(names, work_through(connection, figures, within))
            if names in {("ask",), ()}:
                await told(names, aeventually(lambda: answers(worker), timeout=within))
            made_anew = set(names or CONNECTIONS) - NOT_COUNTED
            # The listener asks itself every ttl, and waits as long for its own word; an idle connection is used every second or so.
            await told(
                names,
                aeventually(
                    lambda before=before, made_anew=made_anew: reconnected(worker, before, made_anew), 2 * TTL + 3
                ),
            )
            assert await worker.metric("howdah_heartbeat_age_seconds") < TTL, names
        await everything_is_open(worker, wire)
        assert worker.process.poll() is None
        for event in ("taken for dead, entering again", "no beat arrived for long, releasing all jobs", "lost lease"):
            assert not worker.log_events(event), event
        await checker.check(figures=figures)
        assert await worker.stop() == 0


#: Their reconnects are seen by nobody: the handlers' pool counts none, and the count is made every 20 s.
NOT_COUNTED = {"handler", "count"}


async def reconnected(worker: Daemon, before: dict[str, float], names: set[str]) -> bool:
    after = await worker.metrics()
    counted = (f'howdah_reconnects_total{{connection="{name}"}}' for name in names)
    return all(after.get(name, 0) > before.get(name, 0) for name in counted)


async def everything_is_open(worker: Daemon, wire: Proxy) -> None:
    """Wait until every connection is there; the count's comes when the worker leads, and then every 20 s."""
    await aeventually(lambda: answers(worker))
    await aeventually(lambda: hears(worker), timeout=2 * TTL + 2)
    await aeventually(lambda: set(CONNECTIONS) - {"count"} <= wire.names())


async def answers(worker: Daemon) -> bool:
    return (await worker.get("/health/queue"))[0] == 200


async def hears(worker: Daemon) -> bool:
    return await worker.metric("howdah_listener_up") == 1


async def told(names: tuple[str, ...], wait: Any) -> None:
    """Say which connection it was when something does not happen."""
    try:
        await wait
    except AssertionError as error:
        raise AssertionError(f"{' '.join(names) or 'all'}: {error}") from error


@pytest.mark.fault(
    "Connections", "a machine vanishes, without a word", "both sides are told to notice within 30 s, not two hours"
)
async def test_worker_and_server_are_told_to_notice_that_the_other_has_vanished(
    daemon: StartDaemon, connection: asyncpg.Connection, database: Database
) -> None:
    settings = """
@handler("settings", transaction=True)
async def settings(job: Job, connection: asyncpg.Connection) -> Any:
    return [await connection.fetchval(f"show {name}") for name in
            ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")]
"""
    worker = await daemon(settings)
    ended = await end_of(connection, await enqueue(connection, "settings"))
    assert ended["result"][:3] == ["15", "5", "3"]
    assert ended["result"][3] in {"30000", "30s"}
    # The kernel's own word for it: the timer of each of our sockets, 02 where it is the keepalive's.
    port = f"{urlsplit(database.url).port:04X}"
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{worker.process.pid}/fd").iterdir() if fd.exists()}  # noqa: ASYNC240
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]  # noqa: ASYNC240
    timers = [row[5] for row in rows if row[2].endswith(f":{port}") and f"socket:[{row[9]}]" in sockets]
    assert len(timers) >= 5
    assert all(timer.startswith(("01:", "02:")) for timer in timers), timers
