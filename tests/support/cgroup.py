"""A limit to the memory of processes, at which the kernel kills one of them: a control group of the test's own, where that is allowed."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(megabytes: int, name: str) -> Iterator[Path | None]:
    """Make a control group and give its list of processes, into which they are written; None: this machine lets nobody make one."""
    old = _ROOT / "memory" / name
    new = _ROOT / name
    group, limit = (old, "memory.limit_in_bytes") if old.parent.is_dir() else (new, "memory.max")
    try:
        group.mkdir()
        (group / limit).write_text(str(megabytes << 20))
    except OSError:
        if group.is_dir():
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        eventually(lambda: _removed(group))


def _removed(group: Path) -> bool:
    group.rmdir()
    return True
