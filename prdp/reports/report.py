"""`prdp report`: one self-contained HTML page about a run, made from its folder alone."""

from __future__ import annotations

from pathlib import Path

from prdp.reports.report_data import NotARunError, read_run
from prdp.reports.report_html import page
from prdp.support.storage import write_atomically

REPORT_FILE = "report.html"

__all__ = ["REPORT_FILE", "NotARunError", "main", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html`, replacing an earlier one; returns its path.

    Runs that are still going, were interrupted, or lack evaluations or metrics get a report of what there is.

    Raises:
        NotARunError: the folder holds no run.
        ValueError: a file of the run is damaged; names it.
        prdp.support.storage.StorageError: the report cannot be written.
    """
    path = Path(run_dir) / REPORT_FILE
    write_atomically(path, page(read_run(Path(run_dir))).encode())
    return path


def main(run_dir: str | Path) -> Path:
    """The command: write the report of a run folder anew; returns and raises as `write_report`."""
    return write_report(Path(run_dir))
