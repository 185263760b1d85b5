"""The supervisor: what it starts again and what not, how long it is patient, and that signals reach the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.cli import main
from prdp.commands.supervise import LOG_FILE, Patience, Supervisor, finished_epochs, own_command, settled
from prdp.configuration.compose import Composer
from prdp.support.errors import ConfigError
from prdp.tracking.status_file import start_status

CHILD = """\
import os, signal, sys
from pathlib import Path
starts, endings = Path(sys.argv[1]) / "starts", sys.argv[2].split(",")
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
ending = endings[min(number, len(endings) - 1)]
if ending.startswith("epoch"):
    (starts.parent / "checkpoints" / f"epoch_{number + 1:05d}").mkdir(parents=True)
    ending = ending.removeprefix("epoch")
if ending.startswith("worked"):
    (starts.parent / "status.json").write_text(f'{{"status": "failed", "pid": {os.getpid()}}}')
    ending = ending.removeprefix("worked")
if ending.startswith("done"):
    (starts.parent / "status.json").write_text(f'{{"status": "finished", "pid": {os.getpid()}}}')
    ending = ending.removeprefix("done")
if ending.startswith("running"):
    (starts.parent / "status.json").write_text(f'{{"status": "running", "pid": {os.getpid()}}}')
    ending = ending.removeprefix("running")
if ending.startswith("-"):
    if ending != "-9":
        signal.signal(-int(ending), signal.SIG_DFL)
    os.kill(os.getpid(), -int(ending))
sys.exit(int(ending))
"""
AT_ONCE = Patience(failures=4, first_pause=0.0)


@pytest.fixture
def supervised(tmp_path: Path) -> Callable[[str], tuple[int, int, str]]:
    """Supervises a child with the given endings; exit code, number of starts, the log."""

    def run(endings: str) -> tuple[int, int, str]:
        child = [sys.executable, "-S", "-E", "-c", CHILD, str(tmp_path), endings]
        code = Supervisor(child, tmp_path, AT_ONCE).run()
        log = tmp_path / LOG_FILE
        return code, len((tmp_path / "starts").read_text()), log.read_text() if log.exists() else ""

    return run


@pytest.mark.parametrize("ending", ["-9", "-15", "-11", "143", "75"])
def test_what_can_be_mended_is_started_again(supervised: Callable[[str], tuple[int, int, str]], ending: str) -> None:
    code, starts, log = supervised(f"{ending},{ending},done0")
    assert (code, starts) == (0, 3)
    assert "failure 1 of 4" in log and "failure 2 of 4" in log
    names = {"-9": "SIGKILL (out of memory?)", "-15": "SIGTERM", "-11": "SIGSEGV"}
    assert names.get(ending, ending) in log


@pytest.mark.parametrize(("ending", "expected"), [("done0", 0), ("1", 1), ("2", 2), ("130", 130), ("-2", 130)])
def test_what_cannot_is_not(supervised: Callable[[str], tuple[int, int, str]], ending: str, expected: int) -> None:
    code, starts, log = supervised(ending)
    assert (code, starts) == (expected, 1)
    assert ("not started again" in log) == (expected != 0)


@pytest.mark.parametrize(("status", "starts"), [("running", 2), ("failed", 1)])
def test_a_child_that_ended_without_a_word_is_started_again(tmp_path: Path, status: str, starts: int) -> None:
    """Exit code 1, but the status says that the process is at work: as when Ray ends a driver whose node is gone."""
    child = (
        "import json, os, sys; from pathlib import Path\n"
        "here = Path(sys.argv[1]); again = (here / 'starts').exists()\n"
        "(here / 'starts').open('a').write('x')\n"
        "status = 'finished' if again else sys.argv[2]\n"
        "(here / 'status.json').write_text(json.dumps({'status': status, 'pid': os.getpid()}))\n"
        "sys.exit(0 if again else 1)"
    )
    code = Supervisor([sys.executable, "-S", "-E", "-c", child, str(tmp_path), status], tmp_path, AT_ONCE).run()
    assert (code, len((tmp_path / "starts").read_text())) == (2 - starts, starts)


@pytest.mark.parametrize(
    ("endings", "expected", "starts"),
    [("worked-9,2,2,done0", 0, 4), ("-9,2,0", 2, 2), ("worked-9,worked2,0", 2, 2), ("worked75,2,2,2,0", 1, 4)],
)
def test_a_refused_start_is_tried_again_once_one_has_worked(
    supervised: Callable[[str], tuple[int, int, str]], endings: str, expected: int, starts: int
) -> None:
    """The same command cannot have become a mistake: its cluster's head is being restarted, for instance."""
    assert supervised(endings)[:2] == (expected, starts)


@pytest.mark.parametrize(
    ("endings", "starts", "said"),
    [
        ("running0", 4, "ended without a word"),
        ("worked0", 1, "exit code 0 although the run is not finished, its status is failed: not started again"),
        ("0", 1, "exit code 0 although the run is not finished, its status is missing: not started again"),
    ],
)
def test_exit_0_of_an_unfinished_run_is_no_success(
    supervised: Callable[[str], tuple[int, int, str]], endings: str, starts: int, said: str
) -> None:
    """As when a scorer calls `os._exit(0)`."""
    code, begun, log = supervised(endings)
    assert (code, begun) == (1, starts)
    assert said in log


def test_exit_0_after_an_earlier_start_that_finished_is_no_success(
    supervised: Callable[[str], tuple[int, int, str]], tmp_path: Path
) -> None:
    """As when a run is made longer, and something in its start replaces the process by `os.execv`."""
    start_status(tmp_path, status="finished")
    code, begun, log = supervised("0")
    assert (code, begun) == (1, 1)
    assert "its status is finished, by an earlier start: not started again" in log


def test_failures_in_a_row_end_it_with_the_last_cause(supervised: Callable[[str], tuple[int, int, str]]) -> None:
    code, starts, log = supervised("143,-11,-9,-9")
    assert (code, starts) == (1, 4)
    assert "killed by SIGKILL" in log.splitlines()[-1]
    assert "given up, 4 failures in a row without a newly finished epoch" in log.splitlines()[-1]


def test_a_new_epoch_restores_patience_and_an_old_one_does_not(
    supervised: Callable[[str], tuple[int, int, str]], tmp_path: Path
) -> None:
    code, starts, _ = supervised("epoch-9,-9,-9,epoch-9,-9,-9,epoch-9,done0")
    assert (code, starts) == (0, 8)
    start_status(tmp_path, epoch=5)
    assert finished_epochs(tmp_path) == 7
    start_status(tmp_path, epoch=12)
    assert finished_epochs(tmp_path) == 12


def test_pauses_double_up_to_the_longest() -> None:
    patience = Patience(first_pause=1.0, longest_pause=300.0)
    assert [patience.pause(n) for n in (1, 2, 3, 9, 10, 5000)] == [1.0, 2.0, 4.0, 256.0, 300.0, 300.0]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_and_end_it(tmp_path: Path, sent: signal.Signals) -> None:
    """The child says which signal it got, once, and exits as it likes."""
    child = (
        "import os, signal, sys\n"
        "signals = {signal.SIGTERM, signal.SIGINT}\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signals)\n"
        "os.write(1, b'ready\\n')\n"
        "os.write(1, f'got {signal.Signals(signal.sigwait(signals)).name}\\n'.encode())\n"
        "sys.exit(143)\n"
    )
    script = (
        "import signal, sys; from pathlib import Path; from prdp.commands.supervise import Patience, Supervisor\n"
        "for number in (signal.SIGHUP, signal.SIGINT):  # ignored where the tests run in the background\n"
        "    signal.signal(number, signal.SIG_DFL)\n"
        f"child = [sys.executable, '-S', '-E', '-c', {child!r}]\n"
        f"sys.exit(Supervisor(child, Path({str(tmp_path)!r}), Patience()).run())"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        supervisor.send_signal(sent)
        said = supervisor.stdout.read()
        assert supervisor.wait() == 143
    assert said == f"got {'SIGINT' if sent == signal.SIGINT else 'SIGTERM'}\n"
    assert not (tmp_path / LOG_FILE).exists()


def test_a_signal_during_a_pause_ends_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from prdp.commands.supervise import Patience, Supervisor\n"
        "child = [sys.executable, '-S', '-E', '-c', 'import os; os.abort()']\n"
        f"sys.exit(Supervisor(child, Path({str(tmp_path)!r}), Patience(first_pause=3000, longest_pause=3000)).run())"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stderr is not None
        assert "killed by SIGABRT after 0 finished epochs: starts again in 3000 s" in supervisor.stderr.readline()
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait() == 143


@pytest.mark.parametrize("name", ["plain", "with spaces, commas = and 'quotes'", "back\\slash\\'", "ends\\"])
def test_the_folder_is_settled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / name
    here.mkdir()
    monkeypatch.chdir(here)
    folder, words = settled(["train", "experiment=shapes_smoke", "epochs=3"])
    assert folder.is_relative_to(here / "runs" / "shapes_smoke")
    assert words[0] == "train" and words[-1] == "checkpoint.resume=auto"
    with Composer(words[1:]) as composer:
        config = composer.jobs()[0].config
    assert Path(config.output_dir) == folder
    assert (config.epochs, config.checkpoint.resume) == (3, "auto")


def test_a_folder_that_was_given_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, words = settled(["train", "output_dir=somewhere", "experiment=shapes_smoke"])
    assert folder == tmp_path / "somewhere"
    assert words == ["train", "experiment=shapes_smoke", f"output_dir={folder}", "checkpoint.resume=auto"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "supervises 'train', got nothing"),
        (["evaluate", "models=[a]"], "supervises 'train', got 'evaluate'"),
        (["train", "-m", "seed=1,2"], "a sweep is not supervised as a whole"),
        (["train", "seed=1,2"], "needs -m"),
        (["train", "experiment=shapes_smoke", "checkpoint.resume=never"], "checkpoint.resume: leave it out"),
        (["train", "experiment=shapes_smok"], "there is no such experiment"),
        (["train", "sed=1"], "Did you mean 'seed'?"),
    ],
)
def test_mistakes_are_named_before_anything_starts(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(words)
    assert message in str(caught.value)


def test_a_run_at_work_is_not_started_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_status(tmp_path, status="running")
    assert main(["supervise", "train", "experiment=shapes_smoke", f"output_dir={tmp_path}"]) == 2
    assert f"pid {os.getpid()} on" in capsys.readouterr().err
    assert main(["supervise", "--failures", "0", "train", "experiment=shapes_smoke"]) == 2
    assert "--failures 0: must be at least 1" in capsys.readouterr().err


def test_modules_of_the_current_folder_are_not_taken_for_others(tmp_path: Path) -> None:
    """Neither by the supervised process nor by `python -m prdp`, as they would by `python -m` alone."""
    for name in ("queue", "argparse", "random", "traceback", "hydra"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken over')")
    for command in (own_command(["--version"]), [sys.executable, "-m", "prdp", "validate", "--help"]):
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0 and "taken over" not in done.stderr, done.stderr


REWARD = """\
import os, signal
from pathlib import Path
calls = Path(__file__).with_name("calls")
def red(images, prompts, metadata):
    with calls.open("a") as file:
        file.write("x")
    if calls.stat().st_size in {deadly}:
        os.kill(os.getpid(), signal.SIGKILL)
    return images[..., 0].mean((1, 2)) / 255
"""


def test_a_run_that_is_killed_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the second epoch: the reward is called for two chunks at the first evaluation and in every epoch."""
    states = {}
    for name, deadly in (("killed", [6]), ("straight", [])):
        place = tmp_path / name
        place.mkdir()
        (place / "red_reward.py").write_text(REWARD.replace("{deadly}", repr(deadly)))
        words = ["experiment=mixtures_small", "reward=callable", "reward.path=red_reward.red", "~reward.kl_weight"]
        words += ["epochs=2", "prompts_per_epoch=2", "images_per_prompt=2", "sampler.steps=2"]
        words += ["sampler.prompts_per_chunk=1", "checkpoint.every=1"]
        words += ["evaluation.every=0", "evaluation.final_prompts=2", "tracking=silent", f"output_dir={place / 'run'}"]
        monkeypatch.chdir(place)
        if deadly:
            command = [sys.executable, "-m", "prdp", "supervise", "--first-pause", "0", "train", *words]
            done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "killed by SIGKILL (out of memory?) after 1 finished epochs: starts again in 0 s" in done.stderr
        else:
            assert main(["train", *words]) == 0
        states[name] = load_checkpoint(place / "run" / "checkpoints" / "epoch_00002").tensors
    assert states["killed"].keys() == states["straight"].keys()
    for key, value in states["straight"].items():
        np.testing.assert_array_equal(states["killed"][key], value, err_msg=key)
