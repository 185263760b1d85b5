"""Models that answer questions about images: BLIP-VQA, and any image-text-to-text model of transformers."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prdp.rewards.prompt_tokens import check_tokenizer
from prdp.rewards.transformers_models import load_pretrained
from prdp.rewards.vqa_questions import YES_NO, Question
from prdp.rewards.weight_files import find_folder, model_files, read_json, read_tensors
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    import torch

FILES = (("*.safetensors", "*.json", "*.txt", "*.model"), ("*.bin", "*.json", "*.txt", "*.model"))
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_BLIP = "BlipForQuestionAnswering"
_MAX_NEW_TOKENS = 10
_QUESTION_TOKENS = 35


class AnswerModel(Protocol):
    """What answers questions. Image i goes with question i."""

    def probabilities(self, images: UInt8, questions: Sequence[Question]) -> list[Float64]:
        """Probabilities of each question's choices, which add up to 1, of uint8 images [B, H, W, 3]."""
        ...

    def answers(self, images: UInt8, questions: Sequence[Question]) -> list[str]:
        """Whatever the model says, as text."""
        ...


class BlipAnswers:
    """BLIP's question answering model: an encoder reads the question beside the image, a decoder writes the answer."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self._model, self._processor, self._device = model, processor, device

    def probabilities(self, images: UInt8, questions: Sequence[Question]) -> list[Float64]:
        """Softmax over the choices' log-likelihoods, end of text included, as BLIP ranks answers."""
        import torch

        with torch.inference_mode():
            inputs = self._inputs(images, _texts(questions))
            seen = self._model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
            read = self._model.text_encoder(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], encoder_hidden_states=seen
            ).last_hidden_state
            return [
                self._choose(read[row : row + 1], inputs["attention_mask"][row : row + 1], question)
                for row, question in enumerate(questions)
            ]

    def chances_of_yes(self, images: UInt8, questions: Sequence[str]) -> Float64:
        """Probability of yes against no as the first word of an answer, float64 [B].

        As T2I-CompBench's code asks: a question begins with BLIP's own token for the encoder, where transformers'
        processor leaves BERT's, and has at most 35 tokens.
        """
        import torch

        text, tokenizer = self._model.config.text_config, self._processor.tokenizer
        with torch.inference_mode():
            inputs = self._inputs(images, questions, truncation=True, max_length=_QUESTION_TOKENS)
            # The vocabulary is BERT's, then the token for the decoder, then the one for the encoder.
            inputs["input_ids"][:, 0] = text.bos_token_id + 1
            seen = self._model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
            read = self._model.text_encoder(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], encoder_hidden_states=seen
            ).last_hidden_state
            logits = self._model.text_decoder(
                input_ids=torch.full((len(questions), 1), text.bos_token_id, device=self._device),
                encoder_hidden_states=read,
                encoder_attention_mask=inputs["attention_mask"],
            ).logits[:, 0]
            first = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in YES_NO]
            chances: Float64 = logits[:, first].double().softmax(-1)[:, 0].cpu().numpy()
        return chances

    def answers(self, images: UInt8, questions: Sequence[Question]) -> list[str]:
        """Greedy answers."""
        import torch

        with torch.inference_mode():
            ids = self._model.generate(
                **self._inputs(images, _texts(questions)), max_new_tokens=_MAX_NEW_TOKENS, do_sample=False, num_beams=1
            )
        return [text.strip() for text in self._processor.batch_decode(ids, skip_special_tokens=True)]

    def _inputs(self, images: UInt8, texts: Sequence[str], **options: Any) -> dict[str, torch.Tensor]:
        inputs = self._processor(images=list(images), text=list(texts), padding=True, return_tensors="pt", **options)
        wanted = {name: inputs[name].to(self._device) for name in ("pixel_values", "input_ids", "attention_mask")}
        wanted["pixel_values"] = wanted["pixel_values"].to(self._model.dtype)
        return wanted

    def _choose(self, read: torch.Tensor, mask: torch.Tensor, question: Question) -> Float64:
        import torch

        tokenizer, text = self._processor.tokenizer, self._model.config.text_config
        likelihoods = []
        for choice in question.choices:
            words = tokenizer(choice.lower(), add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[text.bos_token_id, *words, text.sep_token_id]], device=self._device)
            logits = self._model.text_decoder(
                input_ids=ids[:, :-1], encoder_hidden_states=read, encoder_attention_mask=mask
            ).logits
            chances = logits[0].float().log_softmax(-1).gather(1, ids[0, 1:, None])
            likelihoods.append(chances.sum())
        return torch.stack(likelihoods).double().softmax(0).cpu().numpy()


class ChatAnswers:
    """Any image-text-to-text model (LLaVA, Qwen-VL, PaliGemma, ...): asked for one word, or for a choice's letter."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self._model, self._processor, self._device = model, processor, device
        # The next token is read off the last place, so padding has to stand before the text.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    def probabilities(self, images: UInt8, questions: Sequence[Question]) -> list[Float64]:
        """Shares of the words, or letters, that stand for the choices in their joint chance to be the next token."""
        import torch

        with torch.inference_mode():
            logits = self._model(**self._inputs(images, questions, letters=True)).logits[:, -1].float()
            chances = logits.double().softmax(-1).cpu()
        shares = [
            torch.stack([chances[row, self._first_tokens(word)].sum() for word in _words(question)])
            for row, question in enumerate(questions)
        ]
        return [(share / share.sum().clamp_min(1e-300)).numpy() for share in shares]

    def answers(self, images: UInt8, questions: Sequence[Question]) -> list[str]:
        """Greedy answers."""
        import torch

        inputs = self._inputs(images, questions, letters=False)
        with torch.inference_mode():
            ids = self._model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False, num_beams=1)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _inputs(self, images: UInt8, questions: Sequence[Question], letters: bool) -> Any:
        from PIL import Image

        inputs = self._processor(
            images=[Image.fromarray(image) for image in images],
            text=[self._prompt(question, letters) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self._device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return inputs

    def _prompt(self, question: Question, letters: bool) -> str:
        if set(question.choices) == set(YES_NO):
            text = f"{question.text} Answer with yes or no."
        elif letters:
            lettered = zip(_words(question), question.choices, strict=True)
            options = " ".join(f"{letter}. {choice}" for letter, choice in lettered)
            text = f"{question.text} {options} Answer with the letter alone."
        else:
            text = f"{question.text} Answer with one of: {', '.join(question.choices)}."
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": text}]
            return self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        image = getattr(self._processor, "image_token", "")
        return f"{image}\nQuestion: {text} Answer:".lstrip()

    def _first_tokens(self, word: str) -> list[int]:
        """First tokens of a word, in both cases, with and without a space before it."""
        tokenizer = self._processor.tokenizer
        spellings = {form for base in (word, word.capitalize()) for form in (base, f" {base}")}
        first = {tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in spellings}
        # A lone space is how some tokenizers start every word.
        return sorted(token for token in first if tokenizer.decode([token]).strip())


def load_blip(key: str, path: str, device: str, dtype: str) -> tuple[BlipAnswers, list[Path]]:
    """As `load_answer_model`, of a folder or a hub id that holds BLIP.

    Raises:
        ValueError: what `check_blip` raises; weights that do not fit the configuration.
    """
    model, files = load_answer_model(key, path, device, dtype)
    if not isinstance(model, BlipAnswers):
        raise ValueError(_no_blip(key, path))
    return model, files


def check_blip(key: str, path: str) -> None:
    """As `check_answer_model`, of a folder or a hub id that has to hold BLIP.

    Raises:
        ValueError: what that raises; a model of another kind.
    """
    folder = find_folder(key, path, FILES, fetch=False)
    if folder is not None and not _is_blip(key, folder):
        raise ValueError(_no_blip(key, path))
    check_answer_model(key, path)


def load_answer_model(key: str, path: str, device: str, dtype: str) -> tuple[AnswerModel, list[Path]]:
    """The model of a folder or the hub, and the files of its weights.

    Raises:
        ValueError: what `check_answer_model` raises; weights that do not fit the configuration.
    """
    import transformers

    folder = find_folder(key, path, FILES)
    assert folder is not None
    files = model_files(key, folder)
    blip = _is_blip(key, folder)
    architecture = transformers.BlipForQuestionAnswering if blip else transformers.AutoModelForImageTextToText
    model, processor = load_pretrained(
        f"{key}={path}", folder, architecture, transformers.AutoProcessor, device, dtype
    )
    return (BlipAnswers if blip else ChatAnswers)(model, processor, device), files


def check_answer_model(key: str, path: str) -> None:
    """Check the files of a folder, or of a cached one of the hub, without loading them.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """
    folder = find_folder(key, path, FILES, fetch=False)
    if folder is None:
        return
    _is_blip(key, folder)
    for file in model_files(key, folder):
        read_tensors(key, file, shapes_only=True)
    check_tokenizer(key, str(folder))


def says(answer: str, question: Question) -> str | None:
    """The choice that a free answer names, after case, punctuation and articles are gone; None for none of them."""
    plain = _plain(answer)
    by_name = {_plain(choice): choice for choice in question.choices}
    if plain in by_name:
        return by_name[plain]
    named = [choice for name, choice in by_name.items() if re.search(rf"\b{re.escape(name)}\b", plain)]
    return named[0] if len(named) == 1 else None


def _texts(questions: Sequence[Question]) -> list[str]:
    return [question.text for question in questions]


def _no_blip(key: str, path: str) -> str:
    return f"{key}={path}: must hold {_BLIP}, such as Salesforce/blip-vqa-base"


def _plain(text: str) -> str:
    bare = text.lower().translate(str.maketrans(string.punctuation, " " * len(string.punctuation)))
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _words(question: Question) -> list[str]:
    """What stands for each choice: itself for yes and no, a letter otherwise."""
    if set(question.choices) == set(YES_NO):
        return list(question.choices)
    if len(question.choices) > len(string.ascii_uppercase):
        raise ValueError(f"question {question.text!r} has {len(question.choices)} choices, at most 26 have a letter")
    return list(string.ascii_uppercase[: len(question.choices)])


def _is_blip(key: str, folder: Path) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CHAT_MODELS

    configuration = read_json(key, folder / "config.json")
    kind = configuration.get("model_type")
    if kind != "blip":
        if kind not in CHAT_MODELS:
            raise ValueError(f"{key}: {folder} holds a '{kind}' model, expected blip or an image-text-to-text model")
        return False
    architectures = configuration.get("architectures") or []
    if _BLIP not in architectures:
        raise ValueError(f"{key}: {folder} holds a BLIP model of kind {', '.join(architectures)}, expected {_BLIP}")
    return True
