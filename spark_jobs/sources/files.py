"""Files that arrive in a folder: JSON lines, CSV, Parquet.

A file is read once, when it first appears. Its rows name it as ``_file``, and where Spark began to read as
``_block_start``, in bytes; Parquet numbers them instead (``_row``, from 0).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from py4j.protocol import Py4JJavaError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType
from typing_extensions import override

from spark_jobs.contracts.errors import ConfigError, SourceUnreachableError
from spark_jobs.contracts.tracker.records import SourceFile
from spark_jobs.rows import LETTER, LETTER_ID, OUTCOME, RAW, Outcome, letter, letter_again, outcome, raw_record
from spark_jobs.sources.base import BatchSize, OffsetRange, Source
from spark_jobs.sources.json_values import drop_working_columns, error_class, parse_json

_CORRUPT = "__corrupt"
# Options that only a stream has.
_STREAM_ONLY = {
    "maxfilespertrigger", "maxbytespertrigger", "latestfirst", "maxfileage", "maxcachedfiles", "cleansource",
    "discardcachedinputratio", "sourcearchivedir", "filenameonly",
}  # fmt: skip
# Measured from the newest file there is, which may have a time stamp of any clock's.
_NEVER_OLD = "100000000d"
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".snappy", ".deflate", ".xz")


class FileSource(Source):
    """What the three formats share. Coordinates of a row: ``_file`` and ``_block_start``, of Parquet ``_row``."""

    format: ClassVar[str]
    defaults: ClassVar[Mapping[str, str]] = {}
    coordinates: tuple[str, ...] = ("_file", "_block_start")
    own_columns: tuple[str, ...] = ("_file", "_block_start")
    own_columns_on_demand = True

    def __init__(self, spark: SparkSession, schema: StructType, options: Mapping[str, str], path: str) -> None:
        self._spark = spark
        self._schema = schema
        self._path = path
        given = {name.lower() for name in options}
        # Spark forgets files older than `maxFileAge` (7 days) and ignores them without a word when they appear late.
        defaults = {"maxFileAge": _NEVER_OLD, **self.defaults}
        self._options = {**{k: v for k, v in defaults.items() if k.lower() not in given}, **options}

    @override
    def check(self) -> None:
        jvm: Any = self._spark._jvm
        try:
            path = jvm.org.apache.hadoop.fs.Path(self._path)
            statuses = path.getFileSystem(self._spark._jsc.hadoopConfiguration()).globStatus(path)
        except Py4JJavaError as error:
            raise SourceUnreachableError(
                f"The path {self._path} cannot be read",
                found=str(error.java_exception.getMessage()),
                expected="extract.connectionParams.path, readable by Spark",
                cure="Check the path, its scheme and the permissions",
            ) from error
        if not statuses:
            raise SourceUnreachableError(
                f"The path {self._path} does not exist",
                expected="extract.connectionParams.path: a folder (or a pattern that matches one)",
                cure="Create the folder, or correct the path or the variable it comes from",
            )

    @override
    def stream(self) -> DataFrame:
        reader = self._spark.readStream.format(self.reader_format).options(**self._options)
        return self.sort(reader.schema(self.reader_schema).load(self._path))

    @override
    def read_range(self, offsets: OffsetRange) -> DataFrame:
        options = {name: value for name, value in self._options.items() if name.lower() not in _STREAM_ONLY}
        options["__globPaths__"] = "false"
        if not set("*?[{") & set(self._path):
            options.setdefault("basePath", self._path)
        paths = [self._decoded(file.path) for file in offsets.files]
        reader = self._spark.read.format(self.reader_format).options(**options)
        return self.sort(reader.schema(self.reader_schema).load(paths))

    @override
    def gone(self, ranges: Sequence[OffsetRange]) -> list[str]:
        return [self._gone(offsets.files) for offsets in ranges]

    def _gone(self, files: Sequence[SourceFile]) -> str:
        jvm: Any = self._spark._jvm
        for file in files:
            path = jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI(file.path))
            try:
                found = path.getFileSystem(self._spark._jsc.hadoopConfiguration()).getFileStatus(path)
            except Py4JJavaError as error:
                return f"{file.path}: {error.java_exception.getClass().getSimpleName()}"
            modified_at = datetime.fromtimestamp(int(found.getModificationTime()) / 1000, UTC)
            if (int(found.getLen()), modified_at) != (file.size_bytes, file.modified_at):
                return (
                    f"{file.path} is another file: {found.getLen()} bytes of {modified_at.isoformat()}, "
                    f"and was {file.size_bytes} bytes of {file.modified_at.astimezone(UTC).isoformat()}"
                )
        return ""

    def _decoded(self, path: str) -> str:
        # The source log keeps URL-encoded paths; the reader wants them as the file system has them.
        jvm: Any = self._spark._jvm
        return str(jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI(path)).toString())

    @override
    def identity(self) -> dict[str, Any]:
        return {"source": "file", "format": self.format, "path": self._path}

    @override
    def size(self, offsets: OffsetRange) -> BatchSize:
        total = sum(file.size_bytes for file in offsets.files)
        # Each row of a text file takes two bytes at least, its line break among them; compressed files say nothing.
        text = self.format in ("csv", "json") and not any(f.path.endswith(_COMPRESSED) for f in offsets.files)
        return BatchSize(rows=total // 2 + len(offsets.files) if text else None, data_bytes=total)

    @property
    def reader_format(self) -> str:
        """Spark's name of the format that is read."""
        return self.format

    @property
    def reader_schema(self) -> StructType:
        """The schema that Spark's reader gets."""
        return self._schema

    @abstractmethod
    def sort(self, raw: DataFrame) -> DataFrame:
        """Give each row its outcome and its coordinates."""

    def _letter(self, rows: DataFrame, error: Column, raw: Column) -> Column:
        if LETTER_ID in rows.columns:
            return letter_again(stage="parse", error_class=error_class(error), message=error)
        return letter(
            stage="parse",
            error_class=error_class(error),
            message=error,
            source=F.struct(*(F.col(name).alias(name.removeprefix("_")) for name in self.coordinates)),
            raw_value=raw,
        )


class JsonLinesFiles(FileSource):
    """One JSON object a line. Blank lines are no rows."""

    format = "json"
    keeps_raw = True
    reader_format = "text"

    @property
    @override
    def reader_schema(self) -> StructType:
        return StructType([StructField("value", StringType())])

    @override
    def sort(self, raw: DataFrame) -> DataFrame:
        return self._sorted(
            raw.filter(F.trim(F.col("value")) != "").select(
                F.col("value").alias("__value"),
                F.col("_metadata.file_path").alias("_file"),
                F.col("_metadata.file_block_start").alias("_block_start"),
            )
        )

    @override
    def read_letters(self, letters: DataFrame) -> DataFrame:
        return self._sorted(letters.select(LETTER_ID, F.col("raw_value").alias("__value"), *_place(letters)))

    def _sorted(self, rows: DataFrame) -> DataFrame:
        options = {name: value for name, value in self._options.items() if name.lower() not in _STREAM_ONLY | {"path"}}
        parsed = parse_json(rows, "__value", self._schema, options)
        error = F.col("__error")
        bad = error.isNotNull()
        sorted_out = (
            parsed.frame.withColumn("__error", parsed.error)
            .withColumn(OUTCOME, F.when(bad, outcome(Outcome.DEAD_LETTER)).otherwise(outcome(Outcome.PASSED)))
            .withColumn(LETTER, F.when(bad, self._letter(rows, error, F.col("__value").cast("binary"))))
            .withColumn(RAW, raw_record(F.col("__value").cast("binary")))
        )
        return drop_working_columns(sorted_out).drop("__value", "__error")


class CsvFiles(FileSource):
    """CSV as RFC 4180 has it: quotes are doubled and a quoted field may hold line breaks.

    The header is compared with the schema: a file whose columns are named or ordered otherwise ends the run.
    """

    format = "csv"
    defaults: ClassVar[Mapping[str, str]] = {
        # Without it a quoted line break gives one truncated row that looks good and one that does not.
        "multiLine": "true",
        "escape": '"',
        "enforceSchema": "false",
        "columnPruning": "false",
        "mode": "PERMISSIVE",
    }

    def __init__(self, spark: SparkSession, schema: StructType, options: Mapping[str, str], path: str) -> None:
        mode = next((value for name, value in options.items() if name.lower() == "mode"), "PERMISSIVE")
        if mode.upper() != "PERMISSIVE":
            raise ConfigError(
                "extract.connectionParams.mode would lose rows, or stop at the first bad one",
                found=mode,
                expected="PERMISSIVE (or no mode at all): rows that do not fit the schema become dead letters",
                cure="Remove the key",
            )
        super().__init__(spark, schema, options, path)
        self._options["columnNameOfCorruptRecord"] = _CORRUPT

    @property
    @override
    def reader_schema(self) -> StructType:
        return StructType([*self._schema.fields, StructField(_CORRUPT, StringType())])

    @override
    def sort(self, raw: DataFrame) -> DataFrame:
        located = raw.withColumn("_file", F.col("_metadata.file_path")).withColumn(
            "_block_start", F.col("_metadata.file_block_start")
        )
        return self._sorted(located)

    @override
    def read_letters(self, letters: DataFrame) -> DataFrame:
        text = F.col("raw_value").cast("string")
        parsed = F.from_csv(text, self.reader_schema.toDDL(), self._record_options)
        rows = letters.select(LETTER_ID, text.alias("__value"), parsed.alias("__parsed"), *_place(letters))
        fields = [F.col("__parsed")[field.name].alias(field.name) for field in self._schema.fields]
        # Of a text without any field there is no struct at all.
        corrupt = F.when(F.col("__parsed").isNull(), F.col("__value")).otherwise(F.col("__parsed")[_CORRUPT])
        place = [name for name in self.own_columns if name in rows.columns]
        return self._sorted(rows.select(LETTER_ID, *fields, corrupt.alias(_CORRUPT), *place))

    @property
    def _record_options(self) -> dict[str, str]:
        left_out = _STREAM_ONLY | {"multiline", "header", "enforceschema", "columnpruning", "path"}
        return {name: value for name, value in self._options.items() if name.lower() not in left_out}

    def _sorted(self, located: DataFrame) -> DataFrame:
        bad = F.col(_CORRUPT).isNotNull()
        error = F.lit("MALFORMED_CSV: the line has other fields than the schema, or a value of another type")
        return (
            located.withColumn(OUTCOME, F.when(bad, outcome(Outcome.DEAD_LETTER)).otherwise(outcome(Outcome.PASSED)))
            .withColumn(LETTER, F.when(bad, self._letter(located, error, F.col(_CORRUPT).cast("binary"))))
            .drop(_CORRUPT)
        )


class ParquetFiles(FileSource):
    """Parquet. Types are checked by the file's own schema: a file that does not fit ends the run."""

    format = "parquet"
    coordinates = ("_file", "_row")
    own_columns = ("_file", "_row")
    makes_dead_letters = False

    @override
    def sort(self, raw: DataFrame) -> DataFrame:
        return (
            raw.withColumn("_file", F.col("_metadata.file_path"))
            .withColumn("_row", F.col("_metadata.row_index"))
            .withColumn(OUTCOME, outcome(Outcome.PASSED))
            .withColumn(LETTER, F.lit(None).cast("string"))
        )


def _place(letters: DataFrame) -> list[Column]:
    if "source" not in letters.columns:
        return []
    place = F.from_json("source", "file STRING, block_start BIGINT")
    return [place["file"].alias("_file"), place["block_start"].alias("_block_start")]


FORMATS: dict[str, type[FileSource]] = {source.format: source for source in (JsonLinesFiles, CsvFiles, ParquetFiles)}
