"""A client for Airflow's REST API, as far as demo and tests need it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from sandbox.errors import SandboxError

_ENDED = ("success", "failed")
# On a machine that is busy with Spark the one API worker may be slow.
_ANSWER_SECONDS = 120
_REREAD_SECONDS = 5
# A proxy of the machine's is not for loopback.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Stays(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nobody: urllib then raises the answer as an error."""


_stays = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stays)


class ApiError(SandboxError):
    """Airflow answered with an error; ``status`` is HTTP's."""

    def __init__(self, method: str, path: str, status: int, body: str) -> None:
        super().__init__(f"Airflow refused {method} {path}", found=f"{status} {body}")
        self.status = status


class AirflowApi:
    """Logs in as :attr:`user` with :attr:`password` and talks to ``/api/v2``."""

    user: str

    def __init__(self, url: str) -> None:
        self._base = url
        self._token: str | None = None

    @property
    def password(self) -> str:
        """Return the password to log in with."""
        raise NotImplementedError

    def is_healthy(self) -> bool:
        """Tell whether database, scheduler, triggerer and DAG processor all say so."""
        try:
            told = self._send("GET", "/api/v2/monitor/health", None, {})
        except (ApiError, OSError):
            return False
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all((told.get(part) or {}).get("status") == "healthy" for part in parts)

    def api(self, method: str, path: str, json: object = None, **query: object) -> Any:
        """Send a request to ``/api/v2`` + ``path`` and return the decoded answer.

        :raises ApiError: the answer is an error.
        """
        if query:
            path += "?" + urllib.parse.urlencode({name: _text(value) for name, value in query.items()}, doseq=True)
        try:
            return self._send(method, f"/api/v2{path}", json, self._login())
        except ApiError as error:
            if error.status != 401:
                raise
            self._token = None
            return self._send(method, f"/api/v2{path}", json, self._login())

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
        """Return the links beside a task, by name."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{_quote(task_id)}/links"
        found: dict[str, str | None] = self.api("GET", path)["extra_links"]
        return found

    def page(self, url: str, *, token: str | None = None) -> tuple[int, str, str]:
        """Open a page of the API server as a browser would, without following it elsewhere.

        :param token: who opens it; :attr:`user` when None, nobody when empty.
        :return: HTTP's status, where it leads to, its text.
        """
        known = self._login()["Authorization"].removeprefix("Bearer ") if token is None else token
        request = urllib.request.Request(url, headers={"Cookie": f"_token={known}"} if known else {})
        try:
            with _stays.open(request, timeout=_ANSWER_SECONDS) as answer:
                return answer.status, "", answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get("Location", ""), error.read().decode()

    def reread(self) -> None:
        """Have Airflow look at its DAG files, where somebody can."""

    def wait_dag(self, dag_id: str, *, seconds: float = 120) -> dict[str, Any]:
        """Wait until the DAG processor has found a DAG, and return it.

        :raises SandboxError: it is not there within ``seconds``; with the import errors.
        """
        began = time.monotonic()
        asked = began - _REREAD_SECONDS
        while True:
            try:
                found: dict[str, Any] = self.api("GET", f"/dags/{_quote(dag_id)}")
            except ApiError as error:
                if error.status != 404:
                    raise
                now = time.monotonic()
                if now > began + seconds:
                    told = "; ".join(item["stack_trace"] for item in self.import_errors())
                    raise SandboxError(f"Airflow does not know the DAG {dag_id}", found=told) from error
                # Again: a parsing that had begun before does not see what has come meanwhile.
                if now > asked + _REREAD_SECONDS:
                    self.reread()
                    asked = now
                time.sleep(0.5)
            else:
                return found

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run."""
        self.api("PATCH", f"/dags/{_quote(dag_id)}", {"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a run of a DAG and return the run's id."""
        answer = self.api("POST", f"/dags/{_quote(dag_id)}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(answer["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return ``queued``, ``running``, ``success`` or ``failed``."""
        return str(self.api("GET", _run(dag_id, run_id))["state"])

    def wait_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        seconds: float = 600,
        until: tuple[str, ...] = _ENDED,
        watch: Callable[[str], None] | None = None,
    ) -> str:
        """Wait until a run is in one of the states ``until`` and return it; ``watch`` is told the state now and then.

        :raises SandboxError: the time is up.
        """
        deadline = time.monotonic() + seconds
        while (state := self.run_state(dag_id, run_id)) not in until:
            if watch is not None:
                watch(state)
            if time.monotonic() > deadline:
                raise SandboxError(f"The run {run_id} of {dag_id} is still {state} after {seconds:.0f} s")
            time.sleep(0.5)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the run's task instances as the API has them."""
        found: list[dict[str, Any]] = self.api("GET", f"{_run(dag_id, run_id)}/taskInstances")["task_instances"]
        return found

    def task_instance(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return one task instance as the API has it."""
        found: dict[str, Any] = self.api("GET", _task(dag_id, run_id, task_id))
        return found

    def wait_task(self, dag_id: str, run_id: str, task_id: str, state: str, *, seconds: float = 300) -> None:
        """Wait until a task is in a state.

        :raises SandboxError: the time is up, or the run has ended before.
        """
        deadline = time.monotonic() + seconds
        while (found := self.task_instance(dag_id, run_id, task_id)["state"]) != state:
            ended = self.run_state(dag_id, run_id) in _ENDED
            if ended or time.monotonic() > deadline:
                raise SandboxError(f"The task {task_id} of {dag_id} is {found}, never {state}")
            time.sleep(0.5)

    def question(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return what a task asks of a person."""
        return str(self.api("GET", f"{_task(dag_id, run_id, task_id)}/-1/hitlDetails")["body"])

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Answer what a task asks of a person."""
        path = f"{_task(dag_id, run_id, task_id)}/-1/hitlDetails"
        self.api("PATCH", path, {"chosen_options": [option], "params_input": {}})

    def rendered_fields(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return the task's templated fields as the UI shows them."""
        found: dict[str, Any] = self.task_instance(dag_id, run_id, task_id)["rendered_fields"]
        return found

    def task_log(self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1, with_fields: bool = True) -> str:
        """Return the log of one try as text, a line for each event; with all that it carries, or its words alone."""
        path = f"{_task(dag_id, run_id, task_id)}/logs/{try_number}"
        content = self.api("GET", path, full_content=True)["content"]
        return "\n".join(_log_line(item, with_fields=with_fields) for item in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return a value that a task pushed."""
        path = f"{_task(dag_id, run_id, task_id)}/xcomEntries/{_quote(key)}"
        return self.api("GET", path, stringify=False)["value"]

    def import_errors(self) -> list[dict[str, Any]]:
        """Return the import errors as the UI lists them."""
        found: list[dict[str, Any]] = self.api("GET", "/importErrors")["import_errors"]
        return found

    def clear(self, dag_id: str, run_id: str, task_ids: list[str] | None = None) -> None:
        """Clear tasks of a run, so that they run again."""
        wanted: dict[str, object] = {"dry_run": False, "dag_run_id": run_id, "only_failed": False}
        if task_ids is not None:
            wanted["task_ids"] = task_ids
        self.api("POST", f"/dags/{_quote(dag_id)}/clearTaskInstances", wanted)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Set a task's state by hand; ``failed`` kills a running task."""
        self.api("PATCH", _task(dag_id, run_id, task_id), {"new_state": state})

    def _login(self) -> dict[str, str]:
        if self._token is None:
            login = {"username": self.user, "password": self.password}
            self._token = str(self._send("POST", "/auth/token", login, {})["access_token"])
        return {"Authorization": f"Bearer {self._token}"}

    def _send(self, method: str, path: str, body: object, headers: Mapping[str, str]) -> Any:
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        request = urllib.request.Request(self._base + path, data=data, headers=sent, method=method)
        try:
            with _opener.open(request, timeout=_ANSWER_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(method, path, error.code, error.read().decode(errors="replace")) from None
        return json.loads(text) if text else None


def _quote(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{_quote(dag_id)}/dagRuns/{_quote(run_id)}"


def _task(dag_id: str, run_id: str, task_id: str) -> str:
    return f"{_run(dag_id, run_id)}/taskInstances/{_quote(task_id)}"


def _text(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _log_line(item: object, *, with_fields: bool) -> str:
    if not isinstance(item, dict):
        return str(item)
    rest = {key: value for key, value in item.items() if key not in ("event", "timestamp") and value is not None}
    if not with_fields:
        return "\n".join([str(item.get("event", "")), *_errors(rest)])
    head = f"{item['timestamp']} " if item.get("timestamp") else ""
    return f"{head}{item.get('event', '')}" + (f" {json.dumps(rest, default=str)}" if rest else "")


def _errors(fields: Mapping[str, Any]) -> list[str]:
    return [f"{error.get('exc_type')}: {error.get('exc_value')}" for error in fields.get("error_detail") or []]
