"""Choose the user that PostgreSQL runs as: it refuses root, and initdb refuses a user that has no name."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from howdah.errors import EmbeddedError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """Whom PostgreSQL runs as. `prefix` goes before its command; `uid` and `gid` own its files, seen from here."""

    prefix: tuple[str, ...]
    uid: int
    gid: int

    @property
    def account(self) -> str:
        """What `child` has to become: `uid:gid`, or `-` for nothing else than it is."""
        return "-" if self.uid == os.geteuid() else f"{self.uid}:{self.gid}"


def choose_identity(binaries: Path, data_dir: Path) -> Identity:
    """Stay an ordinary user; as root appear as one in a user namespace, or else become one.

    In the namespace root reads its own files and nobody else's, so what is needed there is tried out.
    """
    ourselves = Identity((), os.geteuid(), os.getegid())
    if ourselves.uid != 0 and _has_name(ourselves.uid):
        return ourselves
    account = _ordinary_account()
    if unshare := shutil.which("unshare"):
        prefix = (unshare, "--user", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}")
        needed = ("test", "-x", sys.executable, "-a", "-x", str(binaries / "postgres"), "-a", "-w", str(data_dir))
        tried = subprocess.run((*prefix, *needed), capture_output=True, check=False)  # noqa: S603 - nothing foreign
        if tried.returncode == 0:
            return Identity(prefix, ourselves.uid, ourselves.gid)
    return Identity((), account.pw_uid, account.pw_gid) if ourselves.uid == 0 else ourselves


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_account() -> pwd.struct_passwd:
    accounts = {account.pw_name: account for account in reversed(pwd.getpwall()) if account.pw_uid != 0}
    if not accounts:
        raise EmbeddedError("PostgreSQL refuses to run as root, and /etc/passwd knows nobody else: add a user")
    return accounts.get("postgres") or accounts.get("nobody") or next(iter(accounts.values()))


def give(path: Path, identity: Identity) -> None:
    """Make `path`, and all below it, the property of `identity`. Only root can, and only root ever needs to."""
    if os.geteuid() != 0:
        return
    for owned in (path, *path.rglob("*")):
        os.chown(owned, identity.uid, identity.gid, follow_symlinks=False)
