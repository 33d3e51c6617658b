"""Where a checkpoint's files are, as Airflow reaches them: by its connections to object stores."""

from __future__ import annotations

from spark_jobs.contracts.audit.files import CheckpointFiles, StoredFiles, local_files, scheme_of
from spark_jobs.contracts.audit.storage import open_files, storage_uri, unknown_storage


class CheckpointStorage:
    """Opens locations: the worker's own disk, object stores by Airflow's ``ObjectStoragePath``, the rest by fsspec.

    :param conn_id: Airflow connection to the object store; its provider's default when None.
    """

    def __init__(self, conn_id: str | None = None) -> None:
        self.conn_id = conn_id

    def __call__(self, location: str) -> CheckpointFiles:
        """Return the location's files.

        :raises CheckpointUnreadableError: its scheme cannot be read here.
        """
        found = local_files(location)
        if found is not None:
            return found
        try:
            from airflow.sdk import ObjectStoragePath  # noqa: PLC0415 - brings fsspec, of which a DAG file has no need
            from airflow.sdk.io import has_fs  # noqa: PLC0415

            uri = storage_uri(location)
            if not has_fs(scheme_of(uri)) and self.conn_id is None and not _is_attached(scheme_of(uri)):
                return open_files(location)
            path = ObjectStoragePath(uri, conn_id=self.conn_id)
            storage, root = path.fs, str(path.path)
        except Exception as error:  # of each provider its own: a package or a connection is missing
            raise unknown_storage(location, error) from error
        return StoredFiles(location, storage, root)


def _is_attached(scheme: str) -> bool:
    from airflow.sdk.io.store import _STORE_CACHE  # noqa: PLC0415

    return scheme in _STORE_CACHE
