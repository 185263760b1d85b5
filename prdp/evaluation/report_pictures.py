"""The report's pictures: models side by side, and the prompts that gained and lost most."""

from __future__ import annotations

from html import escape

import numpy as np

from prdp.evaluation.results import Results, prompt_changes
from prdp.evaluation.store import Chunk
from prdp.reports.pictures import data_uri
from prdp.reports.report_text import score, signed

_PIXELS = 160
"""Pictures narrower than this are shown pixel by pixel instead of smoothed."""


def grid(results: Results) -> str:
    """The first prompts of each set, one picture a model from the same noise, with the first reward's score."""
    count = results.work.config.grid_prompts
    if not count:
        return ""
    reward = results.rewards[0]
    sections, large = [], False
    for prompt_set, batch in results.work.prompts.items():
        cards = []
        for prompt in range(min(count, len(batch))):
            shots = []
            for model in results.models:
                picture, wide = _shot(results, model.name, prompt_set, prompt, reward)
                large |= wide
                shots.append(picture)
            cards.append(_card(batch.texts[prompt], shots))
        title = f"<h3>{escape(prompt_set)}</h3>" if len(results.work.prompts) > 1 else ""
        sections.append(f'{title}<div class="{_cards(len(results.models), large)}">{"".join(cards)}</div>')
    body = "".join(sections)
    alike = all(model.shares_noise_with(results.models[0]) for model in results.models)
    noise = "; every model starts from the same noise" if alike else ""
    return (
        f'<h2>Side by side</h2><p class="lead">The first prompts of each set as they come, none picked{noise}. '
        f"Under each picture its {escape(reward)}.</p>{body}"
    )


def best_and_worst(results: Results) -> str:
    """For each model and optimised reward, the prompts with the largest gains and losses against the base."""
    count = results.work.config.extremes
    if results.against is None or not count:
        return ""
    sections, large = [], False
    for model in results.models:
        if model.name == results.against:
            continue
        own = [name for name in results.rewards if results.trained_on(model, name)]
        for reward in own or list(results.work.config.rewards):
            for prompt_set, batch in results.work.prompts.items():
                change = prompt_changes(results, model.name, prompt_set, reward)
                order = np.argsort(-change, kind="stable").tolist()
                half = min(count, len(order) // 2)
                for title, chosen in (("Largest gains", order[:half]), ("Largest losses", order[::-1][:half])):
                    cards = []
                    for prompt in chosen:
                        image = _telling(results, model.name, prompt_set, reward, prompt)
                        shots = []
                        for name in (results.against, model.name):
                            picture, wide = _shot(results, name, prompt_set, prompt, reward, image)
                            large |= wide
                            shots.append(picture)
                        cards.append(_card(f"{signed(change[prompt])}  {batch.texts[prompt]}", shots))
                    if cards:
                        where = f"{model.name}, {reward}" + (f", {prompt_set}" if len(results.work.prompts) > 1 else "")
                        kind = _cards(2, large)
                        sections.append(f'<h3>{title}: {escape(where)}</h3><div class="{kind}">{"".join(cards)}</div>')
    body = "".join(sections)
    if not body:
        return ""
    return (
        '<h2>Best and worst prompts</h2><p class="lead">By the mean change of a prompt\'s images against '
        f"{escape(results.against)}, on the reward that a model was trained on; the picture shown is the one that "
        f"changed most in that direction.</p>{body}"
    )


def _telling(results: Results, model: str, prompt_set: str, reward: str, prompt: int) -> int:
    """Position, among the images of a model on a set, of the prompt's image that moved most the way its mean did."""
    assert results.against is not None
    found, base = results.images[model, prompt_set], results.images[results.against, prompt_set]
    own = np.flatnonzero(found.prompt == prompt)
    change = found.scores[reward][own] - base.scores[reward][own]
    return int(own[np.argmax(change * (np.sign(change.mean()) or 1.0))])


def _shot(
    results: Results, model: str, prompt_set: str, prompt: int, reward: str, place: int | None = None
) -> tuple[str, bool]:
    """A picture with its score, and whether it is a large one; `place` counts the model's images on the set."""
    images = results.images[model, prompt_set]
    if place is None:
        place = int(np.flatnonzero(images.prompt == prompt)[0])
    seed, number = int(images.seed[place]), int(images.image[place])
    chunk = _chunk(results, model, prompt_set, seed, prompt)
    name = chunk.names()[(prompt - chunk.prompts.offset) * chunk.images_per_prompt + number]
    uri, width = data_uri(chunk.folder / name)
    value = float(images.scores[reward][place])
    partner = results.images[results.against, prompt_set] if results.against not in (None, model) else None
    tone = ""
    if partner is not None and score(value) != score(float(partner.scores[reward][place])):
        tone = "up" if value > partner.scores[reward][place] else "down"
    pixels = ' class="pixels"' if width < _PIXELS else ""
    alt = escape(f"{model}: {results.work.prompts[prompt_set].texts[prompt]}, {reward} {score(value)}", quote=True)
    return (
        f'<div class="shot"><div class="head">{escape(model)}</div><img{pixels} src="{uri}" alt="{alt}">'
        f'<span class="num {tone}">{score(value)}</span></div>',
        width >= _PIXELS,
    )


def _chunk(results: Results, model: str, prompt_set: str, seed: int, prompt: int) -> Chunk:
    chunks = results.work.chunks[model, prompt_set, seed]
    return chunks[prompt // results.work.config.sampler.prompts_per_chunk]


def _cards(pictures: int, large: bool) -> str:
    """Class of the cards' container: side by side while a card's pictures fit into a column."""
    return "cards" + (" wide" if pictures > 3 else "") + (" large" if large else "")


def _card(text: str, shots: list[str]) -> str:
    row = f'<div class="row">{"".join(shots)}</div>'
    return f'<figure class="panel card"><figcaption>{escape(text)}</figcaption>{row}</figure>'
