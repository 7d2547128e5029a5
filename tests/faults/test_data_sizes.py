"""Payloads, results and progress as large as they may be, by the hundred: nothing is lost for their size, and memory stays bounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.checker import JOURNAL, Checker
from support.eventually import aeventually
from support.facts import is_empty
from support.jobs import enqueue_many

if TYPE_CHECKING:
    import asyncpg
    from conftest import StartDaemon
    from support.daemon import Daemon
    from support.figures import Figures

MIB = 1 << 20
HANDLERS = JOURNAL + """
def text(size):
    # A JSON string of so many bytes.
    return "x" * (size - 2)

@handler("large")
async def large(job: Job) -> str:
    await quick_journal(job, "start")
    if job.payload.get("reports"):
        await job.report(text(1 << 20))
    while not Path("go").exists():
        await asyncio.sleep(0.05)
    await quick_journal(job, "end")
    return text(job.payload["size"])

@handler("spoils")
async def spoils(job: Job) -> dict[str, Any]:
    await quick_journal(job, "start")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    await quick_journal(job, "end")
    return job.payload

@handler("short")
async def short(job: Job) -> None: ...
"""  # fmt: skip


async def wait_for(worker: Daemon, jobs: int) -> bool:
    return await worker.metric('howdah_slots_used{queue="default"}') == jobs


def memory(worker: Daemon, what: str) -> int:
    """Give VmRSS, or the most that it ever was, VmHWM, in MiB."""
    lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) // 1024


async def write_all(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures, sizes: list[int], patience: float
) -> dict[str, float]:
    """Let handlers end all at once, each with progress of 1 MiB and a result of its size; gives the worker's metrics."""
    checker = await Checker(connection).install()
    await enqueue_many(connection, *({"kind": "large", "payload": {"size": size, "reports": True}} for size in sizes))
    worker = await daemon(HANDLERS, queues=f"default:{len(sizes)}")
    await aeventually(lambda: wait_for(worker, len(sizes)), timeout=30)
    before = memory(worker, "VmRSS")
    (worker.folder / "go").touch()
    await aeventually(lambda: is_empty(connection), timeout=patience)
    figures.faults = len(sizes)
    # The results themselves, and a few statements' worth of buffers.
    assert memory(worker, "VmHWM") - before < 2 * sum(sizes) / MIB + 100
    rows = await connection.fetch(
        "select payload ->> 'size' as size, state, octet_length(result::text) as bytes, result::text like '{\"howdah\"%' as stub, octet_length(progress::text) as told from howdah.job_history"
    )
    assert {row["state"] for row in rows} == {"completed"}
    for row in rows:
        assert row["told"] == MIB
        assert row["stub"] == (int(row["size"]) > MIB), row
        assert row["stub"] or row["bytes"] == int(row["size"])
    found = await worker.metrics()
    assert sum(value for name, value in found.items() if name.startswith("howdah_reconnects_total")) == 0
    await checker.check(figures=figures)
    return found


@pytest.mark.fault(
    "Data", "results and progress of 1 MiB, a byte less and a byte more, all at once", "kept, or a stub that says its size; acks go in portions"
)  # fmt: skip
async def test_the_largest_results_are_acked_in_portions_and_larger_ones_become_a_stub(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    sizes = [MIB - 1, MIB, MIB + 1, 3 * MIB] * 6
    found = await write_all(daemon, connection, figures, sizes, patience=20)
    # 8 MiB and what went beyond it: never more than a few in one statement.
    assert found["howdah_ack_batch_size_sum"] == len(sizes)
    assert found['howdah_ack_batch_size_bucket{le="10.0"}'] == found["howdah_ack_batch_size_count"]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "Data", "results and progress of more than 1 GiB waiting for one worker's acks", "written in portions; the server never hangs up"
)  # fmt: skip
async def test_more_than_a_gigabyte_of_outcomes_is_written(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    await write_all(daemon, connection, figures, [MIB - 1] * 550, patience=200)


@pytest.mark.fault(
    "Data", "outcomes that the database refuses amid a batch of acks", "they are dead and say so; the rest of the batch completes"
)  # fmt: skip
async def test_an_outcome_that_cannot_be_stored_spoils_no_other_of_its_batch(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    await connection.execute(
        """alter table howdah.job_history add constraint picky check (result ->> 'bad' is null);
        create function public.picky() returns trigger language plpgsql as $$ begin
          if new.result ? 'worse' then raise exception 'not this one' using errcode = '22P05'; end if;
          if new.result ? 'deepest' then raise exception 'too deep' using errcode = '54001'; end if;
          return new; end $$;
        create trigger picky before insert on howdah.job_history for each row execute function public.picky()"""
    )
    ways = ["bad", "worse", "deepest"]
    jobs = [{"kind": "spoils", "payload": {ways[n // 40 % 3] if n % 40 == 7 else "good": n}} for n in range(240)]
    rows = await enqueue_many(connection, *jobs)
    worker = await daemon(HANDLERS, queues="default:300")
    await aeventually(lambda: wait_for(worker, len(jobs)))
    (worker.folder / "go").touch()
    await aeventually(lambda: is_empty(connection))
    for row, job in zip(rows, jobs, strict=True):
        ended = await checker.history_of(row["id"])
        if "good" in job["payload"]:
            assert (ended["state"], ended["result"]) == ("completed", job["payload"])
        else:
            assert (ended["state"], ended["result"], ended["errors"][-1]["type"]) == ("dead", None, "Unstorable")
            assert "could not be stored" in ended["errors"][-1]["message"]
            figures.faults += 1
    assert figures.faults == 6
    await checker.check(figures=figures)


@pytest.mark.fault("Data", "120 payloads of 1 MiB in one queue", "no more of them in hand than 32 MiB beyond the slots")
async def test_heavy_payloads_are_not_claimed_far_ahead(
    daemon: StartDaemon, connection: asyncpg.Connection, figures: Figures
) -> None:
    checker = await Checker(connection).install()
    worker = await daemon(HANDLERS, queues="default:10")
    await connection.execute(
        "select howdah.enqueue('short', jsonb_build_object('n', n, 'x', repeat('y', 1048000))) from generate_series(1, 12) n"
    )
    await aeventually(lambda: is_empty(connection))
    before = memory(worker, "VmHWM")
    await connection.execute(
        "select howdah.enqueue('short', jsonb_build_object('n', n, 'x', repeat('y', 1048000))) from generate_series(1, 120) n"
    )
    await aeventually(lambda: is_empty(connection), timeout=20)
    figures.faults = 132
    assert memory(worker, "VmHWM") - before < 70
    await checker.check(figures=figures)
