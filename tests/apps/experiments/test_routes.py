"""The experiments API: define, read, refuse with a reason, report."""

import asyncio

import httpx
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from apps.experiments.definitions import ExperimentStore
from apps.experiments.report import UNITS_FILE
from apps.experiments.routes import router
from apps.experiments.schemas import ExperimentDefinition
from apps.http.errors import install_errors
from infra.log.files import FileLog
from infra.settings import Settings

EXAMPLE = ExperimentDefinition.model_config["json_schema_extra"]["examples"][0]
KEY = EXAMPLE["key"]


class Client:
    """Calls the app in this process."""

    def __init__(self, app):
        self._app = app

    def get(self, path):
        return asyncio.run(self._call("GET", path))

    def put(self, path, *, json):
        return asyncio.run(self._call("PUT", path, json=json))

    async def _call(self, method, path, **more):
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, path, **more)


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


@pytest.fixture
def client(settings):
    app = FastAPI()
    app.state.settings = settings
    app.state.experiments = ExperimentStore(FileLog(settings.log_dir), lambda: 1_795_000_000.0)
    app.include_router(router)
    install_errors(app)
    return Client(app)


def test_define_read_list_and_stop(client):
    assert client.get("/v1/experiments").json() == []
    created = client.put(f"/v1/experiments/{KEY}", json=EXAMPLE)
    assert created.status_code == 201
    assert created.json()["seed"] == KEY
    assert client.get(f"/v1/experiments/{KEY}").json() == created.json()
    stopped = client.put(f"/v1/experiments/{KEY}", json=EXAMPLE | {"status": "stopped"})
    assert stopped.status_code == 200
    assert [each["status"] for each in client.get("/v1/experiments").json()] == ["stopped"]


def test_a_spoiling_change_is_a_conflict(client):
    client.put(f"/v1/experiments/{KEY}", json=EXAMPLE)
    answer = client.put(f"/v1/experiments/{KEY}", json=EXAMPLE | {"seed": "other"})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert "assigns the units again" in answer.json()["detail"]


def test_path_and_body_must_name_one_key(client):
    answer = client.put("/v1/experiments/other", json=EXAMPLE)
    assert answer.status_code == 422
    assert answer.json()["title"] == "Keys differ"


def test_the_answer_to_an_invalid_definition_says_what_is_wrong(client):
    answer = client.put(f"/v1/experiments/{KEY}", json=EXAMPLE | {"variations": EXAMPLE["variations"][:1]})
    assert answer.status_code == 422
    assert "at least two" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/experiments/none", "/v1/experiments/none/report"])
def test_an_unknown_experiment_is_not_found(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "PUT /v1/experiments/none" in answer.json()["detail"]


def test_the_report_before_and_after_the_first_units(client, settings, units_of):
    client.put(f"/v1/experiments/{KEY}", json=EXAMPLE)
    empty = client.get(f"/v1/experiments/{KEY}/report")
    assert empty.status_code == 200
    assert empty.json()["sample_ratio"]["verdict"] == "unknown"
    settings.offline_dir.mkdir(parents=True)
    rows = [
        {"experiment": KEY, "variation": name, "unit": f"{name}{number}", "conversions": int(number < bought)}
        for name, bought in (("baseline", 100), ("model", 160))
        for number in range(1_000)
    ]
    pq.write_table(units_of(rows), settings.offline_dir / UNITS_FILE)
    report = client.get(f"/v1/experiments/{KEY}/report").json()
    assert report["verdict"].startswith("model beats baseline: +60 %")
    assert [variation["units"] for variation in report["variations"]] == [1_000, 1_000]
    assert report["generated_at"].startswith("2026-11-")


def test_openapi_is_complete(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/experiments", "/v1/experiments/{key}", "/v1/experiments/{key}/report"}
    assert {"200", "201", "409", "422"} <= set(paths["/v1/experiments/{key}"]["put"]["responses"])
