"""``make chaos MINUTES=20``: print every kill, then what was lost and what came twice; exit code 1 if anything was."""

from __future__ import annotations

import argparse
import json
import random
import sys
from functools import partial
from pathlib import Path

from tests.chaos.loop import Chaos

_RESULTS = Path("build/chaos/results.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="the seed of an earlier run: the same kinds of kill")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with Chaos(seed, say=partial(print, flush=True)) as chaos:
        results = chaos.run(arguments.minutes * 60)
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps({"minutes": arguments.minutes, **results.told()}, indent=2) + "\n")
    for kind, count in sorted(results.kills.items()):
        print(f"survived {count:4} × {kind}")
    print(f"micro-batches committed under fire: {results.batches_under_fire}")
    print(f"rows lost: {results.rows_lost}, rows twice: {results.rows_twice}, orphaned: {results.orphans}")
    print("\n".join(results.problems))
    return 0 if results.good else 1


if __name__ == "__main__":
    sys.exit(main())
