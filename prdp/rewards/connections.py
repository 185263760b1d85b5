"""Who may hold a connection to a server, and for how long: strangers never keep out those who show the token."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import threading
import time
from collections import Counter
from typing import Any

HEADER_SECONDS = 5.0
"""How long a client may take until its headers, with the token, are there."""
HEADER_BYTES = 2**17
"""How much it may send until then."""
SOCKET_SECONDS = 30.0
"""How long a client that was let in may be silent in the middle of its request."""
REQUEST_SECONDS = 300.0
"""How long a whole request may take to arrive, however steadily it drips."""
CONNECTIONS = 64
"""Connections at a time."""


class Connections:
    """The open connections. A client is a stranger until its headers are there, and with them the token, if any.

    When all places are taken, a new connection gets that of a stranger: the oldest one of the address that has most.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._open: set[socket.socket] = set()
        self._strangers: dict[socket.socket, str] = {}

    def enter(self, connection: socket.socket, host: str) -> bool:
        """Whether there is a place for a new connection from an IP address; a stranger's may end for it."""
        with self._guard:
            if len(self._open) >= CONNECTIONS:
                if not self._strangers:
                    return False
                counts = Counter(self._strangers.values())
                most = max(counts.values())
                oldest = next(one for one, peer in self._strangers.items() if counts[peer] == most)
                del self._strangers[oldest]
                self._open.discard(oldest)
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # Its thread reads the end, and closes it.
            self._open.add(connection)
            self._strangers[connection] = peer_of(host)
            return True

    def let_in(self, connection: socket.socket) -> None:
        """A client is no stranger any more: its place is its own until it is answered."""
        with self._guard:
            self._strangers.pop(connection, None)

    def leave(self, connection: socket.socket) -> None:
        """Its place is free."""
        with self._guard:
            self._open.discard(connection)
            self._strangers.pop(connection, None)


class Arriving(io.RawIOBase):
    """A request as it arrives: its headers within `HEADER_SECONDS`, all of it within `REQUEST_SECONDS`.

    Reading raises TimeoutError after that, and ConnectionError for more bytes than were allowed.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._begun = time.monotonic()
        self._silence, self._end, self._bytes = HEADER_SECONDS, self._begun + HEADER_SECONDS, HEADER_BYTES

    def expect(self, size: int) -> None:
        """Wait for the rest of the request, of at most so many bytes."""
        self._silence, self._end, self._bytes = SOCKET_SECONDS, self._begun + REQUEST_SECONDS, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._bytes <= 0:
            raise ConnectionError("headers without end")
        self._connection.settimeout(min(left, self._silence))
        count = self._connection.recv_into(memoryview(buffer)[: self._bytes])
        self._bytes -= count
        return count


def peer_of(host: str) -> str:
    """What counts as one client: an IPv4 address, or a network of 64 bits of IPv6, in which a machine has many."""
    plain = host.partition("%")[0]
    return plain if ":" not in plain else str(ipaddress.ip_network(f"{plain}/64", strict=False))
