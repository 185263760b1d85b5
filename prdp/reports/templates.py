"""The templates of pages: Jinja2's, in `templates/`. What is put into HTML is escaped, unless it is markup already."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prdp.reports.report_text import interval, label, score, signed

FOLDER = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> Markup:
    """A template with its values, as markup.

    Raises:
        jinja2.UndefinedError: a value that the template asks for is missing.
    """
    return Markup(_environment().get_template(template).render(values))


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "interval": interval,
        "label": label,
        "nan": math.isnan,
        "score": score,
        "signed": signed,
        "signed_interval": lambda value: interval(value, signed),
    }
    return made
