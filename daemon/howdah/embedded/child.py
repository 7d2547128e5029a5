"""Run one program of PostgreSQL so that it ends when its owner does.

A script: `embedded` starts it, nothing imports it. Its arguments: the owner's process id; the file descriptor of the
lifeline, or `-`; `uid:gid` to run as, or `-`; the program and its arguments. Without a lifeline the program takes this
process's place, and the kernel tells it of the owner's death. With one, this process stays as its supervisor and
watches the pipe whose other end only the owner holds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def main(owner: str, lifeline: str, account: str, *command: str) -> int:
    """Run `command`; return its exit code if this process supervises it, and never return if it takes our place."""
    if lifeline == "-":
        execute(int(owner), account, command)
    return supervise(int(lifeline), account, command)


def supervise(lifeline: int, account: str, command: tuple[str, ...]) -> int:
    """Run `command` as a child, ask it to stop when the owner is gone, and pass on signals; SIGTERM kills it."""
    supervisor = os.getpid()
    program = os.fork()
    if program == 0:
        os.close(lifeline)
        execute(supervisor, account, command)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(program, signal.SIGKILL if number == signal.SIGTERM else number)

    def stop_when_owner_is_gone() -> None:
        os.read(lifeline, 1)  # nobody ever writes: it returns when the last holder of the other end has ended
        os.kill(program, signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, pass_on)
    threading.Thread(target=stop_when_owner_is_gone, daemon=True).start()
    _, status = os.waitpid(program, 0)
    return os.waitstatus_to_exitcode(status) & 0x7F


def execute(parent: int, account: str, command: tuple[str, ...]) -> None:
    """Become `command`, as `account`, with a fast shutdown when `parent` ends. Never returns."""
    if account != "-":
        uid, gid = map(int, account.split(":"))
        _change_account(uid, gid)
    if sys.platform == "linux":
        # After the change of account, which clears it. A parent that died before this line is seen by the next.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGINT, 0, 0, 0)))
    if os.getppid() != parent:
        os._exit(1)
    os.execv(command[0], command)  # noqa: S606 - the point of this script


def _change_account(uid: int, gid: int) -> None:
    """Give up root for an ordinary account, but go on reading and writing files as root could.

    PostgreSQL refuses to run as root; yet its binaries may lie in a virtual environment under /root and its data in a
    folder that only root may enter. Keeping this one capability spares copying the former and moving the latter.
    Where it cannot be kept, PostgreSQL's own message about the path tells the rest.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux":
        libc.prctl(_PR_SET_KEEPCAPS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        sys.exit(f"PostgreSQL refuses to run as root, and this process cannot become user {uid}: {error}")
    if sys.platform == "linux":
        bit = 1 << _CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)(bit, bit, bit)  # effective, permitted, inheritable; then those above bit 31
        libc.capset(header, sets)
        libc.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, (_PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
