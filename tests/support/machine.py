"""A real systemd over a throw-away copy of this machine's files: what is changed in it is gone at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_BOOT_TIMEOUT = 60.0
_NAMESPACES = ("-m", "-u", "-i", "-n", "-p")


class Machine:
    """A container that systemd-nspawn boots, with a network of its own; root only. A context manager."""

    def __init__(self, *binds: Path) -> None:
        self._binds = binds
        self._place = Path(tempfile.mkdtemp(prefix="howdah-machine-"))
        self.root = self._place / "root"
        self._boot: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        _must("mount", "-t", "tmpfs", "-o", "size=6g", "tmpfs", str(self._place))
        for name in ("upper", "work", "root"):
            (self._place / name).mkdir()
        options = f"lowerdir=/,upperdir={self._place}/upper,workdir={self._place}/work"
        _must("mount", "-t", "overlay", "overlay", "-o", options, str(self.root))
        return self

    def __exit__(self, *failure: object) -> None:
        if self._boot is not None and self._boot.poll() is None:
            self._boot.terminate()  # systemd-nspawn then powers the machine off
            try:
                self._boot.wait(20)
            except subprocess.TimeoutExpired:
                self._boot.kill()
                self._boot.wait()
        subprocess.run(["umount", str(self.root)], check=False)
        subprocess.run(["umount", str(self._place)], check=False)
        shutil.rmtree(self._place, ignore_errors=True)

    def prepare(self, script: str, *, folder: str = "/") -> str:
        """Run a shell script in its files before it boots, with this machine's network. Raises AssertionError."""
        command = ["systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit", "--console=pipe"]
        passed = [f"--setenv={name}={value}" for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))]
        return _told(subprocess.run(
            [*command, *passed, f"--chdir={folder}", "sh", "-euc", script],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        ))  # fmt: skip

    def boot(self) -> None:
        """Start systemd in it, up to its basic target: none of this machine's services."""
        with (self._place / "boot.log").open("wb") as log:
            self._boot = subprocess.Popen(
                ["systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit", "--console=pipe", "--private-network",
                 *(f"--bind={bind}" for bind in self._binds), "-b", "--", "--unit=basic.target"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        children = Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children")
        deadline = time.monotonic() + _BOOT_TIMEOUT
        while time.monotonic() < deadline:
            assert self._boot.poll() is None, f"it does not boot: {(self._place / 'boot.log').read_text()[-2000:]}"
            if found := children.read_text().split():
                self._init = int(found[0])
                if self.call("systemctl is-system-running").stdout.strip() in {"running", "degraded"}:
                    return
            time.sleep(0.1)
        raise AssertionError(f"it has not booted: {(self._place / 'boot.log').read_text()[-2000:]}")

    def call(
        self, script: str, *, folder: str = "/", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script in the booted machine, whatever comes of it."""
        variables = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(environment or {})}
        return subprocess.run(
            ["nsenter", "-t", str(self._init), *_NAMESPACES, "sh", "-euc", f"cd {folder}\n{script}"],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=variables, timeout=120,
        )  # fmt: skip

    def run(self, script: str, *, folder: str = "/", environment: Mapping[str, str] | None = None) -> str:
        """Run a shell script in the booted machine and give what it says. Raises AssertionError."""
        return _told(self.call(script, folder=folder, environment=environment))

    def show(self, unit: str, what: str) -> str:
        """Give a property of a unit."""
        return self.run(f"systemctl show {unit} -p {what} --value").strip()


def _must(*command: str) -> None:
    _told(subprocess.run(command, capture_output=True, text=True, check=False))


def _told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args[-1]}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
