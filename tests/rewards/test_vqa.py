"""The reward on a small random BLIP and a small random LLaVA, against transformers' own passes one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdp.prompts.dsg import DsgPrompts
from prdp.rewards.vqa import VQAAlignment
from prdp.rewards.vqa_models import says
from prdp.rewards.vqa_questions import Question

METADATA: list[dict[str, Any]] = [
    {"questions": [{"question": "red cat?"}, {"question": "two?", "parents": [1]}]},
    {"questions": [{"question": "cat?", "choices": ["red", "two cat", "no"], "answer": "two cat"}]},
]
BOS, SEP = 2, 3


def blip_chances(folder: Path, image: np.ndarray, question: str, choices: list[str]) -> np.ndarray:
    """One image and one question at a time, without padding, token by token."""
    from transformers import AutoProcessor, BlipForQuestionAnswering

    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=question, return_tensors="pt")
    totals = []
    with torch.no_grad():
        seen = model.vision_model(inputs["pixel_values"]).last_hidden_state
        read = model.text_encoder(inputs["input_ids"], encoder_hidden_states=seen).last_hidden_state
        for choice in choices:
            ids, total = [BOS], 0.0
            for token in [*processor.tokenizer(choice, add_special_tokens=False)["input_ids"], SEP]:
                logits = model.text_decoder(torch.tensor([ids]), encoder_hidden_states=read).logits[0, -1]
                total += logits.log_softmax(-1)[token].item()
                ids.append(token)
            totals.append(total)
    chances = np.exp(np.array(totals) - max(totals))
    return chances / chances.sum()


def test_blip_scores_are_likelihoods_of_the_right_answers(images: np.ndarray, blip_folder: Path) -> None:
    VQAAlignment.check(path=str(blip_folder))
    reward = VQAAlignment(path=str(blip_folder), device="cpu", batch_size=2)
    scores, parts = reward.score(images[:2], ["p", "q"], METADATA)
    cat = blip_chances(blip_folder, images[0], "red cat?", ["yes", "no"])[0]
    two = blip_chances(blip_folder, images[0], "two?", ["yes", "no"])[0]
    many = blip_chances(blip_folder, images[1], "cat?", ["red", "two cat", "no"])
    np.testing.assert_allclose(parts["without_dependencies"], [(cat + two) / 2, many[1]], atol=1e-5)
    np.testing.assert_allclose(scores, [(cat + (two if cat >= 0.5 else 0)) / 2, many[1]], atol=1e-5)
    np.testing.assert_array_equal(scores, parts["with_dependencies"])
    by_choice = VQAAlignment(path=str(blip_folder), method="choice", device="cpu")
    chosen, _ = by_choice.score(images[:2], ["p", "q"], METADATA)
    expected = [(float(cat > 0.5) + float(cat > 0.5 and two > 0.5)) / 2, float(many.argmax() == 1)]
    np.testing.assert_array_equal(chosen, expected)


def test_free_answers_are_those_that_the_model_generates(images: np.ndarray, blip_folder: Path) -> None:
    from transformers import AutoProcessor, BlipForQuestionAnswering

    processor = AutoProcessor.from_pretrained(blip_folder)
    model = BlipForQuestionAnswering.from_pretrained(blip_folder).eval()
    inputs = processor(images=images[0], text="cat?", return_tensors="pt")
    said = processor.decode(model.generate(**inputs, max_new_tokens=10)[0], skip_special_tokens=True)
    reward = VQAAlignment(path=str(blip_folder), method="generate", device="cpu")
    right = {"questions": [{"question": "cat?", "choices": [said, "never said"], "answer": said}]}
    wrong = {"questions": [{"question": "cat?", "choices": [said, "never said"], "answer": "never said"}]}
    scores, _ = reward.score(images[[0, 0]], ["p", "p"], [right, wrong])
    np.testing.assert_array_equal(scores, [1.0, 0.0])


CIRCLE = """\
item_id,text,proposition_id,dependency,category_broad,question_natural_language
circle_1,a red cat,1,0,entity,red cat?
circle_1,a red cat,2,"1,3",entity,two?
circle_1,a red cat,3,2,entity,cat?
circle_1,a red cat,4,3,entity,red two?
"""


def test_items_with_circular_parents_are_scored_by_the_parents_own_answers(
    images: np.ndarray, blip_folder: Path, tmp_path: Path
) -> None:
    """As drawtext_45, diffusiondb_16 and localized_narratives_50 of the published DSG-1k list have them."""
    (tmp_path / "dsg.csv").write_text(CIRCLE)
    [(prompt, metadata)] = [DsgPrompts(str(tmp_path / "dsg.csv"))[0]]
    assert [question["parents"] for question in metadata["questions"]] == [[], [1, 3], [2], [3]]
    for image in images[:3]:
        own = [
            blip_chances(blip_folder, image, question, ["yes", "no"])[0]
            for question in ("red cat?", "two?", "cat?", "red two?")
        ]
        yes = [value >= 0.5 for value in own]
        counted = [True, yes[0] and yes[2], yes[1], yes[2]]
        scores, _ = VQAAlignment(path=str(blip_folder), device="cpu").score(image[None], [prompt], [metadata])
        expected = np.mean([value * counts for value, counts in zip(own, counted, strict=True)])
        np.testing.assert_allclose(scores, [expected], atol=1e-5)


def test_a_free_answer_names_one_choice_or_none() -> None:
    colours = Question("1", "?", ("red", "dark blue", "blue green"), "red")
    assert says("It is Red.", colours) == "red"
    assert says("the dark-blue", colours) == "dark blue"
    assert says("red or dark blue", colours) is None
    assert says("bluegreen", colours) is None
    yes = Question("1", "?")
    assert (says("Yes, a cat", yes), says("no", yes), says("not sure", yes)) == ("yes", "no", None)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import string

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "yes", "no", "Yes", "No", "cat", "Answer", "with", "or"]
    words += [*string.ascii_uppercase, *string.punctuation]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(**tower, num_key_value_heads=2, vocab_size=len(words), max_position_embeddings=128)
    vision = CLIPVisionConfig(**tower, image_size=28, patch_size=14)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=4)
    )
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor", **size}))
    settings = {"processor_class": "LlavaProcessor", "patch_size": 14, "vision_feature_select_strategy": "default"}
    (folder / "processor_config.json").write_text(
        json.dumps({**settings, "num_additional_image_tokens": 1, "image_token": "<image>"})
    )
    return folder


def test_chat_models_share_out_the_next_token(images: np.ndarray, llava_folder: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    metadata = [
        {"questions": [{"question": "cat?"}]},
        {"questions": [{"question": "cat cat cat?", "choices": ["x", "y", "z"], "answer": "y"}]},
    ]
    VQAAlignment.check(path=str(llava_folder))
    scores, _ = VQAAlignment(path=str(llava_folder), device="cpu").score(images[:2], ["p", "q"], metadata)
    model = LlavaForConditionalGeneration.from_pretrained(llava_folder).eval()
    processor = AutoProcessor.from_pretrained(llava_folder)
    expected = []
    for image, text, words, right in [
        (images[0], "cat? Answer with yes or no.", [["yes", "Yes"], ["no", "No"]], 0),
        (images[1], "cat cat cat? A. x B. y C. z Answer with the letter alone.", [["A"], ["B"], ["C"]], 1),
    ]:
        inputs = processor(images=image, text=f"<image>\nQuestion: {text} Answer:", return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits[0, -1].softmax(-1)
        ids = [processor.tokenizer.convert_tokens_to_ids(group) for group in words]
        sums = [chances[group].sum().item() for group in ids]
        expected.append(sums[right] / sum(sums))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    generating = VQAAlignment(path=str(llava_folder), method="generate", device="cpu")
    free, _ = generating.score(images[:2], ["p", "q"], metadata)
    assert set(free) <= {0.0, 1.0}


def test_arguments_and_files_are_checked(blip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method=guess: must be probability, choice or generate"):
        VQAAlignment.check(path=str(blip_folder), method="guess")
    (tmp_path / "config.json").write_text('{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}')
    with pytest.raises(ValueError, match="BLIP model of kind BlipForConditionalGeneration, expected"):
        VQAAlignment.check(path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="holds a 'clip' model, expected blip or an image-text-to-text model"):
        VQAAlignment.check(path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match=r"holds no model\.safetensors\.index\.json and no model\.safetensors"):
        VQAAlignment.check(path=str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ValueError, match=r"speaks of model-1\.safetensors, not in"):
        VQAAlignment.check(path=str(tmp_path))
