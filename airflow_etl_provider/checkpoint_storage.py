"""Where a checkpoint's files are, as Airflow reaches them: by its connections to object stores."""

from __future__ import annotations

from spark_jobs.contracts.audit.files import CheckpointFiles, StoredFiles, local_files
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
            from airflow.sdk import ObjectStoragePath

            path = ObjectStoragePath(storage_uri(location), conn_id=self.conn_id)
            storage, root = path.fs, str(path.path)
        except ValueError as error:
            if self.conn_id is not None:
                raise unknown_storage(location, error) from error
            # No provider of Airflow's has the scheme.
            return open_files(location)
        except Exception as error:  # of each provider its own: a package or a connection is missing
            raise unknown_storage(location, error) from error
        return StoredFiles(location, storage, root)
