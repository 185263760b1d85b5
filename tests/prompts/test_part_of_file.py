from pathlib import Path

import pytest

from prdp.prompts.duplicates import held_out_rows
from prdp.prompts.overlap import count_overlap
from prdp.prompts.part_of_file import part_of_prompts
from prdp.prompts.stream import source_texts


def test_parts_make_up_the_file_and_share_no_prompt(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    prompts = [*(f"a fox number {number}" for number in range(38)), "A red fox.", "a red fox"]
    file.write_text("\n".join(prompts))
    train, heldout = (part_of_prompts(str(file), part) for part in ("train", "heldout"))
    held = list(source_texts(heldout))
    assert held == [prompts[row] for row in held_out_rows(prompts, 4, 0)]
    assert [train[i][0] for i in range(len(train))] == [one for one in prompts if one not in held]
    assert list(train.texts()) == [train[i][0] for i in range(len(train))]
    assert ("A red fox." in held) == ("a red fox" in held)
    assert heldout.is_disjoint(train)
    assert train.fingerprint != heldout.fingerprint
    other = part_of_prompts(str(file), "heldout", held_out=4, seed=1)
    assert not other.is_disjoint(train)
    assert count_overlap(train, other, held).repeated == sum(text in set(train.texts()) for text in other.texts())


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a fox\nA fox!\n")
    with pytest.raises(ValueError, match=r"mine\.txt cannot be cut into train and heldout: equal prompts"):
        part_of_prompts(str(file), "train")
    file.write_text("a fox\n")
    with pytest.raises(ValueError, match="there are 1"):
        part_of_prompts(str(file), "train")
    with pytest.raises(ValueError, match="must be train or heldout"):
        part_of_prompts(str(file), "test")
