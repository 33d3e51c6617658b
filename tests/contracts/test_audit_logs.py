"""Spark's checkpoint logs as text: what was written is read again, and what was cut off is never taken for whole."""

from __future__ import annotations

import contextlib
import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import CheckpointFolder
from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.contracts.audit.checkpoint import FileSum, Heads, SourceLog, read_image, sum_files
from spark_jobs.contracts.audit.files import LocalFiles
from spark_jobs.contracts.audit.logs import (
    TornError,
    check_commit,
    parse_metadata,
    parse_planned,
    read_text,
    source_entries,
)

# Java's text has no half of a surrogate pair; line separators of Unicode are part of a path.
texts = some.text(some.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
offsets = some.one_of(
    some.none(),
    some.integers(0, 2**63 - 1),
    some.builds(lambda n: {"logOffset": n}, some.integers(0, 2**31)),
    some.dictionaries(texts, some.dictionaries(some.integers(0, 99).map(str), some.integers(0, 2**63 - 1), min_size=1)),
)
entries = some.lists(some.tuples(texts, some.integers(0, 2**31)), max_size=8)


def _offsets_text(watermark: int, planned: int, ends: list[Any], *, ascii_only: bool) -> str:
    times = {"batchWatermarkMs": watermark, "batchTimestampMs": planned, "conf": {"a": "b"}}
    lines = ["-" if end is None else json.dumps(end, ensure_ascii=ascii_only) for end in ends]
    return "\n".join(["v1", json.dumps(times), *lines])


@given(
    some.integers(0, 2**63 - 1),
    some.integers(0, 2**63 - 1),
    some.lists(offsets, min_size=1, max_size=3),
    some.booleans(),
)
def test_the_offset_log_is_read_as_it_was_written(
    watermark: int, planned: int, ends: list[Any], ascii_only: bool
) -> None:
    found = parse_planned(_offsets_text(watermark, planned, ends, ascii_only=ascii_only))
    assert (found.watermark_ms, found.planned_ms, list(found.sources)) == (watermark, planned, ends)


@given(
    some.dictionaries(texts, some.dictionaries(some.just("0"), some.integers(0, 99), min_size=1), min_size=1),
    some.data(),
)
def test_offsets_that_are_cut_off_are_torn(end: Any, data: Any) -> None:
    text = _offsets_text(0, 1, [end], ascii_only=False)
    cut = data.draw(some.integers(0, len(text) - 1))
    with pytest.raises(TornError):
        parse_planned(text[:cut])


@given(texts, some.data())
def test_metadata_is_read_whole_or_not(query_id: str, data: Any) -> None:
    text = json.dumps({"id": query_id})
    assert parse_metadata(text) == query_id
    with pytest.raises(TornError):
        parse_metadata(text[: data.draw(some.integers(0, len(text) - 1))])


@pytest.mark.parametrize("text", ["", "{}", '{"id": ""}', '{"id": 7}', "[]", '"q"', "v1\n{}", '{"id": "q"} x'])
def test_what_is_no_metadata_is_refused(text: str) -> None:
    with pytest.raises(TornError):
        parse_metadata(text)


@pytest.mark.parametrize("text", ["", "v1", "v1\n", "v\n{}", '{"nextBatchWatermarkMs":0}', "v1\n{", "v1\n[]"])
def test_what_is_no_commit_is_refused(text: str) -> None:
    with pytest.raises(TornError):
        check_commit(text)
    check_commit('v2\n{"nextBatchWatermarkMs":0,"stateUniqueIds":{}}')


@given(entries, some.booleans(), some.booleans())
def test_the_source_log_is_read_as_it_was_written(
    written: list[tuple[str, int]], ascii_only: bool, last_break: bool
) -> None:
    lines = [
        json.dumps({"path": path, "timestamp": 1, "batchId": number}, ensure_ascii=ascii_only)
        for path, number in written
    ]
    stream = io.BytesIO(("\n".join(["v1", *lines]) + "\n" * last_break).encode())
    assert [(entry.path, entry.number) for entry in source_entries(stream)] == written


@given(entries.filter(bool), some.data())
def test_a_source_log_that_is_cut_off_gives_fewer_files_or_is_torn(written: list[tuple[str, int]], data: Any) -> None:
    lines = [json.dumps({"path": path, "timestamp": 1, "batchId": number}) for path, number in written]
    content = "\n".join(["v1", *lines]).encode()
    cut = content[: data.draw(some.integers(0, len(content) - 1))]
    try:
        found = [(entry.path, entry.number) for entry in source_entries(io.BytesIO(cut))]
    except TornError:
        return
    assert found == written[: len(found)]
    assert len(found) < len(written)


@given(some.binary(max_size=60))
def test_no_bytes_are_more_than_torn(content: bytes) -> None:
    for parse in (parse_metadata, parse_planned, check_commit):
        with contextlib.suppress(TornError):
            parse(read_text(io.BytesIO(content)))
    with contextlib.suppress(TornError):
        list(source_entries(io.BytesIO(content)))


def test_a_line_without_an_end_is_not_read_into_memory() -> None:
    endless = io.BytesIO(b"v1\n" + b'{"path":"' + b"a" * 5_000_000)
    with pytest.raises(TornError):
        list(source_entries(endless))
    assert endless.tell() < 2_000_000


@given(some.lists(some.text(max_size=10), max_size=20), some.randoms())
def test_sums_of_files_do_not_depend_on_their_order(paths: list[str], random: Any) -> None:
    one, other = FileSum(), FileSum()
    shuffled = list(paths)
    random.shuffle(shuffled)
    for path in paths:
        one.add(path.encode("utf-8", "replace").decode())
    for path in shuffled:
        other.add(path.encode("utf-8", "replace").decode())
    assert one == other
    other.add("more")
    assert one != other
    first = sha256(b"a").digest()[:8]
    alone = FileSum()
    alone.add("a")
    assert alone == FileSum(1, int.from_bytes(first, "big", signed=True))


@given(some.sets(some.integers(0, 120), min_size=1), some.integers(0, 40))
def test_holes_are_what_is_missing_among_the_newest(numbers: set[int], first: int) -> None:
    there = tuple(sorted(number + first for number in numbers))
    holes = Heads(there, there).holes()
    newest = set(there[-100:])
    expected = set(range(max(min(newest), there[-1] - 99), there[-1])) - newest
    assert bool(holes) == bool(expected)


@pytest.mark.parametrize(
    ("offsets", "commits", "found"),
    [
        ((), (), []),
        ((0,), (), []),
        ((0, 1), (0,), []),
        ((5, 6, 7), (5, 6), []),
        ((0, 1), (), ["offsets/1, and nothing"]),
        ((5, 6, 7), (5,), ["offsets/7, and nothing after commits/5"]),
        ((5, 6), (5, 6, 7), ["commits/7, and no offsets/7"]),
        ((), (0,), ["commits/0, and no offsets/0"]),
        ((0, 1, 4, 5, 9), (0, 1, 4, 5, 9), ["offsets/2-3, 6-8 missing", "commits/2-3, 6-8 missing"]),
        # Spark removes old ones some after the other.
        ((3, *range(10, 120)), tuple(range(10, 120)), []),
    ],
)
def test_heads_of_the_logs(offsets: tuple[int, ...], commits: tuple[int, ...], found: list[str]) -> None:
    assert Heads(offsets, commits).holes() == found


def _log(folder: Path, first: int, last: int) -> list[tuple[str, int]]:
    log = SourceLog(LocalFiles("here", folder), first, last)
    return [(entry.path, entry.number) for entry in log.entries()]


def test_a_compacted_log_is_read_once(tmp_path: Path) -> None:
    made = CheckpointFolder(tmp_path)
    for number in range(12):
        # Spark keeps the old entries for ten minutes beside the file that has them.
        made.files(number, [f"f{number}"])
    made.remove("sources/0/9")
    made.files(9, (), compacted=[(f"f{number}", number) for number in range(10)])
    assert sorted(_log(tmp_path, 0, 11)) == sorted((f"f{number}", number) for number in range(12))
    assert sorted(_log(tmp_path, 4, 10)) == sorted((f"f{number}", number) for number in range(4, 11))
    assert _log(tmp_path, 10, 11) == [("f10", 10), ("f11", 11)]
    sums = sum_files(SourceLog(LocalFiles("here", tmp_path), 0, 11).entries(), [(-1, 4), (5, 10), (6, 11)])
    assert {batch: one.files for batch, one in sums.items()} == {-1: 5, 5: 6, 6: 1}
    made.remove("sources/0/10")
    with pytest.raises(TornError, match="sources/0/10 is missing"):
        _log(tmp_path, 0, 11)


def test_an_image_names_what_cannot_be_read(tmp_path: Path) -> None:
    made = CheckpointFolder(tmp_path, "q7")
    made.batches(*range(3))
    (tmp_path / "offsets" / ".2.1c6e.tmp").write_text("half")
    image = read_image(LocalFiles("here", tmp_path))
    assert (image.query_id, image.heads, image.damage) == ("q7", Heads((0, 1, 2), (0, 1, 2)), [])
    assert image.planned[2].sources == ({"orders": {"0": 30}},)
    (tmp_path / "offsets" / "1").write_bytes(b"v1\n\xff")
    [damage] = read_image(LocalFiles("here", tmp_path)).damage
    assert damage.startswith("offsets/1: no UTF-8")
