"""The worker of a session: `python -m howdah.devmode.child FILE`, settings from the environment as `howdah run` reads them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import uvloop

from howdah import logs
from howdah.config import load_config
from howdah.errors import ConfigError, HandlersError, HowdahError, SchemaError
from howdah.registry import load
from howdah.service import Service

if TYPE_CHECKING:
    from howdah.config import Config
    from howdah.registry import Registry
    from howdah.service import Report

#: Slots of a queue that a handler names and the settings do not.
SLOTS = 10


def main(file: str) -> int:
    """Work until told to stop; 78 when the settings or the file must be mended first."""
    try:
        config = load_config(handlers=file)
        logs.configure(style=config.log_format, level=config.log_level)
        registry = load(config.handlers)
        report = uvloop.run(_serve(with_queues(config, registry), registry))
    except (ConfigError, HandlersError, SchemaError) as error:
        sys.stderr.write(f"howdah: {error}\n")
        return 78
    except HowdahError as error:
        sys.stderr.write(f"howdah: {error}\n")
        return 1
    return 1 if report.failed else 0


def with_queues(config: Config, registry: Registry) -> Config:
    """Serve the queues that the handlers name, too: in one file's session nobody else does."""
    if "queues" in config.model_fields_set:
        return config
    named = {str(kind["queue"]): SLOTS for kind in registry.registrations() if kind["queue"] is not None}
    return config.model_copy(update={"queues": {**named, **config.queues}})


async def _serve(config: Config, registry: Registry) -> Report:
    return await Service(config, registry).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
