"""Pipeline files as DAGs: one DAG for each JSON file, and a broken file breaks only its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from airflow.exceptions import SerializationError
from airflow.sdk import DAG, AssetAlias, Param

from airflow_etl_provider.assets import target_alias
from spark_jobs.contracts.config import PipelineConfig, load_pipeline, require_supported
from spark_jobs.contracts.errors import ConfigError, EtlError

_NOT_IN_A_DAG_ID = re.compile(r"[^A-Za-z0-9_.\-]+")


@dataclass(frozen=True)
class PipelineFile:
    """One pipeline file, read; ``config`` is None when it is broken, and ``error`` says why."""

    path: Path
    dag_id: str
    config: PipelineConfig | None = None
    error: str = ""

    @property
    def description(self) -> str:
        """The pipeline's name, for the list of DAGs."""
        return self.config.title if self.config else f"{self.path.name} is broken: see its details"

    @property
    def tags(self) -> list[str]:
        """Kind of source and target; ``broken`` when the file is."""
        if self.config is None:
            return ["etl", "broken"]
        return ["etl", self.config.extract.source_type, self.config.load.sink_type]

    @property
    def outlets(self) -> list[AssetAlias]:
        """The target table: an event when rows were committed."""
        return [target_alias(self.config.pipeline_id)] if self.config else []

    @property
    def params(self) -> dict[str, Param]:
        """What a person may change when triggering: the file's variables, and what to do about a lost checkpoint."""
        defaults = dict(self.config.variables or {}) if self.config else {}
        return {
            "variables": Param(
                defaults, type="object", description="Values for ${name} in the pipeline file. Never secrets."
            ),
            "resume": Param(
                "none",
                enum=["none", "from_ledger", "accept_new_checkpoint"],
                description="When the checkpoint is lost: stop; go on from the ledger's offsets; start over.",
            ),
        }

    @property
    def doc_md(self) -> str:
        """What the pipeline does, or what is wrong with its file."""
        if self.config is None:
            return f"### {self.path.name} is broken\n\n```\n{self.error}\n```\n\nIt cannot run until that is corrected."
        config = self.config
        rows = {
            "Source": config.extract.source_type,
            "Transforms": ", ".join(step.transform_type for step in config.transforms) or "none",
            "Target": f"{config.load.target} ({config.load.write_mode}), connection `{config.load.credential_id}`",
            "File": f"`{self.path.name}`",
        }
        if config.streaming is not None:
            rows["Trigger"] = f"{config.streaming.trigger}, output mode {config.streaming.output_mode}"
            rows["Checkpoint"] = f"`{config.streaming.checkpoint_location}`"
        table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
        return f"### {config.title}\n\n| | |\n|---|---|\n{table}\n"


def dags_from_files(folder: Path, build: Callable[[PipelineFile], DAG]) -> Iterator[DAG]:
    """Yield a DAG for each ``*.json`` in ``folder``, made by ``build``.

    For a broken file two are yielded. One is made by ``build`` as well, so that the DAG keeps its name and its
    history: it starts paused, says what is wrong in its details, and a task in it fails with the same words. The other
    exists to make the error an import error under the file's own path. Airflow's dag-processor drops such errors
    whenever it looks for new files and shows them again when it next parses the DAG file, so that list alone would
    have holes.
    """
    for file in read_pipeline_files(folder):
        dag = build(file)
        if file.error:
            dag.is_paused_upon_creation = True
            yield _ImportError(file)
        yield dag


def read_pipeline_files(folder: Path) -> list[PipelineFile]:
    """Read every ``*.json`` in ``folder``, in order of name. Never raises for what a file holds."""
    files = [_read(path) for path in sorted(folder.glob("*.json"))]
    times = Counter(file.dag_id for file in files)
    return [_ambiguous(file) if times[file.dag_id] > 1 else file for file in files]


def _read(path: Path) -> PipelineFile:
    try:
        config = load_pipeline(path, {})
        require_supported(config)
    except EtlError as error:
        return PipelineFile(path, _dag_id(_pipeline_id_in(path)), error=str(error))
    except Exception as error:  # noqa: BLE001 - whatever one file does must not take the other files' DAGs away
        return PipelineFile(
            path, _dag_id(path.stem), error=f"{path.name} cannot be read. Found: {type(error).__name__}."
        )
    return PipelineFile(path, _dag_id(config.pipeline_id), config)


def _ambiguous(file: PipelineFile) -> PipelineFile:
    error = ConfigError(
        f"Several pipeline files have the pipelineId of {file.path.name}",
        found=f"'{file.dag_id}' more than once",
        expected="one file for each pipelineId: checkpoint, ledger and DAG hang on it",
        cure="change pipelineId in all but one of the files",
    )
    return PipelineFile(file.path, _dag_id(f"{file.dag_id}.{file.path.stem}"), error=str(error))


def _pipeline_id_in(path: Path) -> str:
    """Return the pipelineId of a broken file where it can be read, so that its DAG keeps its name; else the file's."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return path.stem
    found = document.get("pipelineId", document.get("pipeline_id")) if isinstance(document, dict) else None
    return found if isinstance(found, str) and found else path.stem


def _dag_id(name: str) -> str:
    return _NOT_IN_A_DAG_ID.sub("_", name)[:200]


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


class _FileError(SerializationError):
    """A broken pipeline file, as the list of import errors shows it."""


class _ImportError(DAG):
    """A DAG that is never stored: serialising it fails with the file's error, which Airflow lists under its path."""

    def __init__(self, file: PipelineFile) -> None:
        self._file = file
        super().__init__(dag_id=f"{file.dag_id}.import-error", schedule=None)

    @property
    def relative_fileloc(self) -> str:
        """The pipeline file's path as Airflow names files: relative to the bundle of DAG files."""
        return str(self._relative)

    @relative_fileloc.setter
    def relative_fileloc(self, of_dag_file: str | None) -> None:
        # Airflow sets the DAG file's path; the pipeline file's is told from where the two lie.
        self._relative: Path = self._file.path
        if of_dag_file and self.fileloc:
            folder = Path(self.fileloc).parent
            if self._file.path.is_relative_to(folder):
                self._relative = Path(of_dag_file).parent / self._file.path.relative_to(folder)

    def get_serialized_fields(self) -> NoReturn:  # type: ignore[override]
        """Fail with the file's error: the first thing that Airflow asks of a DAG that it is about to store."""
        raise _FileError(f"{self._file.path.name}: {self._file.error}")
