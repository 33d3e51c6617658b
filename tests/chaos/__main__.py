"""``make chaos MINUTES=20``: print every kill, then what was lost and what came twice; exit code 1 if anything was."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.chaos.loop import Chaos, Results

_RESULTS = Path("build/chaos/results.json")
_PAGE = Path("docs/reference/chaos-run.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="the seed of an earlier run: the same kinds of kill")
    parser.add_argument("--page", action="store_true", help=f"write {_PAGE}")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with Chaos(seed, say=partial(print, flush=True)) as chaos:
        results = chaos.run(arguments.minutes * 60)
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps({"minutes": arguments.minutes, **results.told()}, indent=2) + "\n")
    if arguments.page:
        _PAGE.write_text(page(results, arguments.minutes))
    for kind, count in sorted(results.kills.items()):
        print(f"survived {count:4} × {kind}")
    print(f"micro-batches committed under fire: {results.batches_under_fire}")
    print(f"rows lost: {results.rows_lost}, rows twice: {results.rows_twice}, orphaned: {results.orphans}")
    print("\n".join(results.problems))
    return 0 if results.good else 1


def page(results: Results, minutes: float) -> str:
    """Return the docs page of a run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    kills = ", ".join(f"{count} × {kind}" for kind, count in results.kills.most_common())
    rows = {
        "kills survived": f"{results.kills.total()}: {kills}",
        "records in the topic": f"{results.records:,}, into seven pipelines: `single`, `staged` and `two_phase` with "
        "`append`, `single` and `staged` with `upsert` and `overwrite`",
        "micro-batches committed between the kills": f"{results.batches_under_fire:,}",
        "dead letters, compared one by one": f"{results.dead_letters:,}",
        "rows lost": f"{results.rows_lost}",
        "rows twice": f"{results.rows_twice}",
        "prepared transactions left": f"{results.orphans}",
        "other problems": "; ".join(results.problems) or "none",
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# The last chaos run

Written by `make chaos MINUTES={minutes:g} ARGS="--page --seed {results.seed}"` on {datetime.now(UTC):%Y-%m-%d}, at
commit {commit.stdout.strip()}, with {os.cpu_count()} cores. What it does is told in
[Kill it and compare](../guides/chaos.md).

| | |
|---|---|
{lines}
"""


if __name__ == "__main__":
    sys.exit(main())
