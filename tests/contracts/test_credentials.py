"""Connections: every form that Airflow writes, where they are found, and that their secrets are never shown."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from urllib.parse import quote

import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as some
from psycopg.conninfo import conninfo_to_dict

from spark_jobs.contracts.credentials import AirflowConnection, DatabaseConnection, resolve, resolve_database
from spark_jobs.contracts.errors import ConfigError, ConnectionMissingError

SECRET = "Tr0ub4dor&3/%@:#?'\\ ü"
ENCODED = quote(SECRET, safe="")
URI = f"postgres://ann:{ENCODED}@db.example:6432/shop?sslmode=require&sslpassword={ENCODED}"
JSON = json.dumps(
    {
        "conn_type": "postgres",
        "host": "db.example",
        "login": "ann",
        "password": SECRET,
        "schema": "shop",
        "port": 6432,
        "extra": {"sslmode": "require", "sslpassword": SECRET},
    }
)


def libpq(value):
    return conninfo_to_dict(DatabaseConnection.from_airflow("warehouse", value).conninfo())


@pytest.mark.parametrize(
    "value",
    [
        URI,
        URI.replace("postgres:", "postgresql:"),
        f"  {URI}\n",
        JSON,
        JSON.replace("6432", '"6432"'),
        JSON.replace('"postgres"', '"postgresql"'),
        json.dumps(json.loads(JSON) | {"extra": json.dumps(json.loads(JSON)["extra"])}),
        URI.partition("?")[0] + "?__extra__=" + quote(json.dumps(json.loads(JSON)["extra"]), safe=""),
    ],
)
def test_the_forms_say_the_same(value):
    assert libpq(value) == {
        "host": "db.example", "port": "6432", "dbname": "shop", "user": "ann", "password": SECRET,
        "sslmode": "require", "sslpassword": SECRET,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgres://h/d", {"host": "h", "dbname": "d"}),
        ("postgres://u@h/d", {"host": "h", "dbname": "d", "user": "u"}),
        ("postgres://u:p@h/d", {"host": "h", "dbname": "d", "user": "u", "password": "p"}),
        ("postgres://:p@h:1/d", {"host": "h", "port": "1", "dbname": "d", "password": "p"}),
        ("postgres://u:p@[::1]:5433/d", {"host": "::1", "port": "5433", "dbname": "d", "user": "u", "password": "p"}),
        ("postgres://[fe80::1]/d", {"host": "fe80::1", "dbname": "d"}),
        ("postgres://u:p@%3A%3A1:5433/d", {"host": "::1", "port": "5433", "dbname": "d", "user": "u", "password": "p"}),
        ("postgres://%2Fvar%2Frun%2FPostgreSQL/d", {"host": "/var/run/PostgreSQL", "dbname": "d"}),
        ("postgres://u@%2Ftmp:5433/d", {"host": "/tmp", "port": "5433", "dbname": "d", "user": "u"}),
        ("postgres://h/my%20data%2Fbase", {"host": "h", "dbname": "my data/base"}),
        ("postgres://Us%40er:p@HOST.ex/D", {"host": "HOST.ex", "dbname": "D", "user": "Us@er", "password": "p"}),
        ("postgres://h/d?cursor=dictcursor&iam=false&connect_timeout=3",
         {"host": "h", "dbname": "d", "connect_timeout": "3"}),
    ],
)  # fmt: skip
def test_forms_of_a_uri(uri, expected):
    assert libpq(uri) == expected
    uri_form = DatabaseConnection.from_airflow("warehouse", uri).uri()
    assert conninfo_to_dict(uri_form) == expected


@given(
    some.fixed_dictionaries(
        {"login": some.text(min_size=1), "password": some.text(min_size=1), "schema": some.text(min_size=1)}
    )
)
def test_any_text_survives_both_forms(parts):
    parts = {key: value.encode("utf-8", "replace").decode().replace("\0", "0") for key, value in parts.items()}
    user, password, database = (quote(parts[key], safe="") for key in ("login", "password", "schema"))
    expected = {"host": "h", "dbname": parts["schema"], "user": parts["login"], "password": parts["password"]}
    assert libpq(f"postgres://{user}:{password}@h/{database}") == expected
    assert libpq(json.dumps({"conn_type": "postgres", "host": "h", **parts})) == expected


def test_airflow_itself_writes_what_is_read_here():
    from airflow.sdk import Connection

    theirs = Connection(
        conn_id="warehouse", conn_type="postgres", host="::1", login="a@b", password=SECRET, schema="s p", port=1,
        extra=json.dumps({"sslmode": "require", "connect_timeout": 3}),
    )  # fmt: skip
    expected = {
        "host": "::1", "port": "1", "user": "a@b", "password": SECRET, "dbname": "s p",
        "sslmode": "require", "connect_timeout": "3",
    }  # fmt: skip
    assert libpq(theirs.get_uri()) == libpq(theirs.as_json()) == expected


def test_other_types_of_connections():
    spark = AirflowConnection.parse("s", "spark://spark%3A%2F%2Fmaster:7077?deploy-mode=client")
    assert (spark.conn_type, spark.host, spark.port) == ("spark", "spark://master", 7077)
    nested = AirflowConnection.parse("s", "http://https://host:1/")
    assert (nested.conn_type, nested.host, nested.port) == ("http", "https://host", 1)
    assert AirflowConnection.parse("k", "google-cloud-platform://?a=b").conn_type == "google_cloud_platform"
    with pytest.raises(ConfigError, match="not a PostgreSQL connection"):
        DatabaseConnection.of(spark)


def test_nothing_shows_a_secret():
    parsed = AirflowConnection.parse("warehouse", URI)
    connection = DatabaseConnection.of(parsed)
    for shown in (parsed, connection, copy.deepcopy(connection), connection.model_copy(update={"port": 1})):
        texts = [repr(shown), str(shown), f"{shown}", shown.model_dump_json(), repr(shown.model_dump()), repr([shown])]
        for text in texts:
            assert SECRET not in text
            assert ENCODED not in text
    assert "db.example" in str(connection)
    for holder in (parsed, connection):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(holder, protocol)


@pytest.mark.parametrize(
    "value",
    [
        "postgres://ann:swordfish/x@h:5432/d",
        "postgres://ann:swordfish#x@h/d",
        "postgres://ann:swordfish@h:port/d",
        "postgres://ann:swordfish@h:99999999/d",
        "postgres://ann:swordfish@[::1/d",
        "swordfish",
        '{"conn_type": "postgres", "password": "swordfish"',
        '{"conn_type": "postgres", "password": ["swordfish"]}',
        '{"conn_type": "postgres", "port": "swordfish"}',
        '{"conn_type": "postgres", "extra": "swordfish"}',
        '{"conn_type": "postgres", "extra": ["swordfish"]}',
        "postgres://h/d?__extra__=swordfish",
        "postgres://h/d?password=swordfish",
        "postgres://h/d?sslpasswrod=swordfish",
    ],
)
def test_what_cannot_be_read_is_not_quoted(value):
    with pytest.raises(ConfigError) as caught:
        DatabaseConnection.from_airflow("warehouse", value)
    assert "warehouse" in str(caught.value)
    assert "swordfish" not in "".join(traceback.format_exception(caught.value)).replace(value, "")
    assert caught.value.__cause__ is None


def test_a_validation_error_does_not_quote_its_input():
    with pytest.raises(ValueError, match="port") as caught:
        DatabaseConnection(conn_id="w", password="swordfish", port="swordfish")
    assert "swordfish" not in str(caught.value)
    with pytest.raises(ValueError, match="conn_id") as caught:
        DatabaseConnection(password="swordfish")
    assert "swordfish" not in str(caught.value)


def test_parameters_fill_what_the_connection_leaves_open():
    bare = DatabaseConnection.from_airflow("warehouse", "postgres://ann:pw@")
    full = bare.completed({"host": "h", "port": "5433", "database": "d", "sslmode": "require"})
    assert conninfo_to_dict(full.conninfo(application_name="etl:x:1")) == {
        "host": "h", "port": "5433", "dbname": "d", "user": "ann", "password": "pw", "sslmode": "require",
        "application_name": "etl:x:1",
    }  # fmt: skip
    assert full.completed({"host": "h", "dbname": "d", "username": "ann", "port": "5433"}) == full


@pytest.mark.parametrize(
    "contradiction",
    [{"host": "other"}, {"port": "1"}, {"database": "other"}, {"user": "bob"}, {"sslmode": "disable"}],
)
def test_parameters_that_contradict_are_refused(contradiction):
    connection = DatabaseConnection.from_airflow("warehouse", URI)
    ((key, value),) = contradiction.items()
    with pytest.raises(ConfigError, match=f"contradicts the connection 'warehouse' on '{key}'") as caught:
        connection.completed(contradiction)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("parameters", [{"password": "swordfish"}, {"sslmod": "swordfish"}, {"port": "http"}])
def test_parameters_that_are_secret_or_unknown_are_refused(parameters):
    with pytest.raises(ConfigError) as caught:
        DatabaseConnection.from_airflow("warehouse", "postgres://h/d").completed(parameters)
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(("uri", "lacking"), [("postgres://u@/d", "no host"), ("postgres://u@h", "no database")])
def test_a_connection_that_says_too_little_is_refused(uri, lacking):
    with pytest.raises(ConfigError, match=lacking):
        DatabaseConnection.from_airflow("warehouse", uri).conninfo()


def credentials_file(folder, name, text, mode=0o600):
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return {"ETL_CREDENTIALS_DIR": str(folder)}


def test_the_places_in_their_order(tmp_path):
    environ = credentials_file(tmp_path, "ware-house", "postgres://file/d\n")
    hadoop = {"etl.connection.ware-house": "postgres://hadoop/d"}
    variable = {"AIRFLOW_CONN_WARE-HOUSE": "postgres://environ/d"}
    assert resolve("ware-house", environ=environ | variable, hadoop_lookup=hadoop.get).host == "environ"
    assert resolve("ware-house", environ=environ, hadoop_lookup=hadoop.get).host == "file"
    assert resolve("ware-house", environ={}, hadoop_lookup=hadoop.get).host == "hadoop"
    database = resolve_database("ware-house", {"port": "5433"}, environ=environ)
    assert (database.host, database.port) == ("file", 5433)


def test_nowhere_names_every_place(tmp_path):
    with pytest.raises(ConnectionMissingError) as caught:
        resolve("warehouse", environ={"ETL_CREDENTIALS_DIR": str(tmp_path)}, hadoop_lookup={}.get)
    for cure in ("AIRFLOW_CONN_WAREHOUSE", "ETL_CREDENTIALS_DIR", "0600", "etl.connection.warehouse", "Airflow"):
        assert cure in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_ones_own_is_read(tmp_path, mode):
    assert resolve("w", environ=credentials_file(tmp_path, "w", "postgres://h/d", mode)).host == "h"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o777])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        resolve("w", environ=credentials_file(tmp_path, "w", "postgres://h/d", mode))


@pytest.mark.parametrize("name", ["../w", "/etc/passwd", "", ".", "..", ".hidden", "a b", "a\n"])
def test_a_name_never_leaves_the_directory(tmp_path, name):
    with pytest.raises(ConfigError, match="not a connection's name"):
        resolve(name, environ={"ETL_CREDENTIALS_DIR": str(tmp_path)})


def test_a_directory_in_the_files_place(tmp_path):
    (tmp_path / "w").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve("w", environ={"ETL_CREDENTIALS_DIR": str(tmp_path)})


def test_a_real_server_understands_both_forms(database):
    with database.connect(autocommit=True) as admin:
        admin.execute("CREATE ROLE etl_odd LOGIN PASSWORD " + psycopg.sql.quote(SECRET))
    try:
        address = database.airflow_uri.split("@")[1]
        connection = DatabaseConnection.from_airflow("warehouse", f"postgres://etl_odd:{ENCODED}@{address}")
        with psycopg.connect(connection.conninfo(application_name="odd one's")) as conn:
            assert conn.execute("SELECT current_user, current_setting('application_name')").fetchone() == (
                "etl_odd", "odd one's",
            )  # fmt: skip
        with adbc.connect(connection.uri(application_name="odd one's")) as conn, conn.cursor() as cursor:
            cursor.execute("SELECT current_user::text, current_setting('application_name')")
            assert cursor.fetchone() == ("etl_odd", "odd one's")
    finally:
        with database.connect(autocommit=True) as admin:
            admin.execute("DROP ROLE etl_odd")
