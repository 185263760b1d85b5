from pathlib import Path

import pytest

from prdp.configuration.compose import Composer
from prdp.configuration.prompt_files import of_prompt_files
from prdp.support.errors import ConfigError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("mine.txt", "sub/other one.jsonl"):
        lines = [f"a red circle {number}" for number in range(20)]
        (tmp_path / name).write_text("\n".join(f'{{"prompt": "{x}"}}' if "json" in name else x for x in lines))
    (tmp_path / "heldout.csv").write_text("prompt\na blue square\n")
    return tmp_path


def test_files_stand_beside_options_in_a_sweep(files: Path) -> None:
    """Relative, absolute, in a folder, with a space, and as a pair."""
    words = f'prompts=mine.txt,"{files}/sub/other one.jsonl",./mine.txt:heldout.csv,shapes_small'
    with Composer(["experiment=shapes_smoke", words], sweep=True) as composer:
        one, absolute, pair, built_in = (job.config for job in composer.jobs())
    assert one.prompts.train["path"] == one.prompts.heldout["path"] == "mine.txt"
    assert (one.prompts.train["part"], one.prompts.heldout["part"]) == ("train", "heldout")
    assert absolute.prompts.train["path"] == f"{files}/sub/other one.jsonl"
    assert (pair.prompts.train["path"], pair.prompts.heldout["path"]) == ("./mine.txt", "heldout.csv")
    assert built_in.prompts.train["size"] == 45


def test_arguments_of_the_reader_are_taken(files: Path) -> None:
    with Composer(["experiment=shapes_smoke", "prompts=mine.txt", "prompts.train.template='{}, at night'"]) as composer:
        [job] = composer.jobs()
    assert job.config.prompts.train["template"] == "{}, at night"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("prompts=no.txt", r"prompts=no\.txt: there is no file no\.txt"),
        ("prompts=mine.txt:no.csv", r"prompts=mine\.txt:no\.csv: there is no file no\.csv"),
        ("prompts='mine.txt:'", "a file is missing beside the colon"),
        ("prompts=picture.png", "the ending '.png' tells of no format"),
        ("prompts=shapes_smal", "there is no such prompts"),
        ("reward=mine.txt", "there is no such reward"),
    ],
)
def test_what_names_no_prompts_is_told(files: Path, word: str, says: str) -> None:
    (files / "picture.png").write_bytes(b"")
    with Composer(["experiment=shapes_smoke", word]) as composer, pytest.raises(ConfigError, match=says):
        composer.jobs()


def test_two_files_that_hydra_would_take_for_one(files: Path) -> None:
    below = files.relative_to("/")
    (files / below).mkdir(parents=True)
    (files / below / "mine.txt").write_text("a\nb\n")
    words = f"prompts={files}/mine.txt,{below}/mine.txt"
    with Composer([words], sweep=True) as composer, pytest.raises(ConfigError, match="begin the relative one with"):
        composer.jobs()


def test_a_name_without_ending_or_folder_is_an_option(files: Path) -> None:
    assert of_prompt_files("shapes") is None
