"""Whether offsets that somebody waits for are ones that the pipeline's source can ever have."""

from __future__ import annotations

import json

from spark_jobs.contracts.config.extract import Extract
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.contracts.watch.offsets import Offsets, by_partition


def require_reachable(view: LedgerView, pipeline: str, have: Offsets | None, wanted: Offsets) -> None:
    """Return if the source may get to ``wanted``.

    :param have: where the newest micro-batch ended; None before the first.
    :raises ConfigError: it counts otherwise, or never reads a topic that is named.
    """
    there, want = by_partition(have), by_partition(wanted)
    topics = {topic for topic, _ in want or {}}
    if there and topics and topics <= {topic for topic, _ in there}:
        return
    extract = view.config(pipeline).extract
    if extract.source_type == "kafka":
        read = {topic for topic, _ in there or {}} | _subscribed(extract)
        if want is None:
            raise _never(pipeline, wanted, "a Kafka source, which counts by topic and partition")
        # A pattern reads topics that are yet to come.
        if not extract.option("subscribePattern") and not topics <= read:
            raise _never(pipeline, wanted, f"a pipeline that reads {', '.join(sorted(read))}")
    elif want is not None and have is not None and there is None:
        raise _never(pipeline, wanted, f"a source that counts otherwise: {json.dumps(have)}")


def _subscribed(extract: Extract) -> set[str]:
    if assigned := extract.option("assign"):
        try:
            return set(dict(json.loads(assigned)))
        except (TypeError, ValueError):
            raise ConfigError("The pipeline's option `assign` is not a JSON object", found=assigned) from None
    return {name.strip() for name in extract.options.get("subscribe", extract.option("subscribe") or "").split(",")}


def _never(pipeline: str, wanted: Offsets, found: str) -> ConfigError:
    return ConfigError(
        f"Pipeline {pipeline!r} never gets to offsets={json.dumps(wanted)}",
        found=found,
        expected="offsets of its own source, as `batch_tracker.end_offsets` has them",
        cure="correct the offsets' topics, or the pipeline",
    )
