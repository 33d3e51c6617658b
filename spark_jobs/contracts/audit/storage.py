"""Storages of other machines, by fsspec and the package that it takes for each scheme."""

from __future__ import annotations

from typing import Final

from spark_jobs.contracts.audit.files import CheckpointFiles, StoredFiles, local_files, scheme_of
from spark_jobs.contracts.errors import CheckpointUnreadableError
from spark_jobs.contracts.redaction import mask

# Hadoop's names of what fsspec calls otherwise.
_HADOOP_NAMES: Final = {"s3a": "s3", "s3n": "s3"}
_PACKAGES: Final = {
    "s3": "s3fs (Airflow: apache-airflow-providers-amazon[s3fs])",
    "gs": "gcsfs (Airflow: apache-airflow-providers-google)",
    "abfs": "adlfs (Airflow: apache-airflow-providers-microsoft-azure)",
    "abfss": "adlfs (Airflow: apache-airflow-providers-microsoft-azure)",
    "hdfs": "pyarrow, and Hadoop's libhdfs with a JVM; or name the same folder as webhdfs://",
}


def open_files(location: str) -> CheckpointFiles:
    """Return the location's files: of this machine by its own means, of others by fsspec's.

    fsspec finds credentials as its packages do: in the environment, or in their own files.

    :raises CheckpointUnreadableError: its scheme cannot be read here.
    """
    found = local_files(location)
    if found is not None:
        return found
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - for storages of other machines only

        storage, root = url_to_fs(storage_uri(location))
    except Exception as error:  # of each storage its own: a package, credentials or libraries are missing
        raise unknown_storage(location, error) from error
    return StoredFiles(location, storage, root)


def storage_uri(location: str) -> str:
    """Return a location as fsspec spells it: ``s3a://`` is Hadoop's name for ``s3://``."""
    scheme = scheme_of(location)
    return f"{_HADOOP_NAMES.get(scheme, scheme)}{location[len(scheme) :]}"


def unknown_storage(location: str, error: Exception) -> CheckpointUnreadableError:
    """Return the error for a scheme that cannot be read here, with what to install."""
    scheme = scheme_of(location)
    package = _PACKAGES.get(_HADOOP_NAMES.get(scheme, scheme), f"the package with fsspec's file system for {scheme}://")
    # An error of a library that was not found names all places where it was not, a line for each.
    said = (str(error).splitlines() or [""])[0]
    return CheckpointUnreadableError(
        f"{location} cannot be read from here",
        found=mask(f"{type(error).__name__}: {said}"),
        expected=f"a file system for {scheme}://, installed and logged in where the audit runs",
        cure=f"install {package} there; or audit it elsewhere with `etl-pipeline audit`, or from a copy that "
        "`checkpoint` (--checkpoint) names",
    )
