"""Images and containers for real: built by buildah without privileges that a build machine lacks, run by podman on runc."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Made from Debian's own packages and a Python of this machine, where no image can be fetched. Kept between runs.
BASE = "localhost/python:3.13-slim-bookworm"
_LIBRARIES = (
    "ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g"
)
_DEBIANS = "python3,python3-venv,python3-pip,ca-certificates"
_LIMITS = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1000:1000")


def base_image(folder: Path) -> str:
    """Make the image that the Dockerfile begins with, unless it is there, and give its name."""
    if subprocess.run(["buildah", "inspect", BASE], capture_output=True, check=False).returncode == 0:
        return BASE
    python = next(iter(sorted(Path.home().glob(".pyenv/versions/3.13.*"))), None)
    root = folder / "base"
    told(
        "debootstrap",
        "--variant=minbase",
        f"--include={_DEBIANS if python is None else _LIBRARIES}",
        "bookworm",
        str(root),
    )
    if python is None:
        (root / "usr/bin/python").symlink_to("python3")
    else:
        shutil.copytree(
            python,
            root / "usr/local",
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("test", "__pycache__"),
        )
        (root / "usr/local/bin/python").unlink(missing_ok=True)
        (root / "usr/local/bin/python").symlink_to("python3.13")
        told("ldconfig", "-r", str(root))
    for rest in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / rest, ignore_errors=True)
    made = told("buildah", "from", "scratch").strip()
    told("buildah", "add", "-q", made, str(root), "/")
    told(
        "buildah",
        "config",
        "--env",
        "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        "--env",
        "LANG=C.UTF-8",
        made,
    )
    told("buildah", "commit", "-q", made, BASE)
    told("buildah", "rm", made)
    shutil.rmtree(root)
    return BASE


def build(context: Path, name: str, base: str) -> None:
    """Build the image of a checkout's Dockerfile. This machine's certificates are lent to the build, not kept."""
    told("buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers", "--build-arg", f"PYTHON={base}",
         "-v", "/etc/ssl/certs:/etc/ssl/certs:ro", *_pip_settings(), "-t", name, str(context))  # fmt: skip


class Container:
    """A running container; gone at the end. A context manager."""

    def __init__(
        self, image: str, *arguments: str, environment: Mapping[str, str] | None = None, options: tuple[str, ...] = ()
    ) -> None:
        variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        self.id = told(
            "podman", "--runtime", "runc", "run", "-d", *_LIMITS, "--network", "host", "--read-only", "--read-only-tmpfs=false",
            "--cap-drop=all", *options, *variables, image, *arguments,
        ).strip()  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is not None:
            sys.stderr.write(self.logs())
        subprocess.run(
            ["podman", "--runtime", "runc", "rm", "-f", "-t", "0", self.id], capture_output=True, check=False
        )

    def state(self) -> dict[str, object]:
        """Give what podman knows of it: Status, ExitCode, Pid, Health …"""
        return json.loads(told("podman", "inspect", self.id))[0]["State"]

    def run(self, *command: str) -> str:
        """Run a command in it."""
        return told("podman", "--runtime", "runc", "exec", self.id, *command)

    def logs(self) -> str:
        """Give what it has said."""
        done = subprocess.run(["podman", "logs", self.id], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def stop(self, seconds: int) -> int:
        """Stop it as an orchestrator does, and give its exit code."""
        told("podman", "--runtime", "runc", "stop", "-t", str(seconds), self.id)
        return int(str(self.state()["ExitCode"]))


def told(*command: str) -> str:
    """Run a command and give what it says. Raises AssertionError with all of it if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _pip_settings() -> list[str]:
    """Let pip in the build find packages where this machine's does."""
    found = next(
        (path for path in (Path.home() / ".config/pip/pip.conf", Path("/etc/pip.conf")) if path.is_file()), None
    )
    return [] if found is None else ["-v", f"{found}:/etc/pip.conf:ro"]
