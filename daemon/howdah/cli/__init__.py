"""The command `howdah`: its commands by name, each loaded when it is called."""

from __future__ import annotations

import click

from howdah.cli.group import LazyGroup

#: Command → its module, and what it does in a line. A command of a new module needs one line here.
COMMANDS = {
    "run": ("howdah.cli.running", "Work: claim jobs and run their handlers, until SIGTERM."),
    "dev": ("howdah.devmode.command", "Run one file of handlers on a database of its own, and again on every save."),
    "migrate": ("howdah.cli.schema", "Bring the database's schema up to date."),
    "register": ("howdah.cli.schema", "Tell the database of the handlers' kinds, without a daemon."),
    "check": ("howdah.cli.schema", "Check settings, handlers, database and schema."),
    "healthcheck": ("howdah.cli.health", "Ask a running worker whether it is well."),
    "enqueue": ("howdah.cli.enqueueing", "Enqueue a job, or many."),
    "jobs": ("howdah.cli.asking", "List jobs, or count them by error, kind, queue, state, worker."),
    "show": ("howdah.cli.asking", "Show everything that is known of one job."),
    "explain": ("howdah.cli.asking", "Say why a job is not running."),
    "retry": ("howdah.cli.changing", "Make new jobs of ended ones."),
    "cancel": ("howdah.cli.changing", "Cancel live jobs."),
    "wait": ("howdah.cli.waiting", "Wait until a job, or all of a sort, have ended."),
    "pause": ("howdah.cli.queueing", "Let no worker claim from a queue."),
    "resume": ("howdah.cli.queueing", "Let a queue be claimed again."),
    "limit": ("howdah.cli.limiting", "List, set and remove limits: how many may run at once, or start in a second."),
    "schedule": ("howdah.cli.scheduling", "Jobs that are made by themselves: list, add, pause, resume, remove, next."),
    "stats": ("howdah.cli.queueing", "Count live jobs by queue, kind and state."),
    "doctor": ("howdah.doctor.command", "Look at everything that is known to go wrong, and say what to do."),
    "top": ("howdah.top.command", "Watch queues, workers and running jobs."),
    "bench": ("howdah.bench", "Measure throughput, latency and cost per job."),
    "version": ("howdah.cli.about", "Print the version."),
}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
def main() -> None:
    """Background jobs for PostgreSQL.

    Every setting is a flag, a variable HOWDAH_…, or a line of the TOML file that HOWDAH_CONFIG names, in this order.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage, 75 hung and forced, 78 configuration or schema,
    124 waited too long, 130 interrupted.
    """
