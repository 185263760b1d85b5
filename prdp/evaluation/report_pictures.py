"""The report's pictures: models side by side, and the prompts that gained and lost most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prdp.evaluation.results import Results, prompt_changes
from prdp.evaluation.store import Chunk
from prdp.reports.pictures import data_uri
from prdp.reports.report_text import score, signed
from prdp.reports.templates import render

_PIXELS = 160
"""Pictures narrower than this are shown pixel by pixel instead of smoothed."""


@dataclass(frozen=True)
class _Shot:
    """A picture of a model with its score."""

    model: str
    uri: str
    alt: str
    value: float
    style: str
    pixels: bool


@dataclass(frozen=True)
class _Card:
    """A prompt with its pictures, one a model."""

    text: str
    shots: list[_Shot]


_Section = tuple[str, list[_Card]]


def grid(results: Results) -> str:
    """The first prompts of each set, one picture a model from the same noise, with the first reward's score."""
    count = results.work.config.grid_prompts
    if not count:
        return ""
    reward = results.rewards[0]
    sections: list[_Section] = []
    for prompt_set, batch in results.work.prompts.items():
        cards = [
            _Card(
                batch.texts[prompt],
                [_shot(results, model.name, prompt_set, prompt, reward) for model in results.models],
            )
            for prompt in range(min(count, len(batch)))
        ]
        sections.append((set_title(results, prompt_set), cards))
    alike = all(model.shares_noise_with(results.models[0]) for model in results.models)
    shown = _with_class(sections, len(results.models))
    return render("evaluation/grid.html", sections=shown, alike=alike, reward=reward)


def best_and_worst(results: Results) -> str:
    """For each model and optimised reward, the prompts with the largest gains and losses against the base."""
    if results.against is None or not results.work.config.extremes:
        return ""
    sections: list[_Section] = []
    for model in results.models:
        if model.name == results.against:
            continue
        own = [name for name in results.rewards if results.trained_on(model, name)]
        for reward in own or list(results.work.config.rewards):
            for prompt_set in results.work.prompts:
                sections += _extremes(results, model.name, prompt_set, reward)
    shown = _with_class(sections, 2)
    return render("evaluation/extremes.html", sections=shown, against=results.against) if shown else ""


def set_title(results: Results, prompt_set: str) -> str:
    """The name of a prompt set where there are several."""
    return prompt_set if len(results.work.prompts) > 1 else ""


def _extremes(results: Results, model: str, prompt_set: str, reward: str) -> list[_Section]:
    """The prompts of a set that gained most, and those that lost most; none where there are none."""
    assert results.against is not None
    texts = results.work.prompts[prompt_set].texts
    change = prompt_changes(results, model, prompt_set, reward)
    order = np.argsort(-change, kind="stable").tolist()
    half = min(results.work.config.extremes, len(order) // 2)
    where = f"{model}, {reward}" + (f", {prompt_set}" if set_title(results, prompt_set) else "")
    found: list[_Section] = []
    for title, chosen in (("Largest gains", order[:half]), ("Largest losses", order[::-1][:half])):
        cards = []
        for prompt in chosen:
            image = _telling(results, model, prompt_set, reward, prompt)
            both = [_shot(results, name, prompt_set, prompt, reward, image) for name in (results.against, model)]
            cards.append(_Card(f"{signed(change[prompt])}  {texts[prompt]}", both))
        if cards:
            found.append((f"{title}: {where}", cards))
    return found


def _telling(results: Results, model: str, prompt_set: str, reward: str, prompt: int) -> int:
    """Position, among the images of a model on a set, of the prompt's image that moved most the way its mean did."""
    assert results.against is not None
    found, base = results.images[model, prompt_set], results.images[results.against, prompt_set]
    own = np.flatnonzero(found.prompt == prompt)
    change = found.scores[reward][own] - base.scores[reward][own]
    return int(own[np.argmax(change * (np.sign(change.mean()) or 1.0))])


def _shot(results: Results, model: str, prompt_set: str, prompt: int, reward: str, place: int | None = None) -> _Shot:
    """A picture with its score; `place` counts the model's images on the set."""
    images = results.images[model, prompt_set]
    if place is None:
        place = int(np.flatnonzero(images.prompt == prompt)[0])
    seed, number = int(images.seed[place]), int(images.image[place])
    chunk = _chunk(results, model, prompt_set, seed, prompt)
    name = chunk.names()[(prompt - chunk.prompts.offset) * chunk.images_per_prompt + number]
    uri, width = data_uri(chunk.folder / name)
    value = float(images.scores[reward][place])
    partner = results.images[results.against, prompt_set] if results.against not in (None, model) else None
    style = ""
    if partner is not None and score(value) != score(float(partner.scores[reward][place])):
        style = "up" if value > partner.scores[reward][place] else "down"
    alt = f"{model}: {results.work.prompts[prompt_set].texts[prompt]}, {reward} {score(value)}"
    return _Shot(model, uri, alt, value, style, width < _PIXELS)


def _chunk(results: Results, model: str, prompt_set: str, seed: int, prompt: int) -> Chunk:
    chunks = results.work.chunks[model, prompt_set, seed]
    return chunks[prompt // results.work.config.sampler.prompts_per_chunk]


def _with_class(sections: list[_Section], pictures: int) -> list[tuple[str, list[_Card], str]]:
    """Sections with the class of their cards' container: side by side while a card's pictures fit into a column."""
    large = any(not shot.pixels for _, cards in sections for card in cards for shot in card.shots)
    kind = "cards" + (" wide" if pictures > 3 else "") + (" large" if large else "")
    return [(title, cards, kind) for title, cards in sections]
