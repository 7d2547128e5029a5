"""Which machines an address from a user may lead to: public ones, and those that APP_FETCH_ALLOW names.

Checked is what is connected to: aiohttp connects a literal address as it stands, which check_url has seen, and a name by what
GuardedResolver gave for this very connection, never by an earlier look-up, which a hostile name server would answer differently.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractResolver, ResolveResult

from handlers.fetch_errors import AddressRefusedError
from howdah.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from yarl import URL

# IPv4 in IPv6 clothes. A router may undress it, and then it leads where the inner address leads.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_DISGUISES = [
    ipaddress.IPv6Network(text)
    for text in ("::ffff:0:0/96", "::/96", "2002::/16", "2001::/32", "64:ff9b:1::/48", "fec0::/10")
]
_LOOKUPS = 16  # at once
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*", re.ASCII)


class Allowed:
    """The networks and host names that may be reached although they are not public."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._names: set[str] = set()
        for entry in entries:
            self._add(entry.lower())

    def _add(self, entry: str) -> None:
        try:
            self._networks.append(ipaddress.ip_network(entry))
        except ValueError as error:
            # A network with a slip in it must not pass for a name: then nothing would be allowed, and nobody told why.
            if "/" in entry or ":" in entry or entry.replace(".", "").isdigit() or not _NAME.fullmatch(entry):
                raise ConfigError("APP_FETCH_ALLOW", f"{entry!r} is no network and no host name: {error}") from None
            self._names.add(entry)

    def name(self, host: str) -> bool:
        """Tell whether whatever a host's name leads to is allowed."""
        return host.lower().rstrip(".") in self._names

    def address(self, address: IPv4Address | IPv6Address) -> bool:
        """Tell whether an address lies in an allowed network."""
        return any(address.version == network.version and address in network for network in self._networks)


def check_url(url: URL, allowed: Allowed) -> None:
    """Refuse what can be refused by its looks. Literal addresses are judged here, for they are never resolved."""
    if url.scheme not in {"http", "https"}:
        raise AddressRefusedError(url, "is refused: only http and https are fetched")
    if url.user is not None or url.password is not None:
        raise AddressRefusedError(url, "is refused: a name or password stands in the address")
    host = url.raw_host
    if not host:
        raise AddressRefusedError(url, "is refused: it names no host")
    # aiohttp takes 127.1 for a literal, too, and the system's connect() understands it: what looks like one must be one.
    if ":" in host or host.replace(".", "").isdigit():
        check_address(host, allowed, url)
    elif not _NAME.fullmatch(host.lower().rstrip(".")):
        raise AddressRefusedError(url, "is refused: it names no proper host")


def check_address(text: str, allowed: Allowed, what: object) -> None:
    """Raise AddressRefusedError, which speaks of `what`, unless this numeric address is public or allowed."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise AddressRefusedError(what, f"is refused: {text} is no proper address") from None
    if not (is_public(address) or allowed.address(address)):
        raise AddressRefusedError(what, f"is refused: {address} is not in a public network")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address belongs to somebody on the public internet, whatever it is dressed up as."""
    if address.version == 6:
        if any(address in network for network in _DISGUISES):
            return False
        if address in _NAT64:  # how an IPv6-only network reaches the rest; worth what stands in it
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses one of whose addresses any is not public: what is left is what is connected to.

    Each look-up has a thread of its own. The loop's few are the database's, too: whoever owns a slow name server could
    keep them all busy. They are daemons, because nothing can interrupt them, and the worker's end must not wait.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._turns = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Give the addresses of a name. Raises OSError, AddressRefusedError."""
        found = await self._look_up(host, port, family)
        if not self._allowed.name(host):
            for one in found:
                check_address(one["host"], self._allowed, host)
        return found

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        await self._turns.acquire()
        answer: Future[list[ResolveResult]] = Future()
        answer.add_done_callback(partial(_give_back, asyncio.get_running_loop(), self._turns))
        threading.Thread(target=_look_up, args=(host, port, family, answer), name="resolver", daemon=True).start()
        # Shielded: the turn is over when the thread is, not when somebody has lost patience.
        return await asyncio.shield(asyncio.wrap_future(answer))

    async def close(self) -> None:
        """Nothing is held."""


def _give_back(loop: asyncio.AbstractEventLoop, turns: asyncio.Semaphore, _answer: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits for a turn any more
        loop.call_soon_threadsafe(turns.release)


def _look_up(host: str, port: int, family: socket.AddressFamily, answer: Future[list[ResolveResult]]) -> None:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        answer.set_result([_result(host, facts) for facts in found])
    except BaseException as error:
        answer.set_exception(error)


def _result(host: str, facts: tuple[Any, ...]) -> ResolveResult:
    family, _, protocol, _, address = facts
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(
        hostname=host, host=str(address[0]), port=address[1], family=family, proto=protocol, flags=numeric
    )
