"""The server's life: make the data, start, stop.

One folder holds all of it: `cluster/` (the data), `password`, `postgres.log` and `lock`.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from howdah.embedded.binaries import find_binaries, server_major
from howdah.embedded.identity import Identity, choose_identity, give
from howdah.embedded.lock import FolderLock
from howdah.embedded.process import BoundProcess
from howdah.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_START_TIMEOUT = 60.0  # seconds; recovery after a crash is part of a start
_STOP_TIMEOUT = 30.0  # seconds until a stop becomes an immediate one, and that a kill
_PORTS_TO_TRY = 5


class EmbeddedPostgres:
    """A PostgreSQL server on 127.0.0.1 whose data lies in `data_dir` and stays there between runs.

    It stops when `stop` is called or when this process ends, however it ends, `kill -9` included. The superuser
    `postgres` has a random password, which `url` carries. `settings` go to the server as `-c name=value`; `port` is a
    free one unless given. Failures raise EmbeddedError. The methods block; they may be called from any thread, one at
    a time.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.cluster = self.data_dir / "cluster"
        self.log = self.data_dir / "postgres.log"
        self._password_file = self.data_dir / "password"
        self._binaries = binaries
        self._given_port = port
        self._port = port
        self._settings = dict(settings or {})
        self._lock: FolderLock | None = None
        self._process: BoundProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; known once the server was started, and kept when it is started again."""
        if self._port is None:
            raise EmbeddedError("the embedded PostgreSQL has no port before it is started")
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running postmaster."""
        if self._process is None:
            raise EmbeddedError("the embedded PostgreSQL is not running")
        return int(self._status()[0])

    def url(self, database: str = "postgres") -> str:
        """Return the address of `database`, with the superuser's name and password."""
        password = self._password_file.read_text()
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self) -> None:
        """Make the data if there is none, start the server and return when it accepts connections."""
        if self._lock is not None:
            raise EmbeddedError(f"the embedded PostgreSQL in {self.data_dir} is already started")
        binaries = (self._binaries or find_binaries()).absolute()
        try:
            self.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._lock = FolderLock.take(self.data_dir)
            identity = choose_identity(binaries, self.data_dir)
            if not (self.cluster / "PG_VERSION").exists():
                self._make_cluster(binaries, identity, self._lock)
            self._check_cluster(binaries, identity)
            self._start_server(binaries, identity, self._lock)
        except OSError as error:
            self.kill()
            raise EmbeddedError(f"the embedded PostgreSQL in {self.data_dir} cannot be started: {error}") from error
        except BaseException:
            self.kill()
            raise

    def restart(self, *, immediate: bool = False) -> None:
        """Stop and start again on the same port. `immediate`: without a checkpoint, as after a crash."""
        self._stop(signal.SIGQUIT if immediate else signal.SIGINT)
        self.start()

    def stop(self) -> None:
        """Roll back what is open, write a checkpoint and stop. Harmless when it is not running."""
        self._stop(signal.SIGINT)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as a crash would. The next start recovers."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _make_cluster(self, binaries: Path, identity: Identity, lock: FolderLock) -> None:
        """Run initdb beside the final place and move the result there, so that a cluster is whole or absent."""
        if self.cluster.exists() and any(self.cluster.iterdir()):
            raise EmbeddedError(f"{self.cluster} holds something that is no PostgreSQL cluster; move it away")
        unfinished = self.data_dir / "cluster.init"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        self._password_file.unlink(missing_ok=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(16))
        give(unfinished, identity)
        give(self._password_file, identity)
        options = [f"--pwfile={self._password_file}", "-A", "scram-sha-256", "-U", "postgres"]
        options += ["-E", "UTF8", "--locale=C", "--no-instructions"]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        log_start = self._log_size()
        initdb = [str(binaries / "initdb"), "-D", str(unfinished), *options]
        self._process = BoundProcess(initdb, identity=identity, log=self.log, lock=lock.descriptor)
        code = self._process.wait()
        self._process = None
        if code != 0:
            raise EmbeddedError(f"initdb failed in {unfinished}: {self._log_tail(log_start)}")
        unfinished.rename(self.cluster)

    def _check_cluster(self, binaries: Path, identity: Identity) -> None:
        """Refuse data that these binaries or this user cannot run; take over what another identity of root left."""
        owner = self.cluster.stat().st_uid
        if owner != identity.uid:
            give(self.cluster, identity)
            give(self._password_file, identity)
        made_by = (self.cluster / "PG_VERSION").read_text().strip()
        major = server_major(binaries)
        if made_by != str(major):
            raise EmbeddedError(
                f"the data in {self.cluster} was made by PostgreSQL {made_by}, and {binaries} holds release {major}: "
                f"set HOWDAH_POSTGRES_BIN to a release {made_by}, or delete {self.data_dir} to begin anew",
            )

    def _start_server(self, binaries: Path, identity: Identity, lock: FolderLock) -> None:
        for _ in range(_PORTS_TO_TRY):
            port = self._port or _free_port()
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": str(port),
                "unix_socket_directories": "",  # a socket's path may have 107 bytes, and ours can be longer
                **self._settings,
            }
            options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            postgres = [str(binaries / "postgres"), "-D", str(self.cluster), *options]
            log_start = self._log_size()
            left_behind = self._status()
            self._process = BoundProcess(postgres, identity=identity, log=self.log, lock=lock.descriptor)
            if self._becomes_ready(self._process, left_behind):
                self._port = port
                return
            said = self._log_tail(log_start)
            # Somebody may take a free port before the server does.
            if self._given_port is not None or "could not bind" not in said:
                raise EmbeddedError(f"PostgreSQL in {self.cluster} did not start on port {port}: {said}")
            self._port = None
        raise EmbeddedError(f"PostgreSQL in {self.cluster} found no free port on 127.0.0.1")

    def _becomes_ready(self, process: BoundProcess, left_behind: list[str]) -> bool:
        """Wait until the server says `ready`, and tell whether it did; what a crash has `left_behind` says so too."""
        deadline = time.monotonic() + _START_TIMEOUT
        while process.is_running():
            status = self._status()
            if status != left_behind and "ready" in status[7:]:
                return True
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL in {self.cluster} is not ready after {_START_TIMEOUT:g} s: {self.log}")
            time.sleep(0.01)
        process.wait()
        return False

    def _status(self) -> list[str]:
        """Return the lines of `postmaster.pid`: the first is the process id, the eighth (if any) how far it is."""
        try:
            return [line.strip() for line in (self.cluster / "postmaster.pid").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _stop(self, how: signal.Signals) -> None:
        for number in (how, signal.SIGQUIT):
            if self._process is not None:
                self._process.signal(number)
                if self._process.wait(_STOP_TIMEOUT) is not None:
                    break
        self.kill()

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _log_tail(self, start: int) -> str:
        """Return the last lines that were logged since `start`, a size of the log in bytes."""
        with self.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(["", *lines[-8:]]) if lines else f"it said nothing ({self.log})"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
