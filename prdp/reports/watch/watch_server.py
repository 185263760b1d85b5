"""The server of the page: Starlette and uvicorn, for whoever has the token in the address."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from prdp.reports.report_style import STYLE
from prdp.reports.watch.watch_charts import MOST_RUNS, charts
from prdp.reports.watch.watch_pictures import picture, pictures, prompts
from prdp.reports.watch.watch_state import WatchState, differences
from prdp.reports.watch.watched_run import WatchedRun
from prdp.reports.watch.watched_runs import WatchedRuns
from prdp.support.printable import printable_values
from prdp.tracking.strict_json import strict_json

_log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("watch.js", "watch_charts.js", "watch_elements.js", "watch_pictures.js")
_ALIVE_SECONDS = 15.0
"""How often a silent connection hears that the server is there."""
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Nothing loads from elsewhere, nothing elsewhere reads or frames the page, and the token travels to nobody."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """Lets those in who name this machine and have the token; everything else ends here.

    A page elsewhere can make a browser ask this server under a name of its own (DNS rebinding); so the Host header has
    to be an address, localhost, or a name that the server was given. Addresses cannot be rebound.

    Args:
        app: what is behind it; it sees the path after the token.
        token: the first part of every path.
        names: that the server goes by, besides.
        anywhere: whether addresses beyond loopback are taken, for a server that listens on one.
    """

    def __init__(self, app: Any, token: str, names: Sequence[str] = (), anywhere: bool = False) -> None:
        self._app, self._token = app, token.encode()
        self._names, self._anywhere = {"localhost", *(name.lower() for name in names)}, anywhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a socket that is never accepted is refused

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        token, slash, rest = scope["path"].removeprefix("/").partition("/")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            await _refuse(guarded, 421, "This server does not go by that name; use its address, or --name.")
        elif not hmac.compare_digest(token.encode("utf-8", errors="replace"), self._token):
            await _refuse(guarded, 403, "The address lacks the token; use the one that prdp watch printed.")
        elif not slash:
            await _refuse(guarded, 404, "The address ends with a slash.")
        else:
            path = f"/{rest}"
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, guarded)

    def _knows(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.lower() in self._names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self._anywhere or address.is_loopback


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class _Site:
    """What the routes answer."""

    def __init__(self, runs: WatchedRuns, every: float, ending: Callable[[], bool]) -> None:
        self.runs, self.every, self.ending = runs, every, ending
        self.state = WatchState(runs)

    async def follow(self) -> None:
        """Look at the runs again and again."""
        while True:
            try:
                await asyncio.to_thread(self.runs.poll, time.time())
            except Exception:  # noqa: BLE001 - whatever a stranger's folder brings about, the others go on
                _log.exception("a look at the runs failed; the page goes on")
            await asyncio.sleep(self.every)

    def message(self, place: int | None) -> str:
        """What a browser hears after a look."""
        now = time.time()
        with self.runs.lock:
            told = self.state.table(now)
            if place is not None and place < len(self.runs.runs):
                told["details"] = self.state.details(place, now)
        return json.dumps(strict_json(told), allow_nan=False)

    async def stream(self, place: int | None) -> AsyncIterator[str]:
        """Server-sent events: the state, whenever it has changed."""
        sent, heard, turn = "", time.monotonic(), -1
        while not self.ending():
            if turn != self.runs.turn and self.runs.turn:
                turn = self.runs.turn
                text = await asyncio.to_thread(self.message, place)
                if text != sent or time.monotonic() - heard > _ALIVE_SECONDS:
                    sent, heard = text, time.monotonic()
                    yield f"event: state\ndata: {text}\n\n"
            await asyncio.sleep(min(0.2, self.every))

    def charts(self, request: Any) -> Any:
        with self.runs.lock:
            chosen = self._chosen(request)
            if not chosen:
                return _missing("no such run")
            shown = dict(chosen.values())
            more, wide = (request.query_params.get(name) == "1" for name in ("more", "wide"))
            found: dict[str, Any] = dict(charts(shown, more, wide))
            epochs = {item.epoch for run in shown.values() for item in run.evaluations.loaded}
            configs = [run.data.config for run in shown.values()]
        found["epochs"] = sorted(epochs)
        found["differences"] = printable_values(differences(configs)) if len(configs) > 1 else []
        return _json(found)

    def pictures(self, request: Any) -> Any:
        epoch = _count(request.query_params.get("epoch"))
        with self.runs.lock:
            chosen = self._chosen(request)
            if chosen is None or epoch is None:
                return _missing("no such run or epoch")
            return _json(pictures(chosen, epoch))

    def prompts(self, request: Any) -> Any:
        epoch, place = _count(request.query_params.get("epoch")), _count(request.query_params.get("run"))
        with self.runs.lock:
            if epoch is None or place is None or place >= len(self.runs.runs):
                return _missing("no such run or epoch")
            return _json(prompts(place, self.runs.runs[place], epoch))

    def picture(self, request: Any) -> Any:
        from starlette.responses import Response

        numbers = [_count(request.path_params[name]) for name in ("run", "epoch", "prompt", "image")]
        if None in numbers:
            return _missing("no such picture")
        place, epoch, prompt, image = (number or 0 for number in numbers)
        if place >= len(self.runs.runs):
            return _missing("no such run")
        try:
            content = picture(self.runs.runs[place], epoch, prompt, image)
        except (OSError, ValueError) as error:
            return _missing(str(error))
        return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})

    def _chosen(self, request: Any) -> Mapping[int, tuple[str, WatchedRun]] | None:
        """Place -> (name, run) of the runs that a request asks for; None where one of them is not there."""
        words = [word for word in request.query_params.get("runs", "").split(",") if word][:MOST_RUNS]
        places = [_count(word) for word in words]
        runs, names = self.runs.runs, self.runs.names()
        found = {place: (names[place], runs[place]) for place in places if place is not None and place < len(runs)}
        return found if len(found) == len(set(words)) else None


def build_app(
    runs: WatchedRuns,
    token: str,
    names: Sequence[str] = (),
    anywhere: bool = False,
    every: float = 1.0,
    ending: Callable[[], bool] = lambda: False,
) -> Guard:
    """The whole server as an ASGI application.

    Args:
        runs: that are shown; the application polls them.
        token, names, anywhere: as `Guard` has them.
        every: seconds between two looks.
        ending: whether streams are to end, since the server does.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    site = _Site(runs, every, ending)
    own = {"cache-control": "no-cache"}

    def page_file(name: str, media_type: str, before: str = "") -> Callable[[Any], Any]:
        content = before + (PAGE / name).read_text(encoding="utf-8")
        return lambda request: Response(content, media_type=media_type, headers=own)

    async def events(request: Any) -> Any:
        stream = site.stream(_count(request.query_params.get("run")))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        following = asyncio.create_task(site.follow())
        yield
        following.cancel()

    routes = [
        Route("/", page_file("watch.html", "text/html")),
        Route("/watch.css", page_file("watch.css", "text/css", STYLE)),
        *(Route(f"/{name}", page_file(name, "text/javascript")) for name in SCRIPTS),
        Route("/events", events),
        Route("/charts", site.charts),
        Route("/pictures", site.pictures),
        Route("/prompts", site.prompts),
        Route("/runs/{run}/pictures/{epoch}/{prompt}/{image}", site.picture),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(GZipMiddleware, compresslevel=5)])
    return Guard(app, token, names, anywhere)


def serve(
    runs: WatchedRuns,
    listening: socket.socket,
    token: str,
    names: Sequence[str] = (),
    anywhere: bool = False,
    every: float = 1.0,
    started: Callable[[Any], None] = lambda server: None,
) -> None:
    """Serve until SIGINT or SIGTERM, which are raised again.

    Args:
        runs, token, names, anywhere, every: as `build_app` has them.
        listening: a bound socket.
        started: gets the `uvicorn.Server` before it begins; to end it from another thread, set its `should_exit`.
    """
    import uvicorn

    app = build_app(runs, token, names, anywhere, every, lambda: server.should_exit)
    # Lines of requests would hold the token.
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, limit_concurrency=64, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    started(server)
    server.run(sockets=[listening])


def _json(content: Any) -> Any:
    from starlette.responses import Response

    text = json.dumps(strict_json(content), allow_nan=False)
    return Response(text, media_type="application/json", headers={"cache-control": "no-store"})


def _missing(text: str) -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text, status_code=404, headers={"cache-control": "no-store"})


def _count(text: str | None) -> int | None:
    """A number of a request; None for what is none."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None
