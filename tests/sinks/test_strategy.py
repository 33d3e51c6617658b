"""Which write strategy a batch gets, and the words why: case by case, and whatever comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from writing_means import ABLE, MANY, means, refusal

from spark_jobs.contracts.config import OutputMode, WriteMode, WriteStrategy
from spark_jobs.contracts.errors import ConfigError, EtlError, TwoPhaseUnavailableError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.sinks.ability import TwoPhase
from spark_jobs.sinks.strategy import Choice, Means, Result, choose
from spark_jobs.sources.base import BatchSize

AUTO, SINGLE, STAGED, TWO_PHASE = WriteStrategy
APPEND, OVERWRITE, UPSERT = WriteMode
FEW = BatchSize(rows=200_000)
MIB = 1 << 20


def totals(state: int | None = 0, *, mode: OutputMode = OutputMode.UPDATE, windows: int = 1) -> Result:
    return Result(mode, windows, state)


STATELESS: list[tuple[BatchSize, Means, WriteStrategy, str]] = [
    (BatchSize(rows=0), means(), SINGLE, "at most 0 rows: one task writes it at once"),
    (FEW, means(), SINGLE, "at most 200000 rows: one task writes it at once"),
    (FEW, means(UPSERT), SINGLE, "one task"),
    (FEW, means(OVERWRITE, replace(ABLE, obstacle="no")), SINGLE, "one task"),
    (BatchSize(data_bytes=64 * MIB), means(), SINGLE, "67108864 bytes of files: one task writes it at once"),
    (BatchSize(rows=3_000_000, data_bytes=64 * MIB), means(), SINGLE, "67108864 bytes of files"),
    (MANY, means(), TWO_PHASE, "at most 200001 rows: several tasks write it, in at most 4 parts"),
    (BatchSize(data_bytes=64 * MIB + 1), means(), TWO_PHASE, "67108865 bytes of files: several tasks write it"),
    (BatchSize(rows=1, data_bytes=64 * MIB + 1), means(), TWO_PHASE, "67108865 bytes of files"),
    (BatchSize(), means(), TWO_PHASE, "a batch of unknown size: several tasks write it"),
    (MANY, means(UPSERT), STAGED, "200001 rows: several tasks write it; not two_phase: writeMode upsert"),
    (MANY, means(OVERWRITE), STAGED, "not two_phase: writeMode overwrite"),
    (MANY, means(ability=replace(ABLE, obstacle="the table is odd")), STAGED, "not two_phase: the table is odd"),
    (MANY, means(ability=replace(ABLE, doubt="it might notify")), STAGED, "not two_phase: it might notify"),
    (MANY, means(ability=replace(ABLE, slots=1)), STAGED, "not two_phase: room for 1 prepared transaction"),
    (MANY, means(ability=replace(ABLE, slots=2)), TWO_PHASE, "in at most 2 parts"),
    (MANY, means(cores=100), TWO_PHASE, "in at most 8 parts"),
    (MANY, means(cores=100, asked=3), TWO_PHASE, "in at most 3 parts"),
    (MANY, means(asked=9), TWO_PHASE, "in at most 8 parts"),
    (MANY, means(ability=replace(ABLE, slots=2)), TWO_PHASE, "2 parts: no more prepared transactions are free"),
    (MANY, means(cores=1), SINGLE, "at most 200001 rows: one task writes it, as one task runs at a time"),
    (BatchSize(rows=10**9, partitions=1), means(), SINGLE, "one task writes it, as the source has one partition"),
    (BatchSize(partitions=1), means(UPSERT), SINGLE, "a batch of unknown size: one task writes it, as the source has"),
    (BatchSize(rows=10**9, partitions=3), means(), TWO_PHASE, "in at most 3 parts"),
    (BatchSize(rows=10**9, partitions=30), means(), TWO_PHASE, "in at most 4 parts"),
    (BatchSize(rows=10, partitions=30), means(), SINGLE, "one task writes it at once, and several read it"),
    (BatchSize(rows=10, partitions=1), means(), SINGLE, "at most 10 rows: one task writes it at once"),
]


@pytest.mark.parametrize(("size", "has", "strategy", "words"), STATELESS)
def test_a_stateless_batch_goes_by_its_size_and_by_what_there_is(
    size: BatchSize, has: Means, strategy: WriteStrategy, words: str
) -> None:
    choice = choose(AUTO, size, has)
    assert choice.strategy is strategy
    assert words in choice.reason


UPDATE, COMPLETE, CLOSING = OutputMode.UPDATE, OutputMode.COMPLETE, OutputMode.APPEND
RESULTS: list[tuple[int | None, Result, Means, WriteStrategy, str]] = [
    (50_000, totals(), means(UPSERT), SINGLE, "at most 50000 result rows"),
    (50_000, totals(None), means(UPSERT), SINGLE, "at most 50000 result rows"),
    (50_001, totals(), means(UPSERT), STAGED, "at most 50001 result rows; not two_phase: writeMode upsert"),
    (10_000, totals(windows=5), means(UPSERT), SINGLE, "at most 50000 result rows"),
    (10_000, totals(windows=6), means(UPSERT), STAGED, "at most 60000 result rows"),
    (10, totals(10**9), means(UPSERT), SINGLE, "at most 10 result rows"),
    (10, totals(49_990, mode=CLOSING), means(), SINGLE, "at most 50000 result rows"),
    (11, totals(49_990, mode=CLOSING), means(), TWO_PHASE, "at most 50001 result rows, in at most 4 parts"),
    (11, totals(None, mode=CLOSING), means(), TWO_PHASE, "result of unknown size, in at most 4 parts"),
    (None, totals(), means(UPSERT), STAGED, "result of unknown size; not two_phase: writeMode upsert"),
    (1, totals(10, mode=COMPLETE), means(OVERWRITE), SINGLE, "at most 11 result rows"),
    (1, totals(50_000, mode=COMPLETE), means(OVERWRITE), STAGED, "not two_phase: writeMode overwrite"),
    (1, totals(None, mode=COMPLETE), means(OVERWRITE), STAGED, "result of unknown size"),
]


@pytest.mark.parametrize(("rows", "result", "has", "strategy", "words"), RESULTS)
def test_an_aggregations_result_goes_by_its_bound(
    rows: int | None, result: Result, has: Means, strategy: WriteStrategy, words: str
) -> None:
    # The size of the files says nothing of the result's.
    choice = choose(AUTO, BatchSize(rows, data_bytes=1), has, result=result)
    assert choice.strategy is strategy
    assert words in choice.reason


@pytest.mark.parametrize(
    ("size", "has", "strategy", "words"),
    [
        (FEW, means(), STAGED, "failOnDataLoss=false: gaps are looked for before the commit"),
        (FEW, means(UPSERT), STAGED, "failOnDataLoss=false"),
        (MANY, means(), TWO_PHASE, "at most 200001 rows"),
        (MANY, means(UPSERT), STAGED, "not two_phase: writeMode upsert"),
    ],
)
def test_where_gaps_are_possible_the_driver_commits(
    size: BatchSize, has: Means, strategy: WriteStrategy, words: str
) -> None:
    choice = choose(AUTO, size, has, gaps_possible=True)
    assert choice.strategy is strategy
    assert words in choice.reason


def test_single_is_refused_where_gaps_must_be_recorded() -> None:
    with pytest.raises(ConfigError, match="could not record what the source has lost"):
        choose(SINGLE, FEW, means(), gaps_possible=True)
    assert choose(STAGED, FEW, means(), gaps_possible=True).strategy is STAGED


OBEYED: list[tuple[WriteStrategy, BatchSize, Means, Result | None, int]] = [
    (SINGLE, MANY, means(), None, 1),
    (SINGLE, BatchSize(), means(UPSERT), None, 1),
    (SINGLE, BatchSize(rows=50_000), means(UPSERT), totals(), 1),
    (STAGED, FEW, means(), None, 1),
    (STAGED, MANY, means(OVERWRITE, replace(ABLE, obstacle="no")), None, 1),
    (STAGED, MANY, means(UPSERT), totals(None), 1),
    (TWO_PHASE, FEW, means(), None, 4),
    (TWO_PHASE, BatchSize(), means(cores=100), totals(None), 7),
    (TWO_PHASE, MANY, means(asked=8), None, 8),
    (TWO_PHASE, MANY, means(asked=1), None, 1),
    (TWO_PHASE, MANY, means(ability=replace(ABLE, slots=1)), None, 1),
    (TWO_PHASE, MANY, means(ability=replace(ABLE, doubt="it might notify")), None, 4),
]


@pytest.mark.parametrize(("forced", "size", "has", "result", "most"), OBEYED)
def test_what_is_forced_is_done(
    forced: WriteStrategy, size: BatchSize, has: Means, result: Result | None, most: int
) -> None:
    choice = choose(forced, size, has, result=result)
    assert (choice.strategy, choice.parts) == (forced, most)
    assert choice.reason.startswith("forced by writeStrategy")
    assert ("no more prepared transactions are free" in choice.reason) == (
        forced is TWO_PHASE and has.two_phase.slots < has.parallelism
    )


@pytest.mark.parametrize(
    ("rows", "result", "found"),
    [
        (50_001, totals(), "at most 50001 result rows"),
        (None, totals(), "result of unknown size"),
        (1, totals(None, mode=COMPLETE), "result of unknown size"),
        (1, totals(50_000, mode=CLOSING), "at most 50001 result rows"),
    ],
)
def test_single_is_refused_for_a_result_too_large_for_the_driver(rows: int | None, result: Result, found: str) -> None:
    with pytest.raises(ConfigError, match=r"load\.writeStrategy single") as caught:
        choose(SINGLE, BatchSize(rows), means(UPSERT), result=result)
    assert (caught.value.found, caught.value.expected) == (found, "at most 50000 result rows")
    assert caught.value.cure == "Use auto or staged"


NO_ROOM = "max_prepared_transactions = 64, of which 8 are free"


@pytest.mark.parametrize(
    ("has", "found", "expected"),
    [
        (means(UPSERT), "writeMode upsert", "writeMode append"),
        (means(OVERWRITE), "writeMode overwrite", "writeMode append"),
        (means(UPSERT, replace(ABLE, obstacle="the table is odd")), "writeMode upsert", "writeMode append"),
        (means(ability=replace(ABLE, obstacle="the table is odd")), "the table is odd", "max_prepared_transactions"),
        (means(asked=9), NO_ROOM, "room for 9 prepared transactions"),
        (means(ability=TwoPhase(0, 64, doubt="all are in use")), "64, of which 0 are free", "room for 1 prepared"),
    ],
)
def test_two_phase_is_refused_where_it_cannot_be_done(has: Means, found: str, expected: str) -> None:
    refused = refusal(has)
    assert "load.writeStrategy two_phase cannot be carried out" in refused.what
    assert found in refused.found
    assert expected in refused.expected
    assert refused.cure
    assert refused.exit_code is ExitCode.TARGET_MISMATCH
    assert not refused.retryable


def _ability(used: int, limit: int, obstacle: str, doubt: str) -> TwoPhase:
    slots = max(limit - used, 0)
    if not limit:
        obstacle = "max_prepared_transactions is 0"
    elif not slots and not obstacle:
        doubt = "all are in use"
    return TwoPhase(slots, limit, obstacle, doubt)


NEAR = some.sampled_from([0, 1, 49_999, 50_000, 50_001, 200_000, 200_001, 64 * MIB, 64 * MIB + 1])
NUMBERS = some.none() | NEAR | some.integers(0, 10**10)
SIZES = some.builds(BatchSize, NUMBERS, NUMBERS, some.none() | some.integers(1, 20))
RESULT = some.none() | some.builds(Result, some.sampled_from(OutputMode), some.integers(1, 12), NUMBERS)
ABILITIES = some.builds(
    _ability,
    some.integers(0, 5),
    some.integers(0, 12),
    some.sampled_from(["", "", "an obstacle"]),
    some.sampled_from(["", "", "a doubt"]),
)
MEANS = some.builds(
    lambda mode, ability, cores, asked: means(mode, ability, cores=cores, asked=asked),
    some.sampled_from(WriteMode),
    ABILITIES,
    some.integers(1, 16),
    some.none() | some.integers(1, 16),
)
many = settings(max_examples=500, deadline=None)


@many
@given(SIZES, MEANS, RESULT, some.booleans())
def test_auto_always_has_an_answer_that_can_be_carried_out(
    size: BatchSize, has: Means, result: Result | None, gaps: bool
) -> None:
    choice = choose(AUTO, size, has, result=result, gaps_possible=gaps)
    assert choice.strategy is not AUTO
    assert choice.reason
    assert not (gaps and choice.strategy is SINGLE)
    if choice.strategy is TWO_PHASE:
        assert has.write_mode is APPEND
        assert has.two_phase.obstacle == has.two_phase.doubt == ""
        assert choose(TWO_PHASE, size, replace(has, asked=None), result=result).parts == choice.parts
    if choice.strategy is SINGLE:
        assert choose(SINGLE, size, has, result=result).strategy is SINGLE


@many
@given(SIZES, MEANS, RESULT)
def test_what_is_small_is_small_whatever_the_server_allows(size: BatchSize, has: Means, result: Result | None) -> None:
    here = choose(AUTO, size, has, result=result)
    elsewhere = choose(AUTO, size, means(cores=has.parallelism), result=result)
    assert (here.strategy is SINGLE) == (elsewhere.strategy is SINGLE)


@many
@given(some.sampled_from(WriteStrategy), SIZES, MEANS, RESULT, some.booleans())
def test_parts_are_never_more_than_slots_or_tasks(
    forced: WriteStrategy, size: BatchSize, has: Means, result: Result | None, gaps: bool
) -> None:
    answer = answered(forced, size, has, result, gaps)
    if isinstance(answer, Choice) and answer.strategy is TWO_PHASE:
        readers = size.partitions if result is None and size.partitions else has.parallelism
        room = has.two_phase.slots - (result is not None)
        assert 1 <= answer.parts <= min(room, has.parallelism, readers)
    elif isinstance(answer, Choice):
        assert answer.parts == 1


@many
@given(some.sampled_from([SINGLE, STAGED, TWO_PHASE]), SIZES, MEANS, RESULT, some.booleans())
def test_what_is_forced_is_obeyed_or_refused_with_the_reason(
    forced: WriteStrategy, size: BatchSize, has: Means, result: Result | None, gaps: bool
) -> None:
    answer = answered(forced, size, has, result, gaps)
    if isinstance(answer, Choice):
        assert answer.strategy is forced
        return
    assert forced is not STAGED
    assert f"load.writeStrategy {forced}" in answer.what
    assert answer.found
    assert answer.expected
    assert "Use auto" in answer.cure or "lower load.writeParallelism" in answer.cure
    if forced is TWO_PHASE:
        assert _why_not_two_phase(has, result) in answer.found


@many
@given(SIZES, MEANS, RESULT)
def test_two_phase_is_refused_for_no_other_reason(size: BatchSize, has: Means, result: Result | None) -> None:
    refused = isinstance(answered(TWO_PHASE, size, has, result, gaps=False), TwoPhaseUnavailableError)
    assert refused == bool(_why_not_two_phase(has, result))


def answered(
    forced: WriteStrategy, size: BatchSize, has: Means, result: Result | None, gaps: bool
) -> Choice | EtlError:
    try:
        return choose(forced, size, has, result=result, gaps_possible=gaps)
    except (ConfigError, TwoPhaseUnavailableError) as error:
        return error


def _why_not_two_phase(has: Means, result: Result | None) -> str:
    if has.write_mode is not APPEND:
        return f"writeMode {has.write_mode}"
    if has.two_phase.obstacle:
        return has.two_phase.obstacle
    # The dead letters of an aggregation are prepared by the driver, beside the parts.
    room = has.two_phase.slots - (result is not None)
    return f"of which {has.two_phase.slots} " if (has.asked or 1) > room else ""


@pytest.mark.parametrize(
    ("size", "has", "several"),
    [
        (BatchSize(rows=10, partitions=2), means(), True),
        (BatchSize(rows=10, partitions=2), means(cores=1), False),
        (BatchSize(rows=10, partitions=1), means(), False),
        (BatchSize(rows=10), means(), False),
        # The last of a key's rows wins: their order must be the partitions'.
        (BatchSize(rows=10, partitions=2), means(UPSERT), False),
        (BatchSize(rows=10**9, partitions=2), means(), False),
    ],
)
def test_partitions_are_read_side_by_side_where_their_order_does_not_count(
    size: BatchSize, has: Means, several: bool
) -> None:
    assert choose(AUTO, size, has).several_read is several
