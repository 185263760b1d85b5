"""Who gets an answer of `prdp watch`, and what is in it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import make_run
from watch_serving import TOKEN, served

from prdp.cli import main
from prdp.commands.watch import chosen_token, listening_socket
from prdp.support.errors import ConfigError, StartError

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", epochs=20)
    make_run(folder / "b", epochs=4, evaluations=[])
    (folder / "outside").mkdir()
    (folder / "outside" / "secret.png").write_bytes(b"secret")
    with served([folder / "a", folder / "b"]) as (port, _):
        yield port


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    told = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return told


def event(port: int, run: int = 0) -> dict[str, Any]:
    """The first event of a stream that tells of the runs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/{TOKEN}/events?run={run}")
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
    while True:
        line = answer.fp.readline()
        told = json.loads(line[6:]) if line.startswith(b"data: ") else {"runs": []}
        if told["runs"] and all(one["version"] for one in told["runs"]):
            connection.close()
            return dict(told)


@pytest.mark.parametrize("path", ["/", "/wrong/", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", "/%ff/", f"/wrong/{TOKEN}/", "//"])
def test_without_the_token_there_is_nothing(port: int, path: str) -> None:
    status, headers, body = ask(port, path)
    assert status == 403 and b"lacks the token" in body and TOKEN.encode() not in body
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[("localhost", 200), ("LOCALHOST:1234", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("127.9.9.9:1", 200)],
        *[("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("10.0.0.7:80", 421), ("localhost.", 421)],
    ],
)
def test_the_server_answers_to_its_own_names_alone(port: int, host: str, status: int) -> None:
    assert ask(port, f"/{TOKEN}/", Host=host)[0] == status


def test_nothing_loads_from_elsewhere_and_nobody_elsewhere_reads(port: int) -> None:
    for name in ("", "watch.css", "watch.js", "watch_charts.js", "charts?runs=0", "runs/0/pictures/0/0/0", "nothing"):
        _, headers, body = ask(port, f"/{TOKEN}/{name}", Origin="http://evil.example")
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert not [one for one in headers if one.startswith("access-control")] and "server" not in headers
        assert b"http://" not in body and b"https://" not in body, name


def test_only_reading_is_allowed(port: int) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(port, f"/{TOKEN}/events", method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        *["runs/0/pictures/0/0/../../../../../outside/secret", "runs/0/pictures/0/..%2f..%2foutside%2fsecret/0"],
        *["runs/9/pictures/0/0/0", "runs/0/pictures/5/0/0", "runs/0/pictures/0/0/7", "runs/-1/pictures/0/0/0"],
        *["runs/0/pictures/0/0/" + "9" * 5000, "charts?runs=9", "charts?runs=x", "charts", "prompts?run=9&epoch=1"],
        *[
            "pictures?runs=0&epoch=-1",
            "prompts?run=0",
            "../outside/secret.png",
            "watch_server.py",
            "../watch_server.py",
        ],
    ],
)
def test_what_is_not_there_is_not_found(port: int, path: str) -> None:
    status, _, body = ask(port, f"/{TOKEN}/{path}")
    assert status == 404 and b"secret" not in body


def test_what_the_page_asks_for(port: int) -> None:
    told = event(port)
    assert [(one["name"], one["state"]) for one in told["runs"]] == [("a", "finished"), ("b", "finished")]
    assert told["details"]["id"] == 0 and ["objective", "prdp"] in told["details"]["facts"]
    found = json.loads(ask(port, f"/{TOKEN}/charts?runs=0,1&more=1")[2])
    assert found["epochs"] == [0, 10, 20] and found["differences"] == [["epochs", "20", "4"]]
    assert found["training"][0]["svg"].startswith("<svg ")
    card = json.loads(ask(port, f"/{TOKEN}/pictures?runs=0&epoch=10")[2])["cards"][0]
    status, headers, body = ask(port, f"/{TOKEN}/{card['rows'][0][1]['picture']}")
    assert (status, headers["content-type"]) == (200, "image/png") and body.startswith(b"\x89PNG")
    assert json.loads(ask(port, f"/{TOKEN}/prompts?run=0&epoch=20")[2])["lists"][0]["title"] == "Lowest scores"
    assert json.loads(ask(port, f"/{TOKEN}/charts?runs=1&wide=1")[2])["heldout"] == []


def test_the_command_prints_an_address_that_works_and_ends_on_an_interrupt(tmp_path: Path) -> None:
    make_run(tmp_path / "run", epochs=2, evaluations=[])
    command = [sys.executable, "-m", "prdp", "watch", str(tmp_path / "run"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        port, token = line.removeprefix("prdp watch: http://127.0.0.1:").strip().strip("/").split("/")
        assert len(token) >= 32 and ask(int(port), f"/{token}/")[0] == 200
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stdout.read(), process.stderr.read()) == (0, "", "")


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "nowhere")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--every", "0"]) == 2
    assert main(["watch", str(tmp_path), "--host", "192.0.2.1", "--port", "0"]) == 2
    assert "--host 192.0.2.1 --port 0: cannot listen there" in capsys.readouterr().err
    with listening_socket("127.0.0.1", 0) as taken, pytest.raises(StartError, match="cannot listen there"):
        listening_socket("127.0.0.1", taken.getsockname()[1])
    for short in ("short", "a" * 20 + "/"):
        with pytest.raises(ConfigError, match="PRDP_WATCH_TOKEN"):
            chosen_token(short)
    assert len(chosen_token("")) >= 32 and chosen_token("a" * 16) == "a" * 16


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(StartError, match=r"pip install 'prdp\[watch\]'"):
        from prdp.commands import watch

        watch.main([str(tmp_path)])
