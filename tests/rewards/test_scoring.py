"""What a reward gets and may do to it, what becomes of its errors, and which names it may give."""

from __future__ import annotations

import asyncio
import http.client
import pickle
import re
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from http_rewards import batch, serving

from prdp.cluster.base import RewardWorker
from prdp.rewards import build_reward
from prdp.rewards.base import checked_scores
from prdp.rewards.names import LONGEST, MOST, RESERVED
from prdp.rewards.remote import RemoteReward
from prdp.rewards.scoring import RewardFaultError, RewardUnavailableError, may_pass, scored
from prdp.support.errors import ConfigError, ResumableError, StartError, UserError, start_up_checks
from prdp.support.interruption import TerminatedError
from prdp.types import UInt8

CALLABLE = "prdp.rewards.python_callable.PythonCallable"
SUM = "prdp.rewards.weighted_sum.WeightedSum"
MODULE = """\
import os, sys
import numpy as np

TABLE = {"cat": 1.0}

def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3)) + [len(prompt) for prompt in prompts] + [one["seen"][0] for one in metadata]

def writing(images, prompts, metadata):
    images[...] = 0
    return images.mean((1, 2, 3))

def going_round(images, prompts, metadata):
    import torch
    torch.from_numpy(images).zero_()
    prompts[:] = ["changed"] * len(prompts)
    for one in metadata:
        one["seen"].append(1)
        one["seen"][0] = 7
        one.clear()
    return np.zeros(len(images))

def unknown(images, prompts, metadata):
    return [look_up(prompt) for prompt in prompts]

def look_up(prompt):
    return TABLE[prompt]

def shapes(images, prompts, metadata):
    return np.stack([images[0], images[0, :2]])

def leaving(images, prompts, metadata):
    sys.exit(0)

class Leaving:
    name, version = "leaving", "1"
    def __init__(self):
        sys.exit(3)

class Broken:
    name, version = "broken", "1"
    def __init__(self):
        self.table = {}["weights"]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """The section of a reward that calls a function of the module above."""
    (tmp_path / "functions_to_score_by.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("functions_to_score_by", None)

    def section(function: str) -> dict[str, Any]:
        return {"_target_": CALLABLE, "path": f"functions_to_score_by.{function}"}

    return section


class Answering:
    """A reward that answers what it was made with, or raises it."""

    name, version = "answering", "1"

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, 0

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def ask(reward: Any, count: int = 2) -> Any:
    return RewardWorker(reward, retries=2, pause_seconds=0.0).score(
        np.ones((count, 4, 4, 3), np.uint8), ["cat"] * count, [{}] * count, "epoch 1, prompts 0 to 1"
    )


WRITES = "writes into its images, which are read-only: copy them first"


def test_a_reward_that_writes_into_its_images_is_told_so_wherever_it_runs(module: Callable[[str], Any]) -> None:
    with pytest.raises(RewardFaultError, match=rf"^reward 'writing' \(epoch 1, prompts 0 to 1\) {WRITES}") as caught:
        ask(module("writing"))
    assert 'functions_to_score_by.py", line 10, in writing\n    images[...] = 0' in str(caught.value)
    terms = {"red": {"weight": 1, "reward": {"_target_": "prdp.rewards.redness.Redness"}}}
    terms["black"] = {"watch": True, "reward": module("writing")}
    with pytest.raises(RewardFaultError, match=rf"^reward 'weighted_sum' \(epoch .*\): term 'black' {WRITES}"):
        ask({"_target_": SUM, "terms": terms})
    images, prompts, metadata = batch(2)
    with serving(build_reward(module("writing"))) as server, pytest.raises(ValueError, match=f"'writing' {WRITES}"):
        RemoteReward(server.url).score(images, prompts, metadata)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_what_a_reward_does_to_its_arguments_reaches_nobody_else(module: Callable[[str], Any]) -> None:
    """Also past numpy, where nothing is refused."""
    images, prompts, _ = batch(3)
    metadata = [{"seen": [bonus]} for bonus in (0, 1, 2)]
    kept = images.copy()
    expected = build_reward(module("brightness")).score(images, prompts, metadata)
    terms = {
        "round": {"watch": True, "reward": module("going_round")},
        "bright": {"weight": 2.0, "reward": module("brightness")},
    }
    for section in (module("going_round"), {"_target_": SUM, "terms": terms}):
        total, _ = RewardWorker(section).score(images, prompts, metadata, "here")
    np.testing.assert_array_equal(total, 2 * expected)
    np.testing.assert_array_equal(images, kept)
    assert prompts == batch(3)[1]
    assert metadata == [{"seen": [bonus]} for bonus in (0, 1, 2)]


def test_the_authors_own_lines_come_first_and_a_fault_is_not_asked_again(module: Callable[[str], Any]) -> None:
    reward = build_reward(module("unknown"))
    with pytest.raises(RewardFaultError) as caught:
        scored(reward, np.ones((1, 4, 4, 3), np.uint8), ["dog"], [{}], "epoch 1")
    lines = str(caught.value).splitlines()
    assert lines[0] == "reward 'unknown' (epoch 1) raised KeyError: 'dog'"
    places = [line.partition(".py")[2] for line in lines if "functions_to_score_by.py" in line]
    assert [places[0], places[-1]] == ['", line 24, in unknown', '", line 27, in look_up']
    assert "    return TABLE[prompt]" in lines
    assert isinstance(caught.value, UserError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(RewardFaultError, match=r"(?s)raised ValueError.*line 30, in shapes.*\n  raised in .*numpy"):
        ask(module("shapes"))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("category"), TypeError("t"), AttributeError("a"), IndexError("i"), ValueError("v"), NameError("n"),
        ZeroDivisionError("z"), AssertionError("b"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        NotImplementedError("x"), ImportError("m"), FileNotFoundError("f"), PermissionError("p"), Exception("e"),
        RuntimeError("CUDA error: device-side assert triggered"),
        urllib.error.HTTPError("http://judge", 404, "Not Found", http.client.HTTPMessage(), None),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}",
)  # fmt: skip
def test_faults_are_told_at_once(error: Exception) -> None:
    reward = Answering(error)
    with pytest.raises(RewardFaultError, match=rf"^reward 'answering' .* raised {type(error).__name__}: "):
        ask(reward)
    assert reward.asked == 1


class RateLimitError(Exception):
    """As clients of services have them."""


class StatusError(Exception):
    """As requests and httpx have them."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    "error",
    [
        OSError("o"), ConnectionResetError("c"), TimeoutError("t"), MemoryError("m"), RateLimitError("r"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), http.client.RemoteDisconnected("gone"),
        subprocess.TimeoutExpired("judge", 3.0), StatusError(503), StatusError(429),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}",
)  # fmt: skip
def test_what_may_pass_is_asked_again(error: Exception) -> None:
    reward = Answering(error)
    with pytest.raises(RewardUnavailableError, match=r"\(attempt 3 of 3\)\n  File ") as caught:
        ask(reward)
    assert reward.asked == 3
    assert isinstance(caught.value, ResumableError)
    assert not may_pass(StatusError(400))


@pytest.mark.parametrize("error", [asyncio.CancelledError("late"), GeneratorExit("late")])
def test_what_is_no_exception_is_an_error_of_the_reward_too(error: BaseException) -> None:
    with pytest.raises(RewardFaultError, match=rf"^reward '.*' .*raised {type(error).__name__}: late"):
        ask(Answering(error))
    for interruption in (KeyboardInterrupt(), TerminatedError()):
        with pytest.raises(type(interruption)):
            ask(Answering(interruption))


def test_sys_exit_is_an_error_of_the_reward(module: Callable[[str], Any]) -> None:
    with pytest.raises(RewardFaultError, match=r"^reward 'leaving' \(epoch .*\) calls sys\.exit\(0\), which would end"):
        ask(module("leaving"))
    with pytest.raises(RewardFaultError, match=r"^reward functions_to_score_by\.Leaving, being built, calls sys\.exit"):
        build_reward({"_target_": "functions_to_score_by.Leaving"})
    images, prompts, metadata = batch(2)
    with serving(build_reward(module("leaving"))) as server, pytest.raises(ValueError, match=r"500: .*sys\.exit\(0\)"):
        RemoteReward(server.url).score(images, prompts, metadata)


def test_errors_of_building_and_importing_name_the_authors_line(
    module: Callable[[str], Any], tmp_path: Path
) -> None:
    with pytest.raises(RewardFaultError, match=r"being built, raised KeyError: 'weights'\n.* in __init__\n"):
        build_reward({"_target_": "functions_to_score_by.Broken"})
    for name, text, message in (
        ("importing_exits", "import sys\nsys.exit(0)\n", r"importing \w+ calls sys\.exit\(0\)\n.*, line 2"),
        ("importing_fails", "x = 1\ny = z\n", r"raises NameError: name 'z' is not defined\n.*, line 2.*\n    y = z"),
        ("importing_stops", "def f(:\n", r"raises SyntaxError: .*importing_stops\.py, line 1"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(ConfigError, match=message):
            build_reward({"_target_": CALLABLE, "path": f"{name}.reward"})


class MuteError(RuntimeError):
    def __str__(self) -> str:
        raise KeyError("detail")


def test_an_error_that_cannot_tell_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "MuteError: <exception str() failed>"
    with pytest.raises(RewardFaultError, match=rf"^reward 'answering' \(epoch .*\) raised {re.escape(text)}\n  File "):
        ask(Answering(MuteError()))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "class MuteError({base}):\n    def __str__(self):\n        raise KeyError\nraise MuteError\n"
    for base in ("ImportError", "ValueError"):
        (tmp_path / f"mute_{base}.py").write_text(source.format(base=base))
        with pytest.raises(ConfigError, match=re.escape("<exception str() failed>")):
            build_reward({"_target_": CALLABLE, "path": f"mute_{base}.reward"})
    mute = type("MuteError", (ValueError,), {"__str__": MuteError.__str__})
    with pytest.raises(StartError, match=r"^key: <exception str"), start_up_checks("key"):
        raise mute


def test_the_server_asks_to_come_back_for_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prdp.support.http_client.time.sleep", lambda seconds: None)
    images, prompts, metadata = batch(2)
    reward = Answering(ConnectionError("the judge is away"))
    with serving(reward) as server:
        client = RemoteReward(server.url, retries=1, backoff_seconds=0.0)
        with pytest.raises(RewardUnavailableError, match=r"HTTP 503: .*the judge is away"):
            scored(client, images, prompts, metadata)
    assert reward.asked == 2


def torch_scores(**options: Any) -> Any:
    import torch

    return torch.ones(2, **options)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: None, "returned None, expected an array of 2 numbers"),
        (lambda: torch_scores(requires_grad=True), r"requires grad, .*torch\.no_grad\(\)"),
        (lambda: [torch_scores(requires_grad=True)[0]] * 2, r"reward 'answering' .* requires grad, .*detach\(\)"),
        (lambda: "0.5", "holds texts"),
        (lambda: ["0.5", "0.7"], "holds texts"),
        (lambda: True, r"has shape \(\), expected \(2,\)"),
        (lambda: np.array([1j, 2.0]), "holds complex numbers"),
        (lambda: [0.5, None], "holds entries such as None"),
        (lambda: [0.5, "0.7"], "holds"),
        (lambda: {"score": 1.0}, "holds entries such as {'score': 1.0}"),
        (lambda: np.ones((2, 1)), r"has shape \(2, 1\), expected \(2,\)"),
        (lambda: [[1.0], [1.0, 2.0]], "is not an array of numbers"),
        (lambda: 0.5, r"has shape \(\), expected \(2,\)"),
        (lambda: np.ones(3), r"has shape \(3,\)"),
        (lambda: [np.nan, 1.0], "returned nan for image 0 of 2"),
        (lambda: ([1.0, 1.0], {"part": None}), "^sub-score 'part' of reward 'answering' .*returned None"),
    ],
)
def test_answers_that_are_no_scores_name_the_reward(answer: Callable[[], Any], message: str) -> None:
    with pytest.raises(RewardFaultError, match=message) as caught:
        ask(Answering(answer()))
    assert "reward 'answering' (epoch 1, prompts 0 to 1)" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: torch_scores(),
        lambda: list(torch_scores()),
        lambda: [1, 1],
        lambda: [True, True],
        lambda: np.ones(2, np.float16),
    ],
)
def test_any_array_of_numbers_is_taken(answer: Callable[[], Any]) -> None:
    total, _ = ask(Answering(answer()))
    assert (total.dtype, total.tolist()) == (np.float64, [1.0, 1.0])


BAD_NAMES = [*sorted(RESERVED), "Mean", "group-std", " score ", "", "a/b", "/a", "a\x1b[31m", "a\nb", 3, "x" * 201]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_names_that_are_taken_or_unfit_are_refused_by_name_on_every_route(name: Any) -> None:
    answering = Answering((np.zeros(2), {name: np.zeros(2)}))
    with pytest.raises(RewardFaultError, match=r"reward 'answering' .*gives a sub-score "):
        ask(answering)
    with serving(answering) as server, pytest.raises(ValueError, match="reward 'answering' gives a sub-score "):
        RemoteReward(server.url).score(*batch(2))
    if not isinstance(name, str):
        return
    with pytest.raises(ValueError, match="a term is named by"):
        build_reward({"_target_": SUM, "terms": {name: {"watch": True, "reward": {"_target_": "builtins.dict"}}}})
    term = {"weight": 1.0, "reward": {"_target_": f"{__name__}.Naming", "part": name}}
    with pytest.raises(RewardFaultError, match="term 'a' gives a sub-score "):
        ask({"_target_": SUM, "terms": {"a": term}})


class Naming(Answering):
    """Gives a sub-score of that name."""

    def __init__(self, part: str) -> None:
        super().__init__((np.zeros(2), {part: np.zeros(2)}))


def test_paths_are_for_rewards_made_of_others() -> None:
    parts = {name: np.zeros(2) for name in ("a", "a/mean", "watch/b", "watch/b/half", "a/watch/c")}
    assert list(checked_scores("r", (np.zeros(2), parts), 2, composite=True)[1]) == list(parts)
    for name in ("a//b", "/a", "a/", "mean/a", "watch/mean", "watch/", "watch"):
        with pytest.raises(ValueError, match="gives a sub-score"):
            checked_scores("r", (np.zeros(2), {name: np.zeros(2)}), 2, composite=True)
    with pytest.raises(ValueError, match="'a' as well as one that is only watched"):
        checked_scores("r", (np.zeros(2), {"a": np.zeros(2), "watch/a": np.zeros(2)}), 2, composite=True)


def test_sub_scores_are_so_many_and_no_more() -> None:
    parts = {f"{i}".rjust(LONGEST, "x"): np.zeros(2) for i in range(MOST)}
    assert len(checked_scores("r", (np.zeros(2), parts), 2)[1]) == MOST
    with pytest.raises(ValueError, match="r gives 257 sub-scores, at most 256 are logged"):
        checked_scores("r", (np.zeros(2), {**parts, "one more": np.zeros(2)}), 2)
