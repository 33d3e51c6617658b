"""The guide's DAGs are DAGs, and scheduled by what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import Asset
from airflow.serialization.serialized_objects import DagSerialization


def test_the_guides_dags(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs/guides/data-aware-scheduling.md").read_text()
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)):
        (tmp_path / f"dag_{number}.py").write_text(code)
    bag = DagBag(tmp_path)
    assert bag.import_errors == {}
    assert set(bag.dags) == {"follow_orders", "announce_orders", "orders_of_an_hour"}
    told = {name: json.dumps(DagSerialization.to_dict(dag), default=str) for name, dag in bag.dags.items()}
    assert "airflow_etl_provider.triggers.batch_committed.BatchCommittedTrigger" in told["follow_orders"]
    assert "PartitionedAssetTimetable" in told["orders_of_an_hour"]
    assert bag.dags["announce_orders"].get_task("announce").outlets == [Asset("orders/complete")]
