"""What nests beyond what recursion bears is a mistake, told in a line: in files of others and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prdp.configuration.compose import Composer
from prdp.configuration.typed import read_config, write_config
from prdp.diffusion.model_components import tokenizer_problems
from prdp.diffusion.model_folder import _read_json
from prdp.diffusion.pipeline_formats import CLIP_TOKENIZERS
from prdp.evaluation.runs import read_trained_run
from prdp.evaluation.store import _read as read_record
from prdp.reports.report_data import read_run
from prdp.rewards.weight_files import read_json
from prdp.support.errors import ConfigError, StartError
from prdp.support.json_lines import load_json
from prdp.tracking.status_file import load_status, read_status

pytestmark = pytest.mark.slow

DEPTHS = (480, 990, 200_000)
WORDS = ["experiment=shapes_smoke", "output_dir=nowhere"]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def refuses(read: Callable[[], Any], kind: type[Exception] = ValueError) -> bool:
    """Whether it raises that; the depth that can be read depends on the stack, so some answer."""
    try:
        read()
    except kind as error:
        return any(word in str(error) for word in ("recursion", "too deeply", "levels deep"))
    return False


@pytest.mark.parametrize("depth", DEPTHS)
def test_json_of_others(tmp_path: Path, depth: int) -> None:
    file = tmp_path / "status.json"
    file.write_text(f'{{"x": {nested(depth)}}}')
    found = [
        refuses(lambda: load_status(tmp_path)),
        refuses(lambda: load_json(file.read_bytes())),
        refuses(lambda: read_record(file)),
        refuses(lambda: _read_json("model", file), StartError),
        refuses(lambda: read_json("key", file)),
    ]
    read_status(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(nested(depth))
    assert tokenizer_problems(tmp_path, {"vocab_size": 5}, CLIP_TOKENIZERS)
    assert all(found) or depth < 200_000


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_log_and_the_configuration_of_a_run(tmp_path: Path, depth: int) -> None:
    with Composer(WORDS) as composer:
        write_config(composer.jobs()[0].config, tmp_path / "config.yaml")
    (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1, "x": {nested(depth)}}}\n{{"epoch": 2}}\n')
    found = [refuses(lambda: read_trained_run(tmp_path)), refuses(lambda: read_run(tmp_path))]
    assert all(found) or depth < 200_000
    (tmp_path / "metrics.jsonl").unlink()
    with (tmp_path / "config.yaml").open("a") as file:
        file.write(f"watch: {nested(min(depth, 1000))}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is (nested \d+ levels deep|not YAML: maximum recursion)"):
        read_config(tmp_path / "config.yaml")
    assert refuses(lambda: read_run(tmp_path))


@pytest.mark.parametrize("depth", [150, 900])
def test_words_of_the_command_line(depth: int) -> None:
    with Composer([*WORDS, f"reward.zz={nested(depth)}"]) as composer, pytest.raises(ConfigError) as caught:
        composer.jobs()
    assert str(caught.value).endswith("[[[...' is nested too deeply")
