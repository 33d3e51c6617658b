"""Writes ``docs/reference/configuration.md`` and ``pipeline.schema.json`` from the models.

``python -m spark_jobs.contracts.config.reference docs/reference``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_snake

from spark_jobs.contracts.config.editor_schema import models, published_schema, transform_models
from spark_jobs.contracts.config.enumerations import OutputMode
from spark_jobs.contracts.config.extract import PLANNED_FORMATS, PLANNED_SOURCES
from spark_jobs.contracts.config.keys import keys_of
from spark_jobs.contracts.config.load import CONNECTION_PARAMS, PLANNED_SINKS
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.registry import PLANNED_TRANSFORMS
from spark_jobs.contracts.config.result_rules import FITTING
from spark_jobs.contracts.config.section import Section
from spark_jobs.contracts.config.transforms import Aggregation

PAGE = "configuration.md"
SCHEMA = "pipeline.schema.json"

EXAMPLE = """{
  "pipelineId": "orders-per-5-minutes",
  "mode": "streaming",
  "variables": {"brokers": "localhost:9092"},
  "extract": {
    "sourceType": "kafka",
    "topic": "orders",
    "schema": "order_id BIGINT, country STRING, price DECIMAL(10,2), created_at TIMESTAMP",
    "connectionParams": {"kafka.bootstrap.servers": "${brokers}", "startingOffsets": "earliest"}
  },
  "transforms": [
    {
      "transformType": "aggregation",
      "parameters": {
        "groupByColumns": "country",
        "windowColumn": "created_at",
        "windowDuration": "5 minutes",
        "aggregations": "orders:count,price:sum:revenue"
      }
    }
  ],
  "load": {
    "sinkType": "postgresql",
    "table": "sales.orders_per_5_minutes",
    "writeMode": "append",
    "autoCreateTable": true,
    "credentialId": "warehouse"
  },
  "streamingConfigJson": {
    "checkpointLocation": "/data/checkpoints/orders-per-5-minutes",
    "queryName": "orders-per-5-minutes",
    "outputMode": "append",
    "triggerMode": "availablenow",
    "watermark": {"eventTimeColumn": "created_at", "delayThreshold": "10 minutes"}
  }
}"""

_INTRODUCTION = f"""# Configuration

<!-- Written by `python -m spark_jobs.contracts.config.reference docs/reference`; edit the models, not this page. -->

A pipeline is one JSON file. `etl-pipeline validate FILE` says everything that is wrong with it at once, each with its
JSON path, what was found, what was expected and the nearest known name. `etl-pipeline schema` prints the
[JSON Schema]({SCHEMA}) for editors; a file names it with `"$schema": "…/{SCHEMA}"`.

```json
{EXAMPLE}
```

- **Spelling.** Every key may be written in camelCase or in snake_case, but only once. Numbers and booleans may be texts
  (`"20"`, `"true"`). Enumerations are read in any case, with or without `_`, `-` and spaces. Lists of columns are one
  text with commas between them, or a list (needed when a name holds a comma). An unknown key is an error.
- **Variables.** `${{name}}` in any text is replaced by `--var name=value`, by the operator's `variables`, or by the
  file's own `variables`, in this order. An unknown variable is an error, and so is one that is given but not used.
  `$${{name}}` stands for the text `${{name}}`. Keys are never replaced.
- **Secrets** never stand in the file, nor in variables: `credentialId` names an Airflow connection (outside Airflow:
  `AIRFLOW_CONN_<ID>`). A password, token, key, JAAS line or a URL with a password in the file is an error.
- **Durations** are `<number> <unit>`, once or several times: `10 minutes`, `1 hour 30 minutes`. Units: microseconds,
  milliseconds, seconds, minutes, hours, days, weeks.
- **Schemas** are Spark DDL (`"id BIGINT, name STRING"`) or Spark's JSON form.
- **Aggregations** are `column:function` or `column:function:output`. The result is named after its column; where
  that is ambiguous (two functions of one column, or a group column), it must be named. `name:count` where no such
  column exists counts rows, and so does `*:count:name`. A windowed result has `window_start` and `window_end`, too.
"""


def configuration_page() -> str:
    """Return the page's text."""
    schema = published_schema()
    parts = [_INTRODUCTION, _modes()]
    steps = {model: name for name, (_, model) in transform_models().items()}
    for model in models():
        if model not in steps:
            parts.append(_section(model, schema, f"## {_title(model)}"))
        if model.__name__ == "Extract":
            parts.append(_transforms(schema))
    parts.append(_not_yet())
    return "\n".join(parts)


def schema_text() -> str:
    """Return the JSON Schema's text."""
    return json.dumps(published_schema(), indent=2, ensure_ascii=False) + "\n"


def write(directory: Path) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PAGE).write_text(configuration_page(), encoding="utf-8")
    (directory / SCHEMA).write_text(schema_text(), encoding="utf-8")


def _modes() -> str:
    rows = [
        f"| `{mode}` | {' or '.join(f'`{write}`' for write in FITTING[mode])} | {_ABOUT[mode]} |" for mode in FITTING
    ]
    title = "## Output mode and write mode\n\nThey fit together by this table; all else is refused."
    return "\n".join([title, "", "| `outputMode` | `writeMode` | conditions |", "|---|---|---|", *rows, ""])


_ABOUT = {
    OutputMode.APPEND: "with an aggregation: a watermark, and a window (or group column) on its column",
    OutputMode.UPDATE: "an aggregation; `keys` are the group columns (with a window, also `window_start`)",
    OutputMode.COMPLETE: "an aggregation; with `upsert`, `keys` as for `update`",
}


def _title(model: type[Section]) -> str:
    if model is PipelineConfig:
        return "Pipeline"
    if model is Aggregation:
        return "An object in `aggregations`"
    return next((f"`{path}`" for path, inner in _paths() if inner is model), model.__name__)


def _paths() -> Iterator[tuple[str, type[Section]]]:
    """Yield the key, from the document's root, under which each model stands."""
    pending: list[tuple[str, type[Section]]] = [("", PipelineConfig)]
    while pending:
        prefix, model = pending.pop(0)
        for given, key in keys_of(model).items():
            if key.section and given == key.name:
                path = f"{prefix}.{given}" if prefix else given
                yield path, key.section
                pending.append((path, key.section))


def _section(model: type[Section], schema: dict[str, Any], heading: str) -> str:
    description = " ".join((model.__doc__ or "").replace("``", "`").split())
    own = schema if model is PipelineConfig else schema["$defs"][model.__name__]
    lines = [heading, "", description, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        alias = field.alias or name
        also = [other for other, key in model.also_spelled.items() if key == alias]
        spelled = "".join(f", `{other}`" for other in also)
        if alias != to_snake(alias):
            spelled += f" (`{to_snake(alias)}`)"
        kind = "object" if alias == "parameters" else _kind(own["properties"][alias])
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        lines.append(f"| `{alias}`{spelled} | {kind} | {default} | {field.description} |".replace("||", "\\|\\|"))
    return "\n".join([*lines, ""])


def _transforms(schema: dict[str, Any]) -> str:
    parts = ["## `transforms`", "", "A list; each step has `transformType` and `parameters`.", ""]
    for name, (step, model) in transform_models().items():
        parts += [f"### `{name}`", "", " ".join((step.__doc__ or "").split()), ""]
        parts.append(_section(model, schema, f"`parameters` of `{name}`:"))
    return "\n".join(parts)


def _not_yet() -> str:
    known = {
        "sources": PLANNED_SOURCES,
        "file formats": PLANNED_FORMATS,
        "transforms": PLANNED_TRANSFORMS,
        "sinks": PLANNED_SINKS,
    }
    lines = ["## Not supported yet", "", "These names are read, and refused with exit code 3 before anything runs:", ""]
    lines += [f"- {kind}: {', '.join(f'`{name}`' for name in names)}" for kind, names in known.items()]
    lines += ["- and the settings that say so in the tables above.", ""]
    lines += ["## `load.connectionParams`", "", ", ".join(f"`{name}`" for name in CONNECTION_PARAMS) + ".", ""]
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None or value in ((), {}, ""):
        return "–"
    return f"`{json.dumps(value)}`" if isinstance(value, bool | int | float) else f"`{value}`"


def _kind(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema accepts."""
    reference = schema.get("$ref") or schema.get("then", {}).get("$ref")
    if reference:
        return _link(reference)
    branches = [branch for branch in schema.get("anyOf", [schema]) if branch.get("type") != "null"]
    branches = [branch for branch in branches if branch.get("pattern") != r"\$\{[^{}]+\}"]
    first = branches[0]
    if "anyOf" in first:
        return _kind(first)
    if "enum" in first:
        return "one of the names"
    if "10 minutes" in first.get("examples", ()):
        return "duration"
    kinds = [kind for branch in branches for kind in _as_list(branch.get("type", "text"))]
    if set(kinds) & {"integer", "number", "boolean"}:
        kinds = kinds[:1]
    names = {"string": "text", "array": "list", "integer": "whole number", "boolean": "true or false"}
    return " or ".join(dict.fromkeys(names.get(kind, kind) for kind in kinds))


def _link(reference: str) -> str:
    name = reference.rpartition("/")[2]
    path = next((path for path, model in _paths() if model.__name__ == name), name)
    return f"[object](#{path.replace('.', '').lower()})"


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))
