"""Every setting of Headrace, typed, with its unit in its name: the only reader of the environment.

Each field is read from `HEADRACE_<FIELD>`; docs/settings.md lists them all (a test keeps the two equal).
"""

import difflib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "HEADRACE_"
READ_ELSEWHERE = {"HEADRACE_BIN", "HEADRACE_RETRY_SECONDS"}
"""Read by dags/command.py, which imports none of our code."""
SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_(TCP|UDP)\w*)?)$")
"""Ends of the names that Kubernetes sets for every Service beside a pod."""


class SettingsError(ValueError):
    """Settings of the environment are not usable; says which, and what each may be."""


class Settings(BaseSettings):
    """Holds every setting. `read_settings` words the errors of the environment for a person."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    data_dir: Path = Field(Path("var"), description="Where the log, features, releases and runs live.")
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the API listens on.")

    api_workers: int = Field(
        1, ge=1, le=64, description="Processes that `headrace serve` answers with; several need Linux."
    )
    concurrent_requests: int = Field(8, ge=1, le=64, description="Requests that one API process works on at a time.")
    queue_milliseconds: int = Field(100, ge=1, description="Longest wait of a request for its turn, before a 503.")

    segment_mebibytes: int = Field(64, ge=1, description="A log segment is closed at this size.")
    kafka_bootstrap: str | None = Field(None, description="Kafka servers, host:port,...; unset: the log is on files.")
    kafka_port: int = Field(9092, ge=1, le=65000, description="First port of the brokers that `make up` starts.")
    kafka_topic_prefix: str = Field("", description="In front of every topic and group: several logs in one cluster.")
    kafka_partitions: int = Field(6, ge=1, description="Partitions of a topic when it is created.")
    kafka_replication: int = Field(1, ge=1, description="Copies of a topic; a majority must have a record.")
    kafka_retention_days: int | None = Field(None, ge=1, description="Kafka drops older records; unset: it keeps all.")
    kafka_timeout_seconds: float = Field(3.0, gt=0, description="Longest wait for an answer of Kafka.")
    tools_dir: Path = Field(Path(".tools"), description="Where the jars of Kafka and of Spark's Kafka source are put.")
    max_event_bytes: int = Field(16_384, ge=256, description="Largest accepted event, as JSON.")
    max_batch_events: int = Field(1_000, ge=1, description="Most events in one POST /v1/events.")
    max_future_seconds: int = Field(300, ge=0, description="Events dated further ahead are refused.")
    max_event_age_days: int = Field(400, ge=1, description="Older events are refused; `headrace import` takes history.")
    recent_event_ids: int = Field(1_000_000, ge=1, description="Event ids remembered to recognise a repeated POST.")

    spool_mebibytes: int = Field(256, ge=1, description="Most impressions that wait on disk for a log that is down.")

    spark_master: str = Field("local[2]", description="Where Spark runs.")
    spark_driver_memory: str = Field("3g", description="Heap of the Spark driver.")
    spark_java_options: str = Field(
        "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        description="Options of the driver's Java: these favour an early start; for a large cluster, leave them empty.",
    )
    spark_conf: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="More of Spark's own configuration, as a JSON object; it wins over what Headrace sets."
    )
    stream_batch_records: int = Field(250_000, ge=1, description="Most records in one Spark micro-batch.")
    stream_trigger_milliseconds: int = Field(500, ge=0, description="Shortest time between micro-batches.")
    stream_nice: int = Field(
        5, ge=0, le=19, description="Niceness of `headrace stream`: where they share a machine, serving goes first."
    )
    population_refresh_seconds: int = Field(15, ge=1, description="How often item windows and trending are renewed.")
    exposures_refresh_seconds: int = Field(10, ge=1, description="How often impressions are joined to outcomes.")

    redis_url: str = Field("", repr=False, description="Online store in Redis; unset it is SQLite.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Port of the Redis that `make up` starts.")
    airflow_port: int = Field(8080, ge=1, le=65535, description="Port of the Airflow that `make up` starts.")
    redis_timeout_milliseconds: int = Field(200, ge=1, description="Longest wait of a request for Redis.")

    online_retail_url: str = Field(
        "https://archive.ics.uci.edu/static/public/352/online+retail.zip",
        description="Where `headrace import online-retail` fetches the data from when it is not at hand.",
    )
    release_poll_seconds: float = Field(2.0, gt=0, description="How often the API looks for a new release.")
    candidates_per_source: int = Field(100, ge=1, description="Most candidates taken from each source.")
    alerts_kept: int = Field(10_000, ge=1, description="Latest alerts the API holds for GET /v1/alerts.")
    decisions_kept: int = Field(200_000, ge=1, description="Latest decisions the API can join a label to.")
    drift_sample_requests: int = Field(50, ge=1, description="One request in so many is held against training.")
    drift_window_seconds: int = Field(3_600, ge=1, description="How far back the drift of model inputs looks.")
    scorer_share: int = Field(0, ge=0, description="Which of the scorers this one is, from 0.")
    scorer_shares: int = Field(1, ge=1, description="Scorers that divide the partitions of the transactions.")
    history_after_hours: float = Field(72.0, gt=0, description="A payment this late in the log gets no decision.")
    log_level: str = Field("INFO", description="Level of the application log.")
    log_format: Literal["text", "json"] = Field("text", description="Lines of the application log: text, or JSON.")
    log_requests: bool = Field(False, description="One log line for every request, not for failures alone.")
    pseudonym_key: SecretStr | None = Field(None, description="Secret that ids are hashed with in the log; or random.")
    otlp_endpoint: str | None = Field(None, description="OpenTelemetry collector (HTTP) that gets traces.")
    scorer_metrics_port: int = Field(0, ge=0, le=65535, description="`headrace score` serves /metrics there; 0: not.")
    metrics_host: str = Field("127.0.0.1", description="Address that the scorer's and the stream's /metrics listen on.")
    stream_metrics_port: int = Field(0, ge=0, le=65535, description="`headrace stream` serves /metrics there; 0: not.")

    @field_validator("spark_conf", mode="before")
    @classmethod
    def _parse_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @cached_property
    def log_dir(self) -> Path:
        return self.data_dir / "log"

    @cached_property
    def spool_dir(self) -> Path:
        """Impressions that wait for the event log."""
        return self.data_dir / "spool"

    @cached_property
    def metrics_dir(self) -> Path:
        """Where the API's worker processes keep the numbers that they add up to."""
        return self.data_dir / "run" / "metrics"

    @cached_property
    def offline_dir(self) -> Path:
        """Parquet tables of the offline store, one folder a table."""
        return self.data_dir / "offline"

    @cached_property
    def stream_status(self) -> Path:
        """What the feature job's last micro-batch did, as JSON; as old as that is."""
        return self.data_dir / "status" / "stream.json"

    @cached_property
    def tables_status(self) -> Path:
        """What the feature job's last renewal of tables made, as JSON."""
        return self.data_dir / "status" / "tables.json"

    @cached_property
    def traffic_status(self) -> Path:
        """What came of the last `headrace traffic`, as JSON."""
        return self.data_dir / "status" / "traffic.json"

    @cached_property
    def feast_dir(self) -> Path:
        """Feast's registry and the SQLite online store."""
        return self.data_dir / "feast"

    @cached_property
    def releases_dir(self) -> Path:
        return self.data_dir / "releases"

    @cached_property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    @cached_property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / "checkpoints"


def read_settings() -> Settings:
    """Reads the environment. Raises SettingsError with a line for each variable that is not usable."""
    try:
        return Settings()
    except ValidationError as error:
        properties = Settings.model_json_schema()["properties"]
        given = {name.upper(): value for name, value in os.environ.items()}
        fields = dict.fromkeys(str(item["loc"][0]) for item in error.errors())
        names = {field: f"{PREFIX}{field.upper()}" for field in fields}
        lines = [f"{names[name]} is {given[names[name]]!r}: it must be {_allowed(properties[name])}" for name in fields]
        raise SettingsError("\n".join(lines)) from error


def unknown_variables() -> list[str]:
    """Returns a line for each HEADRACE_... variable of the environment that no process reads."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields] + sorted(READ_ELSEWHERE)
    unknown = {name.upper() for name in os.environ if name.upper().startswith(PREFIX)} - set(known)
    lines = []
    for name in sorted(name for name in unknown if not SERVICE_LINK.search(name)):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        lines.append(f"{name} is no setting and has no effect; the nearest is {nearest} (docs/settings.md lists all)")
    return lines


def _allowed(schema: dict[str, Any]) -> str:
    """Describes in words the values that the JSON schema of a field allows."""
    schema = schema.get("anyOf", [schema])[0]
    if "enum" in schema:
        return " or ".join(schema["enum"])
    noun = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "object": """a JSON object of texts, as {"name": "value"}""",
    }.get(schema["type"], "a text")
    if "minimum" in schema and "maximum" in schema:
        return f"{noun} from {schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"{noun}, {schema['minimum']} or more"
    return f"{noun} above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else noun
