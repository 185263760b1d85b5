"""The command line: dispatch, exit codes, and whole runs with a stand-in for training."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from prdp.cli import COMMANDS, main
from prdp.config import TrainConfig
from prdp.diffusion import model_folder as models
from prdp.rewards.scoring import RewardUnavailableError
from prdp.support.errors import StartError, UnfinishedError, start_up_checks

ROOT = Path(__file__).parent.parent
Train = Callable[[TrainConfig], object]


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; the embedded model is a whole, empty one."""
    monkeypatch.setitem(models.EMBEDDED_FOLDERS, "shapes", model_folder)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Train], None]:
    """Puts a function in the place of `prdp.train.main`."""

    def put(function: Train) -> None:
        module = types.ModuleType("prdp.train")
        module.main = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "prdp.train", module)

    return put


@pytest.fixture
def runs(install: Callable[[Train], None]) -> list[TrainConfig]:
    """The configurations that training was called with."""
    seen: list[TrainConfig] = []
    install(seen.append)
    return seen


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in shown
        assert line in shown
    assert main([]) == 2
    assert main(["--version"]) == 0


def test_help_and_composition_leave_the_heavy_libraries_alone() -> None:
    script = (
        "import sys; from prdp.cli import main; main(['--help']); import prdp.config\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 'wandb'}\n"
        "assert not (heavy | {'numpy', 'hydra', 'omegaconf'}) & set(sys.modules), 'by help or the schema'\n"
        "from prdp.configuration.compose import Composer\n"
        "with Composer(['experiment=shapes_demo']) as composer: composer.jobs()\n"
        "assert not heavy & set(sys.modules), 'by composition'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_train_help_lists_experiments_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in ("OVERRIDES", "shapes_demo", "paper_large_scale", "reward ", "redness", "-m"):
        assert text in shown


def test_train_runs_the_composed_configuration(
    here: Path, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "experiment=shapes_smoke", "learner.learning_rate=2e-3", "seed=5"]) == 0
    [config] = runs
    assert isinstance(config, TrainConfig)
    assert (config.epochs, config.learner.learning_rate, config.seed) == (2, 2e-3, 5)
    folder = Path(config.output_dir)
    assert folder.is_relative_to(here / "runs" / "shapes_smoke")
    assert Path.cwd() == here
    assert list(folder.iterdir()) == []
    shown = capsys.readouterr().out
    assert "4 = 2 prompts x 2 images" in shown
    assert str(folder) in shown


def test_output_dir_is_the_only_folder(here: Path, runs: list[TrainConfig]) -> None:
    assert main(["train", "experiment=shapes_smoke", "output_dir=mine"]) == 0
    assert runs[0].output_dir == str(here / "mine")
    assert list((here / "mine").iterdir()) == []
    assert not (here / "runs").exists()


def test_sweep_runs_every_combination(here: Path, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "-m", "experiment=shapes_smoke", "reward=shapes_judge,redness", "prompts=shapes,shapes_small"]
    assert main(words) == 0
    seen = [(config.reward["_target_"].rpartition(".")[2], config.prompts.train["size"]) for config in runs]
    assert seen == [("ShapesJudge", 100_000), ("ShapesJudge", 45), ("Redness", 100_000), ("Redness", 45)]
    folders = [Path(config.output_dir) for config in runs]
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    assert all(list(folder.iterdir()) == [] for folder in folders)
    assert "job 3 of 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "learner.learning_rat=1"], "'learner.learning_rate'"),
        (["train", "experiment=shapes_dmo"], "'shapes_demo'"),
        (["train", "images_per_prompt=1"], "make no pair"),
        (["train", "reward.colour=blue"], "takes no argument 'colour'"),
        (["train", "reward=callable"], "reward.path"),
        (["train", "reward=redness", "reward._target_=prdp.rewards.redness.Rednes"], "'Redness'"),
        (["train", "prompts.train.split=trian"], "prompts.train: split"),
        (["train", "prompts=text_file", "prompts.train.path=no.txt", "prompts.heldout.path=no.txt"], "no.txt"),
        (["train", "model.path=/no/such/model"], "there is no folder /no/such/model"),
        (["train", "checkpoint.resume=/no/such/run"], "/no/such/run"),
        (["train", "-m", "seed=0,1", "epochs=1,-1"], "epochs=-1"),
        (["validate", "-m", "seed=0,1", "reward.colour=blue"], "job 1 (seed=0"),
        (["train", "--config-dir", "nowhere"], "nowhere"),
        (["report", "no-such-run"], "no-such-run"),
    ],
)
def test_mistakes_of_the_user_exit_with_2_and_a_message(
    here: Path, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"prdp {words[0]}: ")
    assert says in message
    assert "Traceback" not in message
    assert not runs
    assert list(here.iterdir()) == []


def test_prompt_file_without_prompts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "none.txt").write_text("\n\n")
    words = ["validate", "prompts=text_file", "prompts.train.path=none.txt", "prompts.heldout.path=none.txt"]
    assert main(words) == 2
    assert "prompts.train: " in capsys.readouterr().err


def test_folder_of_another_run_is_refused(
    here: Path, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    words = ["train", "experiment=shapes_smoke", "output_dir=mine"]
    assert main(words) == 2
    assert "checkpoint.resume=auto" in capsys.readouterr().err
    assert main([*words, "checkpoint.resume=auto"]) == 0
    assert len(runs) == 1


def test_mistake_found_while_starting(
    here: Path, install: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def start(config: TrainConfig) -> None:
        with start_up_checks():
            raise FileNotFoundError("no scorer weights in the usual place")

    install(start)
    assert main(["train", "experiment=shapes_smoke"]) == 2
    assert capsys.readouterr().err == "prdp train: no scorer weights in the usual place\n"


def test_what_may_pass_is_told_with_its_notes_and_nothing_else(
    here: Path, install: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def start(config: TrainConfig) -> None:
        error = RewardUnavailableError("reward 'far' raised ConnectionError: away")
        error.add_note("3 finished epochs are kept")
        raise error

    install(start)
    assert main(["train", "experiment=shapes_smoke"]) == 75
    told = "prdp train: reward 'far' raised ConnectionError: away\n3 finished epochs are kept\n"
    assert capsys.readouterr().err == told


def test_fault_keeps_its_traceback(here: Path, install: Callable[[Train], None]) -> None:
    def fail(config: TrainConfig) -> None:
        raise ValueError("arrays do not match")

    install(fail)
    with pytest.raises(ValueError, match="arrays do not match") as caught:
        main(["train", "experiment=shapes_smoke"])
    assert any(entry.name == "fail" for entry in caught.traceback)


def test_interruption(here: Path, install: Callable[[Train], None], capsys: pytest.CaptureFixture[str]) -> None:
    def stop(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    install(stop)
    assert main(["train", "experiment=shapes_smoke"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_sweep_goes_on_after_a_failed_job(
    here: Path, install: Callable[[Train], None], capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def some(config: TrainConfig) -> None:
        if config.seed == 0:
            raise StartError("seed 0 is unlucky")
        done.append(config.seed)

    install(some)
    assert main(["train", "-m", "experiment=shapes_smoke", "seed=0,1"]) == 2
    assert done == [1]
    assert "job 1 failed: seed 0 is unlucky" in capsys.readouterr().err


def test_work_that_calls_sys_exit_is_not_done(
    here: Path, install: Callable[[Train], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a run, not in a job of a sweep, and not in another command."""
    done = []

    def leaves(config: TrainConfig) -> None:
        if config.seed:
            done.append(config.seed)
            return
        error = SystemExit(0)
        error.add_note("3 finished epochs are kept")
        raise error

    install(leaves)
    for words in (["experiment=shapes_smoke"], ["-m", "experiment=shapes_smoke", "seed=0,1"]):
        with pytest.raises(UnfinishedError, match=r"sys\.exit\(0\) was called before the run was finished") as caught:
            main(["train", *words])
        assert caught.value.__notes__ == ["3 finished epochs are kept"]
    assert done == [1]

    def silently(_: Sequence[str]) -> None:
        raise SystemExit

    monkeypatch.setattr("prdp.commands.evaluate.main", silently)
    with pytest.raises(UnfinishedError, match=r"prdp evaluate: sys\.exit\(None\) was called"):
        main(["evaluate"])


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("words", [["train", "--help"], ["status", "--no-such-option"]])
def test_the_parser_may_exit(words: list[str], hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if hooked:  # as wandb does
        real = sys.exit
        monkeypatch.setattr(sys, "exit", lambda code: real(code))
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == (0 if "--help" in words else 2)


def test_validate_runs_nothing(here: Path, runs: list[TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "experiment=shapes_smoke", "--print"]) == 0
    shown = capsys.readouterr().out
    assert "images_per_prompt: 2" in shown
    assert "4 = 2 prompts x 2 images" in shown
    assert shown.endswith("ok\n")
    assert not runs
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("experiment", ["shapes_demo", "shapes_long", "shapes_smoke"])
def test_shapes_experiments_validate(here: Path, experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", f"experiment={experiment}"]) == 0


def test_program_exits_with_the_code() -> None:
    done = subprocess.run([sys.executable, "-m", "prdp", "trian"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
