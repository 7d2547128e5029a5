"""The embedded PostgreSQL: a server of our own on loopback, for `dev`, `demo`, `--embedded` and the tests."""

from howdah.embedded.binaries import find_binaries
from howdah.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "find_binaries"]
