"""Who may hold a connection to a server, and for how long: strangers never keep out those who show the token."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
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


class Bodies:
    """The memory of bodies that are not whole yet. Without room, the client that has most loses its most silent body.

    Args:
        room: bytes of all of them.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._guard = threading.Lock()
        self._held: dict[socket.socket, tuple[str, int]] = {}  # by when something last came

    def arrived(self, connection: socket.socket, host: str, size: int) -> None:
        """A connection from an IP address holds so many bytes by now.

        Raises:
            BlockingIOError: there is no room for them.
        """
        with self._guard:
            self._held.pop(connection, None)
            self._held[connection] = peer_of(host), size
            while sum(held for _, held in self._held.values()) > self.room:
                sizes = Counter[str]()
                for peer, held in self._held.values():
                    sizes[peer] += held
                most = max(sizes.values())
                silent = next(one for one, (peer, _) in self._held.items() if sizes[peer] == most)
                del self._held[silent]
                if silent is connection:
                    raise BlockingIOError
                with contextlib.suppress(OSError):
                    silent.shutdown(socket.SHUT_RDWR)  # Its thread reads the end, and closes it.

    def leave(self, connection: socket.socket) -> None:
        """The body is whole, or will never be."""
        with self._guard:
            self._held.pop(connection, None)


class Arriving(io.RawIOBase):
    """A request as it arrives: its headers within `HEADER_SECONDS`, all of it within `REQUEST_SECONDS`.

    Reading raises TimeoutError after that, and ConnectionError for more bytes than were allowed.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._begun = time.monotonic()
        self._silence, self._end, self._bytes = HEADER_SECONDS, self._begun + HEADER_SECONDS, HEADER_BYTES
        self._size = 0
        self._arrived: Callable[[int], None] | None = None

    def expect(self, size: int, arrived: Callable[[int], None] | None = None) -> None:
        """Wait for the rest of the request, of at most so many bytes; `arrived` is told how many came so far.

        What came along with the headers, 8 KiB at most, is not among them.
        """
        self._size, self._arrived = size, arrived
        self._silence, self._end, self._bytes = SOCKET_SECONDS, self._begun + REQUEST_SECONDS, size
        if arrived is not None:
            arrived(0)

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
        if self._arrived is not None and count:
            self._arrived(self._size - self._bytes)
        return count


def peer_of(host: str) -> str:
    """What counts as one client: an IPv4 address, or a network of 64 bits of IPv6, in which a machine has many."""
    plain = host.partition("%")[0]
    return plain if ":" not in plain else str(ipaddress.ip_network(f"{plain}/64", strict=False))
