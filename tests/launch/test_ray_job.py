"""`launch/ray_job.sh` against a real Ray on loopback: the run folder is whole, and no secret is left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prdp.tracking.jsonl import read_metrics
from prdp.tracking.status_file import read_status

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECRETS = {"WANDB_API_KEY": "geheim-wandb", "HF_TOKEN": "geheim-hf", "AWS_SECRET_ACCESS_KEY": "geheim-aws"}
START_ATTEMPTS = 3  # Ray gives a node 30 s to start, which may be too short on a machine with other work
START_SECONDS = 120.0
JOB_SECONDS = 600.0
"""Against hanging; a machine with nothing else to do needs a tenth."""

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("ray", "aiohttp")) or not (BIN / "ray").exists(),
        reason="needs ray[default]: pip install 'prdp[dashboard]'",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="a script for bash"),
]


@dataclass(frozen=True)
class Head:
    """A head at work: the address of its dashboard, the environment of its users, and where it keeps its files."""

    address: str
    environment: dict[str, str]
    token: str
    folder: Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def answer(url: str, token: str | None) -> int:
    """The status of a GET; 0 when nothing answers."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def head() -> Iterator[Head]:
    """Started as docs/cluster.md says, with ports and files of its own and secrets in its environment."""
    folder = Path(tempfile.mkdtemp(prefix="prdp-"))  # Ray's sockets need a short path
    token = secrets.token_hex(32)
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(token)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A raylet whose agents take longer than this to start ends itself: 30 s are too few on a busy machine.
        "RAY_agent_register_timeout_ms": "300000",
    }
    process = None
    try:
        for _ in range(START_ATTEMPTS):
            port, dashboard, agent, client = free_ports(4)
            command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
            command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2"]
            command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
            command += [f"--temp-dir={folder}/ray", "--object-store-memory=134217728"]
            with (folder / "head.log").open("a") as log:
                process = subprocess.Popen(
                    command,
                    env={**environment, **SECRETS},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            # Jobs are handed to the node's agent, which comes up after the dashboard.
            wanted = [f"http://127.0.0.1:{dashboard}/api/version", f"http://127.0.0.1:{agent}/api/local_raylet_healthz"]
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if all(answer(url, token) == 200 for url in wanted):
                    yield Head(f"http://127.0.0.1:{dashboard}", environment, token, folder)
                    return
                time.sleep(0.2)
            end(process)
        pytest.fail(f"no head in {START_ATTEMPTS} attempts:\n" + (folder / "head.log").read_text())
    finally:
        if process is not None:
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a head with all that it has started."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_job_runs_on_a_local_head_and_leaves_no_secret(head: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--address", head.address, "--python", sys.executable, "--attempts", "3", "--output-dir", str(run)]
    words += ["experiment=mixtures_small", "cluster.samplers=1", "epochs=1", "prompts_per_epoch=2", "sampler.steps=2"]
    words += ["images_per_prompt=2", "evaluation.final_prompts=2", "evaluation.images_per_prompt=1"]
    finished = subprocess.run(
        ["bash", str(ROOT / "launch" / "ray_job.sh"), *words],
        env={**head.environment, **SECRETS},
        capture_output=True,
        text=True,
        timeout=JOB_SECONDS,
    )
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, said + (head.folder / "head.log").read_text()
    assert "succeeded" in said
    assert [row["epoch"] for row in read_metrics(run)] == [0, 1]
    status = read_status(run)
    assert status["status"] == "finished"
    assert {actor["kind"] for actor in status["cluster"]["actors"]} == {"sampler", "reward actor"}
    for name in ("checkpoints/epoch_00001/state.json", "weights", "report.html", "config.yaml", "prompts.jsonl"):
        assert (run / name).exists(), name

    jobs = f"{head.address}/api/jobs/"
    assert answer(jobs, None) in (401, 403)
    assert answer(jobs, "0" * 64) in (401, 403)
    request = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {head.token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        shown = response.read()
    hidden = [value.encode() for value in (*SECRETS.values(), head.token)]
    for secret in hidden:
        assert secret not in shown + said.encode()
    logs = [path for path in (head.folder / "ray").rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in logs)
    for file in [*logs, *(path for path in run.rglob("*") if path.is_file())]:
        content = file.read_bytes()
        assert not any(secret in content for secret in hidden), file
