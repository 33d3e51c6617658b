"""Whenever an audit reads what a healthy driver is writing, neither side seems ahead of the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.contracts.audit import compare
from spark_jobs.contracts.audit.checkpoint import Heads, Image
from spark_jobs.contracts.audit.ledger import LedgerSide
from spark_jobs.contracts.audit.logs import Planned
from spark_jobs.contracts.audit.report import State
from spark_jobs.contracts.tracker.known_queries import KnownQuery

STEPS = ("offsets", "ledger", "commits")


def _written(place: str, moment: int) -> tuple[int, ...]:
    """Return which micro-batches a driver has written to a place after its first ``moment`` steps."""
    steps = [step for number in range(moment) for step in product((number,), STEPS)][:moment]
    return tuple(number for number, step in steps if step == place)


def _image(commits: Sequence[int], offsets: Sequence[int]) -> Image:
    planned = {number: Planned(0, 0, (number,)) for number in offsets}
    return Image("q", Heads(tuple(offsets), tuple(commits)), has_logs=True, half_seeded=False, planned=planned)


def _ledger(batches: Sequence[int]) -> LedgerSide:
    last = max(batches, default=None)
    query = KnownQuery("q", "/c", "fresh", None, None, None, len(batches), last)
    return LedgerSide([query], query, batches={number: number for number in batches})


@given(some.lists(some.integers(0, 60), min_size=5, max_size=5).map(sorted))
def test_a_healthy_driver_is_never_accused(moments: list[int]) -> None:
    # In the audit's order: commits, offsets, the ledger, and both heads once more.
    image = _image(_written("commits", moments[0]), _written("offsets", moments[1]))
    ledger = _ledger(_written("ledger", moments[2]))
    after = Heads(_written("offsets", moments[4]), _written("commits", moments[3]))
    assert list(compare.ahead(image, ledger)) == []
    assert list(compare.behind(ledger, after)) == []
    assert list(compare.offsets(image, ledger)) == []


@given(some.integers(0, 60))
def test_whenever_a_driver_is_killed_its_checkpoint_is_normal(moment: int) -> None:
    offsets, commits = _written("offsets", moment), _written("commits", moment)
    image, ledger = _image(commits, offsets), _ledger(_written("ledger", moment))
    assert list(compare.damage(image)) == []
    assert list(compare.ahead(image, ledger)) == []
    assert list(compare.behind(ledger, image.heads)) == []
    found = [one.state for one in compare.planned(image, ledger)]
    assert found == ([State.PLANNED] if len(offsets) > len(commits) else [])


@given(some.integers(0, 60), some.integers(0, 60))
def test_what_is_older_on_one_side_is_named(checkpoint: int, database: int) -> None:
    offsets, commits = _written("offsets", checkpoint), _written("commits", checkpoint)
    batches = _written("ledger", database)
    image, ledger = _image(commits, offsets), _ledger(batches)
    assert bool(list(compare.ahead(image, ledger))) == (len(commits) > len(batches))
    assert bool(list(compare.behind(ledger, image.heads))) == (len(batches) > len(offsets))
