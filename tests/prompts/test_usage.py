"""The log of prompts: what a sound run leaves, what a faulty one shows, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prdp.prompts.mixture import MixturePrompts
from prdp.prompts.stream import PromptStream
from prdp.prompts.usage import PromptLog, check_usage, read_prompt_log


class Numbers:
    """Prompts '0', '1', ..."""

    fingerprint = "numbers"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return str(index), {}


def run(folder: Path, epochs: range, resumed: int | None = None, size: int = 7) -> None:
    log = PromptLog(folder, Numbers(size), seed=1, shuffle=True, resumed_epoch=resumed)
    stream = PromptStream(Numbers(size), seed=1, cursor=4 * (epochs.start - 1))
    for epoch in epochs:
        log.write(epoch, stream.next(4, epoch - 1).indices)


def test_a_sound_run(tmp_path: Path) -> None:
    run(tmp_path, range(1, 6))
    usage = check_usage(tmp_path)
    assert (usage.epochs, usage.drawn, usage.rows, usage.whole_passes, usage.faults) == (5, 20, 7, 2, ())
    assert usage.counts.sum() == 20
    assert set(usage.counts.tolist()) == {2, 3}
    source, _ = read_prompt_log(tmp_path)
    assert source == {
        "rows": 7,
        "pass_length": 7,
        "every_prompt_once": True,
        "fingerprint": "numbers",
        "seed": 1,
        "shuffle": True,
    }


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, range(1, 6))
    whole = read_prompt_log(tmp_path)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"epoch": 6, "ind')
    run(tmp_path, range(3, 6), resumed=2)
    assert read_prompt_log(tmp_path) == whole
    run(tmp_path, range(1, 2))
    assert len(read_prompt_log(tmp_path)[1]) == 1


def written(folder: Path, *epochs: list[int], rows: int = 4) -> Path:
    lines: list[Any] = [{"rows": rows, "pass_length": rows, "every_prompt_once": True}]
    lines += [{"epoch": number, "indices": indices} for number, indices in enumerate(epochs, start=1)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_faults_are_named_by_pass(tmp_path: Path) -> None:
    usage = check_usage(written(tmp_path, [0, 1, 2], [2, 3, 1], [0, 3, 0]))
    assert usage.faults == (
        "pass 1: 1 prompts came more than once, the first is 2",
        "pass 1: 1 prompts were missed, the first is 3",
        "pass 2: 1 prompts came more than once, the first is 3",
        "pass 2: 1 prompts were missed, the first is 2",
    )


def test_missing_epochs_and_damaged_lines(tmp_path: Path) -> None:
    written(tmp_path, [0, 1], [2, 3], [1, 0])
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join([lines[0], lines[1], lines[3]]))
    assert check_usage(tmp_path).faults[0] == "epoch 3 follows epoch 1"
    (tmp_path / "prompts.jsonl").write_text("\n".join([lines[0], "{", lines[3]]))
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 2 is damaged"):
        check_usage(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 1 is damaged"):
        check_usage(tmp_path)
    for line, message in (
        (lines[0].replace('"pass_length": 4', '"pass_length": 0'), "line 1 is damaged or missing"),
        (f'{lines[0]}\n{{"epoch": 1, "indices": ["a"]}}\n{lines[2]}', "line 2 is damaged: indices is"),
    ):
        (tmp_path / "prompts.jsonl").write_text(f"{line}\n")
        with pytest.raises(ValueError, match=message):
            check_usage(tmp_path)
    with pytest.raises(ValueError, match="names prompts outside of the 4"):
        check_usage(written(tmp_path, [0, 4]))
    with pytest.raises(FileNotFoundError, match="no log of prompts"):
        check_usage(tmp_path / "nowhere")


def test_repeats_of_a_mixture_are_no_fault(tmp_path: Path) -> None:
    mixture = MixturePrompts(weights={"a": 3, "b": 1}, size=8, a=Numbers(2), b=Numbers(6))
    PromptLog(tmp_path, mixture, seed=0, shuffle=True).write(1, PromptStream(mixture, seed=0).next(8, 0).indices)
    usage = check_usage(tmp_path)
    assert (usage.whole_passes, usage.faults, usage.counts[:2].tolist()) == (1, (), [3, 3])
    even = MixturePrompts(a=Numbers(2), b=Numbers(6))
    PromptLog(tmp_path, even, seed=0, shuffle=True).write(1, (0, 0))
    assert check_usage(tmp_path).faults == ("pass 1: 1 prompts came more than once, the first is 0",)
