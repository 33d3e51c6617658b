"""The pages' HTML. Every value is escaped by Jinja2."""

from __future__ import annotations

from typing import Final

_BASE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{% block title %}{{ shown.pipeline_id }}{% endblock %}</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border-bottom: 1px solid #8884; padding: .25rem .75rem; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
code { background: #8882; padding: .1rem .3rem; border-radius: 3px }
.bad { color: #c33; font-weight: 600 }
</style></head><body>{% block body %}{% endblock %}</body></html>"""

_SPARK: Final = """{% extends "base" %}{% block body %}
<h1>Spark UI of {{ shown.pipeline_id }}</h1>
{% if over %}<p>Run <code>{{ shown.run_id }}</code> is {{ life.phase.value }}, and Spark's UI ends with its driver.
{% if life.application_id %}Its application was <code>{{ life.application_id }}</code>. Where a history server keeps it,
give Airflow its address: <code>[etl] spark_history_url</code>.{% else %}No driver of it has come up.{% endif %}</p>
{% else %}<p>Run <code>{{ shown.run_id }}</code> is running, and its driver has told of no UI: Spark's session is not up
yet, or <code>spark.ui.enabled</code> is false.</p>{% endif %}
{% if life.advice %}<p>{{ life.advice }}</p>{% endif %}
{% endblock %}"""

_PIPELINE: Final = """{% extends "base" %}{% block body %}
<h1>{{ shown.pipeline_id }}</h1>
<table>
<tr><th>this task's run</th><td><code>{{ shown.run_id }}</code>: {{ life.phase.value }}</td></tr>
{% if life.error %}<tr><th>its error</th><td class="bad">{{ life.error.get("what") or life.error }}</td></tr>{% endif %}
<tr><th>the pipeline's newest run</th>
<td><code>{{ status.run_id or "none" }}</code>: {{ status.run_phase.value }}</td></tr>
<tr><th>last commit</th><td>{{ status.last_commit_at or "none" }}
{%- if status.last_batch_id is not none %}, micro-batch {{ status.last_batch_id }}{% endif %}</td></tr>
<tr><th>watermark</th><td>{{ status.watermark or "none" }}</td></tr>
<tr><th>in the ledger</th><td>{{ status.batches }} micro-batches, {{ status.rows }} rows,
{{ status.duplicates }} repeated ones skipped</td></tr>
<tr><th>books</th><td{% if status.ledger != "balanced" %} class="bad"{% endif %}>{{ status.ledger }}</td></tr>
<tr><th>dead letters that wait</th><td>{{ status.pending_dead_letters }}</td></tr>
<tr><th>gaps in the source</th><td>{{ status.gaps }}</td></tr>
</table>
<h2>Newest micro-batches</h2>
<table><tr><th>micro-batch</th><th>outcome</th><th>rows read</th><th>rows/s</th><th>seconds</th><th>backlog</th>
<th>watermark</th><th>recorded</th></tr>
{% for b in batches %}<tr><td class="n">{{ "" if b.batch_id is none else b.batch_id }}</td>
<td{% if b.outcome == "failed" %} class="bad"{% endif %}>{{ b.outcome }}</td>
<td class="n">{{ "" if b.input_rows is none else b.input_rows }}</td>
<td class="n">{{ "" if b.processed_rows_per_second is none else "%.0f" | format(b.processed_rows_per_second) }}</td>
<td class="n">{{ "" if b.duration_ms is none else "%.2f" | format(b.duration_ms / 1000) }}</td>
<td class="n">{{ "" if b.backlog_rows is none else b.backlog_rows }}</td>
<td>{{ b.watermark or "" }}</td><td>{{ b.recorded_at or "" }}</td></tr>
{% else %}<tr><td colspan="8">none yet</td></tr>{% endfor %}</table>
{% if changes %}<h2>Circuit breakers that its runs changed</h2>
<table><tr><th>at</th><th>system</th><th>change</th><th>reason</th><th>now</th></tr>
{% for c in changes %}<tr><td>{{ c.at }}</td><td>{{ c.system }}</td>
<td>{{ c.from_state }} → {{ c.to_state }}</td><td>{{ c.reason }}</td>
<td{% if c.state_now != "closed" %} class="bad"{% endif %}>{{ c.state_now }}
{%- if c.state_now == "open" %} until {{ c.reopen_at }}{% endif %}</td></tr>{% endfor %}</table>{% endif %}
{% endblock %}"""

_DEAD_LETTERS: Final = """{% extends "base" %}{% block body %}
<h1>Dead letters of {{ shown.pipeline_id }}</h1>
<table><tr><th>status</th><th>stage</th><th>error class</th><th>letters</th></tr>
{% for c in counts %}<tr><td>{{ c.status }}</td><td>{{ c.stage }}</td><td>{{ c.error_class }}</td>
<td class="n">{{ c.letters }}</td></tr>
{% else %}<tr><td colspan="4">none</td></tr>{% endfor %}</table>
<p>To read them: <code>etl-pipeline dead-letters list</code> and <code>show</code>. To bring them home: the DAG
<code>etl_dead_letter_replay</code>, or <code>etl-pipeline dead-letters replay</code>.</p>
{% endblock %}"""

_ERROR: Final = """{% extends "base" %}{% block title %}Not found out{% endblock %}{% block body %}
<h1 class="bad">{{ error.get("what") or "The ledger could not be asked" }}</h1>
<table>{% for name in ("found", "expected", "cure") %}{% if error.get(name) %}
<tr><th>{{ name }}</th><td>{{ error[name] }}</td></tr>{% endif %}{% endfor %}</table>
{% endblock %}"""

TEMPLATES: Final = {
    "base": _BASE,
    "spark": _SPARK,
    "pipeline": _PIPELINE,
    "dead-letters": _DEAD_LETTERS,
    "error": _ERROR,
}
"""By name."""
