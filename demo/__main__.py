"""`python -m demo`: run the demonstration, print one table, and exit 0 only if nothing was lost."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from random import Random

import click
from rich.console import Console

from demo.crowd import Crowd
from demo.daemons import daemons, kill_while_it_works, stop_cleanly
from demo.errors import DemoError
from demo.proof import find_losses, wait_until_idle
from demo.report import Numbers, table
from demo.scene import lost, on
from demo.scenes import SCENES
from demo.stage import stage

console = Console()


@click.command(
    help="Let a crowd like and unlike while two daemons count and one is killed; prove that no count is wrong."
)
@click.option("--actions", type=click.IntRange(min=100), default=20_000, show_default=True, help="Likes and unlikes.")
@click.option("--seed", type=int, help="Repeats the crowd's choices; their timing is never the same.")
def main(actions: int, seed: int | None) -> None:
    """Run the demonstration; the exit code is its verdict."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    try:
        console.print(asyncio.run(demonstrate(actions, seed)))
    except DemoError as error:
        console.print(f"[bold red]failed[/] (seed {seed}): {error}", soft_wrap=True, highlight=False)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    console.print("[bold green]nothing was lost[/]: every stored count is the true one")


async def demonstrate(actions: int, seed: int) -> object:
    """Play it in order of time and return the table. Raises DemoError, which says what went wrong."""
    _unwind_on_sigterm()
    random = Random(seed)  # noqa: S311 - a crowd, not a cipher
    say("starting PostgreSQL, and making users, sessions and posts")
    async with stage(random) as (url, logs, pool):
        scenes = [scene(pool, random, logs) for scene in SCENES]
        say("starting two daemons")
        async with on(scenes) as environment, daemons(url, logs, pool, environment, count=2) as (victim, survivor):
            say(f"{actions:,} likes and unlikes, seed {seed}")
            crowd = Crowd(pool, random, actions)
            async with crowd.playing() as play:
                await crowd.halfway.wait()
                held = await kill_while_it_works(victim, pool)
                say(f"killed {victim.name} (kill -9) with {len(held)} jobs in hand")
                await play
            say("waiting until no job is left")
            await wait_until_idle(pool, survivor)
            say("likes in a transaction that stays open until the jobs for earlier likes have run")
            await crowd.have_the_last_word()
            for scene in scenes:
                say(scene.title)
                await scene.play()
            await wait_until_idle(pool, survivor)
            doomed = {job for scene in scenes for job in await scene.doomed()}
            await find_losses(pool, crowd, victim, held, doomed)
            await lost(scenes)
            await stop_cleanly(survivor)
            return table(await Numbers.measure(pool, crowd, held), scenes)


def say(what: str) -> None:
    """Tell the watcher what happens now."""
    console.print(f"[dim]·[/] {what}", highlight=False, soft_wrap=True)


def _unwind_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that the daemons and the database end with us."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


if __name__ == "__main__":
    main()
