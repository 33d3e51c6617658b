"""``etl-pipeline dead-letters``: list, count, show, replay and discard them; list and release replays."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console

from spark_jobs.cli.letters_shown import counts_table, letters_table, print_letter, replays_table, summary_text
from spark_jobs.cli.replaying import carry_out_replay
from spark_jobs.cli.tracker_session import CONNECTION, SCHEMA, tracker_session
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.name_values import parse_name_values
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.contracts.run_request import user_at_host
from spark_jobs.contracts.tracker.letters import count_letters, discard_letters, list_letters, show_letter
from spark_jobs.contracts.tracker.migrate import require_version
from spark_jobs.contracts.tracker.replays import list_replays, release

dead_letters = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rows that could not be read or written: find them, read why, bring them home, or give them up.",
)

PIPELINE = typer.Option("--pipeline", help="The pipeline whose letters they are.")
STAGE = typer.Option("--stage", help="Only this stage: parse, transform, quality, write or late; may be repeated.")
ERROR = typer.Option("--error-class", help="Only this error class, such as MALFORMED_JSON; may be repeated.")
SINCE = typer.Option("--since", help="First failed at this time or later; ISO 8601, UTC unless it says otherwise.")
UNTIL = typer.Option("--until", help="First failed before this time.")
LETTER_ID = typer.Option("--id", help="Only this letter; may be repeated.")
AS_JSON = typer.Option("--json", help="Print JSON.")
EVERY = typer.Option("--all", help="Confirm that nothing restricts which of the pipeline's letters are meant.")


@dead_letters.command("list")
def listed(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[str | None, PIPELINE] = None,
    stage: Annotated[list[str] | None, STAGE] = None,
    error_class: Annotated[list[str] | None, ERROR] = None,
    since: Annotated[str | None, SINCE] = None,
    until: Annotated[str | None, UNTIL] = None,
    status: Annotated[list[str] | None, typer.Option(help="pending unless given; `any` for all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most letters that are shown, the newest first.")] = 50,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show letters without their payload, the newest first."""
    chosen = _statuses(status)
    wanted = _wanted(pipeline or "-", stage, error_class, since, until, None, statuses=chosen)
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        found = list_letters(conn, schema, wanted, limit=limit, everywhere=pipeline is None)
    if as_json:
        _print([letter.model_dump(mode="json") for letter in found])
    else:
        Console().print(letters_table(found, most=limit))


@dead_letters.command("count")
def counted(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[str | None, PIPELINE] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show how many letters there are of each pipeline, status, stage and error class."""
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        found = count_letters(conn, schema, pipeline)
    if as_json:
        _print([count.model_dump(mode="json") for count in found])
    else:
        Console().print(counts_table(found))


@dead_letters.command("show")
def shown(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The letter's id.")],
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show one letter with all of it: reason, place, raw record and row."""
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        letter = show_letter(conn, schema, _uuid(letter_id))
    print_letter(letter, as_json=as_json)


@dead_letters.command("replay")
def replayed(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[str, PIPELINE],
    stage: Annotated[list[str] | None, STAGE] = None,
    error_class: Annotated[list[str] | None, ERROR] = None,
    since: Annotated[str | None, SINCE] = None,
    until: Annotated[str | None, UNTIL] = None,
    letter_id: Annotated[list[str] | None, LETTER_ID] = None,
    every: Annotated[bool, EVERY] = False,
    parked: Annotated[bool, typer.Option("--parked", help="Take parked letters as well.")] = False,
    mode: Annotated[
        str,
        typer.Option(help="`reprocess`: through the transforms into the target; `redrive`: back to the Kafka topic."),
    ] = "reprocess",
    patch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=SQL", help="Repair a column before the transforms; `_value` is the raw record as text."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most letters that are taken, the oldest first.")] = None,
    rate: Annotated[float | None, typer.Option(help="Most letters a second.")] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Failures after which a letter is parked.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything, and roll it back.")] = False,
    not_sent: Annotated[
        bool,
        typer.Option(
            "--not-sent",
            help="You have looked: what a redrive that died may have sent, and no topic tells, was not.",
        ),
    ] = False,
    master: Annotated[str | None, typer.Option(help="Spark master; `local[*]` unless given.")] = None,
    conf: Annotated[list[str] | None, typer.Option("--conf", metavar="KEY=VALUE", help="Spark setting.")] = None,
    packages: Annotated[str | None, typer.Option(help="Maven coordinates for Spark, as in spark-submit.")] = None,
    jars: Annotated[str | None, typer.Option(help="Jar files for Spark, with commas between.")] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Bring letters home, each exactly once; what fails again stays, with its new reason."""
    from uuid import uuid4  # noqa: PLC0415 - beside the one use

    _require_choice(every, stage, error_class, since, until, letter_id)
    statuses = ("pending", "parked") if parked else ("pending",)
    request = ReplayRequest.of(
        replay_id=uuid4(),
        letters=_wanted(pipeline, stage, error_class, since, until, letter_id, statuses=statuses),
        mode=mode,
        patch=parse_name_values(patch or [], "--patch"),
        limit=limit,
        rate=rate,
        max_attempts=max_attempts,
        dry_run=dry_run,
        not_sent=not_sent,
    )
    settings = parse_name_values(conf or [], "--conf")
    summary = carry_out_replay(
        request, connection, schema=schema, master=master, settings=settings, packages=packages, jars=jars
    )
    if as_json:
        _print(summary.to_json())
    else:
        Console().print(summary_text(summary))


@dead_letters.command("discard")
def discarded(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[str, PIPELINE],
    reason: Annotated[str, typer.Option(help="Why; it stays with the letters.")],
    by: Annotated[str | None, typer.Option(help="Who; the user of this machine unless given.")] = None,
    stage: Annotated[list[str] | None, STAGE] = None,
    error_class: Annotated[list[str] | None, ERROR] = None,
    since: Annotated[str | None, SINCE] = None,
    until: Annotated[str | None, UNTIL] = None,
    letter_id: Annotated[list[str] | None, LETTER_ID] = None,
    every: Annotated[bool, EVERY] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Give letters up, by name and for a reason. They stay in the table, and are never replayed."""
    _require_choice(every, stage, error_class, since, until, letter_id)
    wanted = _wanted(pipeline, stage, error_class, since, until, letter_id, statuses=("pending", "parked"))
    who = by if by is not None else user_at_host()
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        count = discard_letters(conn, schema, wanted, by=who, reason=reason)
    if as_json:
        _print({"discarded": count, "by": who, "reason": reason})
    else:
        typer.echo(f"{count:,} dead letters discarded by {who}: {reason}")


@dead_letters.command("replays")
def replays(
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    pipeline: Annotated[str | None, PIPELINE] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show the newest replays, and what came of them."""
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        found = list_replays(conn, schema, pipeline)
    if as_json:
        _print(found)
    else:
        Console().print(replays_table(found))


@dead_letters.command("release")
def released(
    replay_id: Annotated[str, typer.Argument(metavar="REPLAY_ID", help="A replay whose driver is gone.")],
    *,
    connection: Annotated[str, CONNECTION],
    schema: Annotated[str, SCHEMA] = "etl",
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Give back the letters that a replay holds. Safe while it runs: it commits none of them then.

    The next replay does it by itself once the driver has been silent for two minutes.
    """
    with tracker_session(connection) as conn:
        require_version(conn, schema)
        count = release(conn, schema, [_uuid(replay_id)])
    if as_json:
        _print({"released": count})
    else:
        typer.echo(f"{count:,} dead letters wait again")


def _wanted(
    pipeline: str,
    stages: list[str] | None,
    error_classes: list[str] | None,
    since: str | None,
    until: str | None,
    ids: list[str] | None,
    *,
    statuses: tuple[str, ...],
) -> LetterFilter:
    return LetterFilter.of(
        pipeline_id=pipeline,
        stages=tuple(stages or ()),
        error_classes=tuple(error_classes or ()),
        since=_moment(since, "--since"),
        until=_moment(until, "--until"),
        ids=tuple(_uuid(text) for text in ids or ()),
        statuses=statuses,
    )


def _statuses(given: list[str] | None) -> tuple[str, ...]:
    if not given:
        return ("pending",)
    return () if "any" in given else tuple(given)


def _require_choice(every: bool, *restrictions: Any) -> None:
    if not every and not any(restrictions):
        raise ConfigError(
            "Nothing says which dead letters are meant",
            expected="--stage, --error-class, --since, --until or --id; or --all for every one that waits",
            cure="`etl-pipeline dead-letters count` shows how many there are of each kind",
        )


def _moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} is not a time", found=text, expected="ISO 8601: 2026-11-22T06:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError(
            "This is not the id of a dead letter or a replay",
            found=text,
            expected="a UUID, as `etl-pipeline dead-letters list` and `replays` show it",
        ) from None


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
