"""docs/reference/crash-matrix.md says which kills the matrix makes; ``UPDATE_DOCS=1`` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

from test_crash_matrix import MATRIX

from spark_jobs.faults import POINTS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "crash-matrix.md"
_INTRODUCTION = """# Crash matrix

Generated from `tests/faults/test_crash_matrix.py` and the fault points in `spark_jobs/faults.py`; do not edit
(`UPDATE_DOCS=1 .venv/bin/pytest tests/faults/test_matrix_page.py` writes it anew).

At every × the test sends SIGKILL to the driver, its JVM and its Python workers, starts the pipeline again, and at the
end compares target, ledger and dead letters with the input files. Points that lie before or after the writing are the
same for every write mode and are tried with `append`; `WHOLE_MATRIX=1` tries them with all.
"""


def page() -> str:
    """Return the page as it must be."""
    lines = ["| Point | What is true there | " + " | ".join(MATRIX) + " |", "|---" * (len(MATRIX) + 2) + "|"]
    for point, meaning in POINTS.items():
        marks = ["×" if point in points else "" for points in MATRIX.values()]
        lines.append(f"| `{point}` | {meaning} | " + " | ".join(marks) + " |")
    return _INTRODUCTION + "\n" + "\n".join(lines) + "\n"


def test_the_page_lists_every_point_and_every_combination() -> None:
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page()
