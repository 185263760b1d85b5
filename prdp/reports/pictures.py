"""Pictures of a run's evaluations: embedded in the report, and as a before/after PNG for a README."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prdp.support.picture_files import opened_picture
from prdp.tracking.evaluations import Evaluation, list_evaluations, load_evaluation

SHOWN_SIZE = 256
"""Longest side in the report; larger pictures are scaled down so that the page stays small."""

_WIDTH, _GAP, _MARGIN, _TEXT = 176, 6, 28, 17
_INK, _MUTED, _LINE, _UP, _DOWN = (28, 36, 48), (93, 104, 120), (222, 226, 232), (31, 122, 83), (179, 64, 47)


def data_uri(path: Path) -> tuple[str, int]:
    """A picture as `small_png` has it, as a data URI, and its own width in pixels.

    Raises:
        ValueError: the file is no whole picture.
    """
    content, width = small_png(path)
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii"), width


def small_png(path: Path) -> tuple[bytes, int]:
    """A picture as PNG with a longest side of at most SHOWN_SIZE, and its own width in pixels.

    Raises:
        ValueError: the file is no whole picture.
        FileNotFoundError: there is none.
    """
    from PIL import Image

    content = path.read_bytes()
    with opened_picture(path) as image:
        image.load()
        width = image.width
        if max(image.size) > SHOWN_SIZE:
            small = image.convert("RGB")
            small.thumbnail((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, format="PNG")
            content = buffer.getvalue()
    return content, width


def grid_scores(evaluation: Evaluation, reward: str | None = None) -> dict[tuple[int, int], tuple[str, float]]:
    """(prompt, image) -> (text, score) of the images whose pictures were kept and are there.

    Args:
        reward: the sub-score that counts, which may be one that is only watched; None for the score.

    Raises:
        ValueError: the evaluation has no such sub-score.
    """
    known = {name.removeprefix("watch/"): values for name, values in evaluation.sub_scores.items()}
    if reward is not None and reward not in known:
        raise ValueError(f"{evaluation.folder} has no sub-score '{reward}'; there are: {', '.join(known) or 'none'}")
    scores = evaluation.scores if reward is None else known[reward]
    return {
        (prompt, image): (text, float(score))
        for prompt, image, text, score in zip(
            evaluation.prompt_index.tolist(),
            evaluation.image_index.tolist(),
            evaluation.prompts,
            scores,
            strict=True,
        )
        if prompt < evaluation.grid_prompts and evaluation.image_path(prompt, image).is_file()
    }


def comparison_picture(
    runs: Mapping[str, Path],
    path_png: Path,
    rows: int = 3,
    columns: int = 4,
    start: str = "before",
    reward: str | None = None,
) -> Path:
    """Draw the first held-out prompts before training and after each of some runs, same noise, with prompt and scores.

    Args:
        runs: what is written under its pictures -> a run folder with at least two evaluations; the pictures from before
            are those of the first run.
        path_png: where the picture goes; its folder is made when missing.
        rows, columns: of prompts; fewer when the evaluations kept fewer pictures.
        start: what is written under the pictures from before.
        reward: the sub-score that is written under the pictures, watched or not; None for the score.

    Raises:
        ValueError: fewer than two evaluations, no prompt whose picture is in all of them, or no such sub-score.
    """
    from PIL import Image, ImageDraw, ImageFont

    evaluations: dict[str, Evaluation] = {}
    for name, folder in runs.items():
        epochs = list_evaluations(folder)
        if len(epochs) < 2:
            raise ValueError(f"{folder} has {len(epochs)} evaluations; a comparison needs the first and a later one")
        evaluations.setdefault(start, load_evaluation(folder, epochs[0]))
        evaluations[name] = load_evaluation(folder, epochs[-1])
    shots = {name: grid_scores(evaluation, reward) for name, evaluation in evaluations.items()}
    shown = [
        (key, text)
        for key, (text, _) in sorted(shots[start].items())
        if key[1] == 0 and all(key in own and own[key][0] == text for own in shots.values())
    ][: rows * columns]
    if not shown:
        raise ValueError(f"{', '.join(map(str, runs.values()))}: no prompt has a picture in the evaluations of all")

    columns = min(columns, len(shown))
    font, bold = ImageFont.load_default(size=13), ImageFont.load_default(size=14)
    cell_width = len(shots) * (_WIDTH + _GAP) - _GAP
    texts = [_wrapped(text, font, cell_width) for _, text in shown]
    lines = max(len(text) for text in texts)
    paths = [evaluation.image_path(*key) for key, _ in shown for evaluation in evaluations.values()]
    high_side = max(_shown_height(path) for path in paths)
    cell_height = _TEXT * lines + 8 + high_side + 8 + _TEXT
    height = -(-len(shown) // columns)
    canvas = Image.new(
        "RGB",
        (columns * (cell_width + _MARGIN) + _MARGIN, height * (cell_height + _MARGIN) + _MARGIN),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(canvas)
    for i, ((key, _), text) in enumerate(zip(shown, texts, strict=True)):
        left = _MARGIN + (i % columns) * (cell_width + _MARGIN)
        top = _MARGIN + (i // columns) * (cell_height + _MARGIN)
        for number, line in enumerate(text):
            draw.text((left, top + _TEXT * (number + lines - len(text))), line, _INK, font=font)
        top += _TEXT * lines + 8
        low = shots[start][key][1]
        for side, (name, evaluation) in enumerate(evaluations.items()):
            x = left + side * (_WIDTH + _GAP)
            path = evaluation.image_path(*key)
            size = (_WIDTH, _shown_height(path))
            with opened_picture(path) as image:
                way = Image.Resampling.NEAREST if image.width < _WIDTH else Image.Resampling.LANCZOS
                canvas.paste(image.convert("RGB").resize(size, way), (x, top))
            draw.rectangle((x, top, x + size[0] - 1, top + size[1] - 1), outline=_LINE)
            high = shots[name][key][1]
            colour = _MUTED if name == start else _UP if high > low else _DOWN if high < low else _INK
            draw.text((x, top + high_side + 4), _fitting(name, f"  {high:.2f}", bold), colour, font=bold)
    path_png.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path_png, optimize=True)
    return path_png


def _shown_height(path: Path) -> int:
    """Of a picture that is drawn `_WIDTH` wide."""
    with opened_picture(path) as image:
        return max(1, round(_WIDTH * image.height / image.width))


def _fitting(name: str, score: str, font: Any) -> str:
    """Name and score, the end of the name left out where both are wider than a picture."""
    shown = name
    while len(shown) > 1 and font.getlength(shown + score) > _WIDTH:
        shown = shown[:-2] + "…"
    return shown + score


def _wrapped(text: str, font: object, width: int) -> list[str]:
    """Lines no wider than `width` pixels, at most three of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:  # type: ignore[attr-defined]
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 3 else [*lines[:2], lines[2] + " \N{HORIZONTAL ELLIPSIS}"]
