"""`prdp watch RUNS...`: a page about runs as they go on, on this machine."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import secrets
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from prdp.configuration.secret_values import without_secrets
from prdp.support.errors import ConfigError, StartError

PORT = 8808
TOKEN_VARIABLE = "PRDP_WATCH_TOKEN"
_SHORTEST = 16
"""Letters of a token."""


def main(arguments: Sequence[str]) -> int:
    """Serve the page until interrupted."""
    parser = argparse.ArgumentParser(
        prog="prdp watch",
        description="A page about runs as they go on: curves, held-out pictures, prompts, actors, faults.",
        epilog="It reads the folders alone, so that it works for runs that go on, are dead, or were copied from "
        f"elsewhere. The address holds a token, a new one each time; {TOKEN_VARIABLE} sets one that stays.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, help=f"0 takes a free one ({PORT}, or a free one where that is taken)")
    parser.add_argument("--name", action="append", default=[], help="a name by which browsers may call this machine")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two looks (%(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            raise StartError(f"there is no folder {folder}")
    if not 0.1 <= options.every <= 3600:
        raise ConfigError(f"--every {options.every}: must be from 0.1 to 3600")
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise StartError(f"needs the package {package}: pip install 'prdp[watch]'")
    token = chosen_token(os.environ.get(TOKEN_VARIABLE, "").strip())
    with listening_socket(options.host, options.port) as listening:
        address, port = listening.getsockname()[:2]
        anywhere = not ipaddress.ip_address(address.partition("%")[0]).is_loopback
        names = [*options.name, options.host, *([socket.gethostname(), socket.getfqdn()] if anywhere else [])]
        url = f"http://{_shown_host(options.host, address)}:{port}/{token}/"
        print(f"prdp watch: {url}", flush=True)
        if anywhere:
            print(
                "Whoever reads the traffic of this network can read the address; a tunnel of SSH is safer.", flush=True
            )
        if options.open:
            webbrowser.open(url)
        from prdp.reports.watch.watch_server import serve
        from prdp.reports.watch.watched_runs import WatchedRuns

        with contextlib.suppress(KeyboardInterrupt):
            serve(WatchedRuns(options.folders, without_secrets), listening, token, names, anywhere, options.every)
    return 0


def chosen_token(given: str) -> str:
    """A token that a person set, or a new one.

    Raises:
        ConfigError: it is too short, or holds letters that an address does not.
    """
    if not given:
        return secrets.token_urlsafe(24)
    if len(given) < _SHORTEST or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in given):
        raise ConfigError(f"{TOKEN_VARIABLE}: must have {_SHORTEST} letters or more, of A-Z, a-z, 0-9, - and _")
    return given


def listening_socket(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or an address of this machine.
        port: 0 takes a free one, None the usual one or else a free one.

    Raises:
        StartError: nothing can listen there.
    """
    failed: OSError | None = None
    for number in (PORT, 0) if port is None else (port,):
        try:
            [family, kind, protocol, _, place] = socket.getaddrinfo(
                host or "0.0.0.0", number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, kind, protocol)
        except (OSError, OverflowError) as error:
            raise StartError(f"--host {host}: cannot listen there: {error}") from error
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
        except (OSError, OverflowError) as error:
            bound.close()
            failed = OSError(str(error))
            continue
        bound.listen()  # so that a browser that is early waits
        return bound
    raise StartError(f"--host {host} --port {PORT if port is None else port}: cannot listen there: {failed}")


def _shown_host(host: str, address: str) -> str:
    """As it stands in an address: the machine's own name where all of its addresses are listened on."""
    if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
        return socket.gethostname()
    return f"[{address}]" if ":" in address else host
