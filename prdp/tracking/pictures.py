"""Pictures of a run's evaluations: embedded in the report, and as a before/after PNG for a README."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from prdp.tracking.evaluations import Evaluation, list_evaluations, load_evaluation

SHOWN_SIZE = 256
"""Longest side in the report; larger pictures are scaled down so that the page stays small."""

_WIDTH, _GAP, _MARGIN, _TEXT = 176, 6, 28, 17
_INK, _MUTED, _LINE, _UP, _DOWN = (28, 36, 48), (93, 104, 120), (222, 226, 232), (31, 122, 83), (179, 64, 47)


def data_uri(path: Path) -> tuple[str, int]:
    """A picture as a PNG data URI with a longest side of at most SHOWN_SIZE, and its own width in pixels.

    Raises:
        ValueError: the file is no whole picture.
    """
    from PIL import Image

    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            width = image.width
            if max(image.size) > SHOWN_SIZE:
                small = image.convert("RGB")
                small.thumbnail((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                small.save(buffer, format="PNG")
                content = buffer.getvalue()
    except OSError as error:
        raise ValueError(f"{path} is not a whole picture: {error}") from error
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii"), width


def grid_scores(evaluation: Evaluation) -> dict[tuple[int, int], tuple[str, float]]:
    """(prompt, image) -> (text, score) of the images whose pictures were kept and are there."""
    return {
        (prompt, image): (text, float(score))
        for prompt, image, text, score in zip(
            evaluation.prompt_index.tolist(),
            evaluation.image_index.tolist(),
            evaluation.prompts,
            evaluation.scores,
            strict=True,
        )
        if prompt < evaluation.grid_prompts and evaluation.image_path(prompt, image).is_file()
    }


def comparison_picture(run_dir: Path, path_png: Path, rows: int = 3, columns: int = 4) -> Path:
    """Draw the first held-out prompts of a run before and after training, same noise, with prompt and scores.

    Args:
        run_dir: a run folder with at least two evaluations.
        path_png: where the picture goes; its folder is made when missing.
        rows, columns: of pairs; fewer when the evaluations kept fewer pictures.

    Raises:
        ValueError: fewer than two evaluations, or no prompt whose picture is in both.
    """
    from PIL import Image, ImageDraw, ImageFont

    epochs = list_evaluations(run_dir)
    if len(epochs) < 2:
        raise ValueError(f"{run_dir} has {len(epochs)} evaluations; a comparison needs the first and a later one")
    before, after = load_evaluation(run_dir, epochs[0]), load_evaluation(run_dir, epochs[-1])
    old, new = grid_scores(before), grid_scores(after)
    pairs = [
        (key, text, score, new[key][1])
        for key, (text, score) in sorted(old.items())
        if key[1] == 0 and key in new and new[key][0] == text
    ][: rows * columns]
    if not pairs:
        raise ValueError(f"{run_dir}: no prompt has a picture in both evaluation {epochs[0]} and {epochs[-1]}")

    columns = min(columns, len(pairs))
    font, bold = ImageFont.load_default(size=13), ImageFont.load_default(size=14)
    cell_width = 2 * _WIDTH + _GAP
    texts = [_wrapped(text, font, cell_width) for _, text, _, _ in pairs]
    lines = max(len(text) for text in texts)
    cell_height = _TEXT * lines + 8 + _WIDTH + 8 + _TEXT
    height = -(-len(pairs) // columns)
    canvas = Image.new(
        "RGB",
        (columns * (cell_width + _MARGIN) + _MARGIN, height * (cell_height + _MARGIN) + _MARGIN),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(canvas)
    for i, ((key, _, low, high), text) in enumerate(zip(pairs, texts, strict=True)):
        left = _MARGIN + (i % columns) * (cell_width + _MARGIN)
        top = _MARGIN + (i // columns) * (cell_height + _MARGIN)
        for number, line in enumerate(text):
            draw.text((left, top + _TEXT * (number + lines - len(text))), line, _INK, font=font)
        top += _TEXT * lines + 8
        for side, evaluation in enumerate((before, after)):
            with Image.open(evaluation.image_path(*key)) as image:
                way = Image.Resampling.NEAREST if image.width < _WIDTH else Image.Resampling.LANCZOS
                x = left + side * (_WIDTH + _GAP)
                canvas.paste(image.convert("RGB").resize((_WIDTH, _WIDTH), way), (x, top))
            draw.rectangle((x, top, x + _WIDTH - 1, top + _WIDTH - 1), outline=_LINE)
        top += _WIDTH + 4
        colour = _UP if high > low else _DOWN if high < low else _INK
        draw.text((left, top), f"before  {low:.2f}", _MUTED, font=bold)
        draw.text((left + _WIDTH + _GAP, top), f"after  {high:.2f}", colour, font=bold)
    path_png.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path_png, optimize=True)
    return path_png


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
