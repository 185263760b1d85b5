"""`prdp reward-server`: what it serves, and what it refuses to serve or to listen on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prdp.cli import main
from prdp.rewards.base import identity_of
from prdp.rewards.redness import Redness
from prdp.rewards.remote import RemoteReward

ROOT = Path(__file__).parents[2]


def test_serves_a_reward_until_it_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDP_REWARD_TOKEN", "a-secret-of-the-tests")
    words = ["reward=watched_redness", "~reward.terms.shapes_judge", "reward.terms.redness.watch=false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prdp", "reward-server", *words, "reward.terms.redness.weight=2", "port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("'weighted_sum' version '2*redness(1)' at http://127.0.0.1:"), process.communicate()
        assert line.endswith(", which asks for a token\n")
        client = RemoteReward(line.split(" at ")[1].split(",")[0])
        assert identity_of(client)["terms"]["redness"]["version"] == "1"
        images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
        rewards, _ = client.score(images, ["a"] * 3, [{}] * 3)
        np.testing.assert_array_equal(rewards, 2 * Redness().score(images, ["a"] * 3, [{}] * 3))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert '"POST /score HTTP/1.1" 200' in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["port=0"], "reward=<option> is missing"),
        (["reward=rednes"], "'redness'"),
        (["reward=redness", "prot=1"], "unknown key 'prot'. Did you mean 'port'?"),
        (["reward=redness", "seed=1"], "unknown key 'seed'; it takes reward, host, port"),
        (["reward=redness", "port=x"], "port=x: must be an integer"),
        (["reward=redness", "port=70000"], "port=70000: must be from 0 to 65535"),
        (["reward=redness", "max_images=0"], "max_images=0: must be at least 1"),
        (["reward=redness", "reward.colour=blue"], "reward.colour=blue: Redness takes no argument 'colour'"),
        (["reward=callable", "reward.path=no_such_module.f"], "there is no module 'no_such_module'"),
        (["reward=redness", "host=0.0.0.0"], "set the environment variable PRDP_REWARD_TOKEN"),
        (["reward=redness", "host="], "set the environment variable PRDP_REWARD_TOKEN"),
        (["reward=redness", "host=no.such.host.invalid"], "host=no.such.host.invalid: no such address"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRDP_REWARD_TOKEN", raising=False)
    assert main(["reward-server", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["reward-server", "reward=redness", f"port={port}"]) == 2
    assert f"host=127.0.0.1 port={port}: cannot listen there" in capsys.readouterr().err
