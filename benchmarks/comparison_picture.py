"""Held-out pictures before training and after it, of one run or of several, with the judge's scores.

python benchmarks/comparison_picture.py docs/pictures/before_after.png after=runs/demo
python benchmarks/comparison_picture.py OUT.png PRDP=RUN_FOLDER DDPO=RUN_FOLDER --rows 6 --columns 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prdp.reports.pictures import comparison_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_FOLDER")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--reward", help="the sub-score to write instead of the score")
    asked = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (word.partition("=") for word in asked.runs)}
    print(comparison_picture(runs, asked.out, asked.rows, asked.columns, reward=asked.reward))


if __name__ == "__main__":
    main()
