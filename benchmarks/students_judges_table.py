"""What the judges of students_judges.py say of cascades, beside what their router says: a part of students.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent))

from study_tables import interval, table

from prdp.evaluation.store import FOLDER, read_scores
from prdp.tracking.statistics import mean_interval

SCORES, CHECK = "judges.jsonl", "judges_check.json"
JUDGES = ("reader", "likelihood")
BASE, HALF, STUDENT, REFINED, BY_CHANCE, ALL_REFINED = MODELS = (
    "base", "teacher4", "endpoint", "refine25", "random25", "refine100",
)  # fmt: skip
ROUTER = "shapes_aspects"
EVALUATION = "evaluation"
_RATE = 0.25
_HEAD = """## Judged by others

`python benchmarks/students_judges.py FOLDER` asks two judges of another kind than the router about the same pictures.
*reader* is a small network that has learned from rendered scenes what is in a picture: the mean probability of all that
a prompt tells but the relation. *likelihood* is the embedded model itself: by how much a prompt lowers the error of
denoising the picture, in squared units of the network's output, at four noise levels. Neither knows the pixel judge.
The second is no neutral judge of students against teachers: it is the teacher.
"""


def judged_by_others(folder: Path, places: Sequence[Path]) -> str:
    """The part, or nothing where students_judges.py has not judged."""
    if not (folder / SCORES).exists():
        return ""
    lines = [json.loads(line) for line in (folder / SCORES).read_text(encoding="utf-8").splitlines()]
    found = {(line["judge"], line["seed"], line["model"]): np.array(line["scores"]) for line in lines}
    seeds = [int(place.name) for place in places]
    routers = {int(place.name): router_scores(place) for place in places}
    rows = []
    for judge in JUDGES:
        own = {seed: {model: found[judge, seed, model] for model in MODELS} for seed in seeds}
        rows += _rows(judge, own, routers)
    head = ["judge", "", "seed by seed", "all prompts"]
    check = json.loads((folder / CHECK).read_text(encoding="utf-8"))
    return f"{_HEAD}\n{table([head, *rows])}\n\n{_checked(check)}"


def router_scores(place: Path) -> np.ndarray:
    """What the cascades' estimator says of the student's images, float64 [n]."""
    chunks = sorted((place / EVALUATION / FOLDER / STUDENT).glob("*/seed_*/*"))
    scores = [read_scores(chunk, ROUTER) for chunk in chunks]
    return np.concatenate([one[1].rewards for one in scores if one is not None])


def over_chance(first: np.ndarray, second: np.ndarray, router: np.ndarray, rate: float = _RATE) -> np.ndarray:
    """By image, what routing exactly the lowest `rate` gains over the same share by chance.

    Args:
        first, second: float64 [n], of the student's images and of those in their place.
        router: float64 [n], of the student's images.
    """
    chosen = np.zeros(len(router), np.bool_)
    chosen[np.argsort(router, kind="stable")[: int(rate * len(router))]] = True
    share = float(chosen.mean())
    gained: np.ndarray = np.where(chosen, second, first) - ((1 - share) * first + share * second)
    return gained


def _rows(
    judge: str, own: Mapping[int, Mapping[str, np.ndarray]], routers: Mapping[int, np.ndarray]
) -> list[list[str]]:
    told = {
        "refined by score, less by chance": [one[REFINED] - one[BY_CHANCE] for one in own.values()],
        "the same at exactly 25% of the images": [
            over_chance(one[STUDENT], one[ALL_REFINED], routers[seed]) for seed, one in own.items()
        ],
        "refined by score, less the student": [one[REFINED] - one[STUDENT] for one in own.values()],
        "refined by score, less the teacher of 8 passes": [one[REFINED] - one[HALF] for one in own.values()],
        "refined by score, less the teacher of 16 passes": [one[REFINED] - one[BASE] for one in own.values()],
        "student of 4 passes, less its teacher of 16": [one[STUDENT] - one[BASE] for one in own.values()],
    }
    rows = [[judge, what, _by_seed(parts), _over_prompts(parts)] for what, parts in told.items()]
    alike = [float(spearmanr(one[STUDENT], routers[seed]).statistic) for seed, one in own.items()]
    each = " ".join(f"{value:.2f}" for value in alike)
    return [*rows, [judge, "rank correlation with the router, student's images", each, ""]]


def _by_seed(parts: Sequence[np.ndarray]) -> str:
    means = [float(one.mean()) for one in parts]
    each = " ".join(f"{value:+.4f}" for value in means)
    return f"{each} ({interval(means, 4)})" if len(means) > 2 else each


def _over_prompts(parts: Sequence[np.ndarray]) -> str:
    mean, _, high = mean_interval(np.concatenate(parts))
    return f"{mean:+.4f} ± {high - mean:.4f}"


def _checked(check: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(next(iter(check.values())))
    rows = [[judge, *(f"{found[name]:.0%}" for name in names)] for judge, found in check.items()]
    told = "How often each ranks the prompt of a rendered scene above the prompt with one attribute changed:"
    return f"{told}\n\n{table([['judge', *names], *rows])}"
