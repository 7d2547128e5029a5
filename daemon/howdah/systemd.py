"""Words to systemd: ready, status, stopping, watchdog. Without systemd they go nowhere."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Speaks the sd_notify protocol: datagrams of VARIABLE=value to the socket that NOTIFY_SOCKET names.

    Source: sd_notify(3), sd_watchdog_enabled(3).
    """

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        # A leading @ means the abstract name space, whose names begin with a NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = os.environ.get("WATCHDOG_USEC", "")
        pid = os.environ.get("WATCHDOG_PID", "")
        meant = usec.isdigit() and (not pid or pid == str(os.getpid()))
        #: How often the watchdog wants to be fed, in seconds: half its patience. None: there is no watchdog.
        self.watchdog_interval = int(usec) / 2e6 if meant and int(usec) else None

    def ready(self, status: str) -> None:
        """Say that the service does its work."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """Say in one line what the service is doing."""
        self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that the settings are being read again; `ready` ends it."""
        self._send("RELOADING=1")

    def stopping(self, seconds: float) -> None:
        """Say that the service is on its way out, and that it may take so many seconds."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def feed_watchdog(self) -> None:
        """Say that all is well."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.connect(self._address)
                channel.sendall(text.encode())
        except OSError:
            # systemd is restarting, or we outlived it: a status line is not worth a job.
            return
