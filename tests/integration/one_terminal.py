"""Several command lines one after the other in one process, as a terminal would show them: Spark starts only once.

Reads ``[[name, [word, …]], …]`` as JSON from standard input; after each command a line ``<name> <exit code>`` marks its
end on both outputs.
"""

from __future__ import annotations

import json
import sys

from spark_jobs.cli import main

MARK = "=== the command has ended:"

if __name__ == "__main__":
    for name, words in json.load(sys.stdin):
        code: object = None
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
        for output in (sys.stdout, sys.stderr):
            print(MARK, name, code, file=output, flush=True)
