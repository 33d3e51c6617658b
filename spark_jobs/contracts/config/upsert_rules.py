"""Rules between the settings of an upsert."""

from __future__ import annotations

from collections.abc import Iterator

from spark_jobs.contracts.config.columns import Columns
from spark_jobs.contracts.config.enumerations import OnConflict, WriteMode
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.config.problems import nearest, quoted


def check(load: Load, result: Columns | None, document: Document) -> None:
    """Note what does not fit together; ``result`` has the query's columns where they are known."""
    given = list(_given(load))
    if load.write_mode is not WriteMode.UPSERT:
        for name, _ in given:
            found = f"{name} with writeMode {load.write_mode}"
            hint = 'did you mean "writeMode": "upsert"?'
            document.note(("load", name), found, f"no {name}: only upsert uses it", hint)
        return
    _check_roles(load, document)
    if result is None or result.known is None:
        return
    for name, columns in given:
        for column in columns:
            if column not in result.known:
                found = f"{quoted(column)}, which is no column of the result"
                expected = f"one of {', '.join(result.known)}"
                document.note(("load", name), found, expected, nearest(column, result.known))


def _given(load: Load) -> Iterator[tuple[str, tuple[str, ...]]]:
    if load.order_column:
        yield "orderColumn", (load.order_column,)
    if load.update_columns:
        yield "updateColumns", load.update_columns
    if load.on_conflict is not OnConflict.UPDATE:
        yield "onConflict", ()
    if load.delete_marker:
        yield "deleteMarker", (load.delete_marker,)


def _check_roles(load: Load, document: Document) -> None:
    keys = ", ".join(quoted(key) for key in load.keys)
    for column in load.update_columns:
        if column in load.keys:
            expected = f"columns beside the keys {keys}: a row is found by them, so they stay"
            document.note(("load", "updateColumns"), f"the key {quoted(column)}", expected)
    if load.update_columns and load.on_conflict is OnConflict.NOTHING:
        expected = "one of the two: nothing is updated with onConflict nothing"
        document.note(("load", "updateColumns"), "updateColumns with onConflict nothing", expected)
    if load.order_column in load.keys:
        expected = f"another column than the keys {keys}: rows of one key do not differ in it"
        document.note(("load", "orderColumn"), f"the key {quoted(load.order_column or '')}", expected)
    marker = load.delete_marker
    if marker and marker in (*load.keys, *load.update_columns, load.order_column):
        expected = "a column of its own: it says what becomes of a row, and is not written"
        document.note(("load", "deleteMarker"), f"{quoted(marker)}, which is used otherwise as well", expected)
