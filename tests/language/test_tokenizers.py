"""Two tokenizers that are not one are refused, by their first difference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers.normalizers import Lowercase

from prdp.language.tokenizers import check_same, difference, tokenizer_digest
from prdp.support.errors import StartError


def changed(tokenizer: Any, words: dict[str, int]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_the_same_is_the_same(tokenizer: Any) -> None:
    again = copy.deepcopy(tokenizer)
    assert difference(tokenizer, again, ["a small red circle"]) is None
    assert tokenizer_digest(tokenizer) == tokenizer_digest(again)


def test_the_first_difference_is_told(tokenizer: Any) -> None:
    words = tokenizer.get_vocab()
    swapped = {**words, "red": words["blue"], "blue": words["red"]}
    other = changed(tokenizer, swapped)
    first = min(words["red"], words["blue"])
    names = ("'red' here and 'blue' there", "'blue' here and 'red' there")
    assert difference(tokenizer, other) == f"token {first} is {names[words['red'] > words['blue']]}"
    with pytest.raises(StartError, match="the tokenizers of small and large differ, and they cannot"):
        check_same("small", tokenizer, "large", other)
    assert tokenizer_digest(tokenizer) != tokenizer_digest(other)


def test_more_words_other_ends_and_other_cuts_are_differences(tokenizer: Any) -> None:
    words = tokenizer.get_vocab()
    longer = changed(tokenizer, {**words, "teal": len(words)})
    assert difference(tokenizer, longer) == f"token {len(words)} is missing here and 'teal' there"
    plain = changed(tokenizer, words)  # begins texts with no token
    assert tokenizer_digest(tokenizer) != tokenizer_digest(plain)
    lower = copy.deepcopy(tokenizer)
    lower.backend_tokenizer.normalizer = Lowercase()
    assert " is cut differently from token " in (difference(tokenizer, lower) or "")
    assert (told := difference(tokenizer, plain)) is not None
    assert told.startswith('"The quick ') and " is cut differently from token 0 on, [1, 3, 3, 3], [3, 3, " in told
    told = difference(tokenizer, plain, ["a red"])
    assert told is not None and told.startswith("'a red' is cut differently from token 0 on, [1, ")
    plain.eos_token = "<pad>"
    assert difference(tokenizer, plain) == "eos_token_id is 2 here and 0 there"
