"""Runs Apache Kafka on this machine without containers: one broker, or several that replicate, on loopback only.

Each broker is also a controller (KRaft, combined mode), a plain `java` over the jars of infra.maven.jars, kept by
infra.local.processes under the name `kafka-<node>`. For development and tests: no TLS, no users. A broker leaves
flushing to the system, as Kafka does by default: what a single broker acknowledged survives its crash, but not a loss
of power.
"""

import base64
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.local import processes
from infra.maven.jars import BROKER, jars
from infra.settings import Settings

HOST = "127.0.0.1"
HEAP = "-Xmx512m"
HEALTHY_SECONDS = 60.0
FORMAT_SECONDS = 60


class BrokerError(Exception):
    """Says why a broker cannot be started."""


@dataclass(frozen=True, slots=True)
class Node:
    """Describes one broker."""

    node_id: int
    port: int
    controller_port: int

    @property
    def name(self) -> str:
        """Returns the name of its process and of its folder."""
        return f"kafka-{self.node_id}"


def plan(first_port: int, *, brokers: int = 1) -> list[Node]:
    """Plans nodes 1, 2, ... on ports from `first_port` on, two for each."""
    return [Node(index + 1, first_port + 2 * index, first_port + 2 * index + 1) for index in range(brokers)]


def bootstrap(nodes: Sequence[Node]) -> str:
    """Returns HEADRACE_KAFKA_BOOTSTRAP for these nodes."""
    return ",".join(f"{HOST}:{node.port}" for node in nodes)


def start(settings: Settings, nodes: Sequence[Node]) -> None:
    """Starts those of `nodes` that do not run, and waits until all answer. Their data is in data_dir/kafka.

    Raises BrokerError when Java is missing or a broker does not come up, JarsError when its jars cannot be had.
    """
    running = processes.alive(settings)
    for node in nodes:
        if node.name not in running:
            processes.launch(settings, node.name, _command(settings, node, nodes))
    if not processes.wait_until(lambda: _healthy(settings, nodes), seconds=HEALTHY_SECONDS):
        failed = next((node for node in nodes if node.name not in processes.alive(settings)), nodes[0])
        raise BrokerError(f"{failed.name} did not come up:\n{processes.log_tail(settings, failed.name)}")


def _healthy(settings: Settings, nodes: Sequence[Node]) -> bool:
    if any(node.name not in processes.alive(settings) for node in nodes):
        raise BrokerError(f"a broker stopped:\n{processes.log_tail(settings, nodes[0].name)}")
    admin = AdminClient({"bootstrap.servers": bootstrap(nodes), "log_level": 0})
    try:
        return len(admin.list_topics(timeout=2).brokers) == len(nodes)
    except KafkaException:
        return False


def _command(settings: Settings, node: Node, nodes: Sequence[Node]) -> list[str]:
    """Returns the command that starts a node, after formatting its folder if that is new."""
    java = shutil.which("java")
    if java is None:
        raise BrokerError("there is no java on PATH; `headrace doctor` says how to get it")
    classes = ":".join(str(path) for path in jars(settings, BROKER))
    run = [java, HEAP, "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={Path(__file__).parent / 'log4j2.properties'}"]
    run += ["-cp", classes]
    folder = settings.data_dir.absolute() / "kafka" / node.name
    folder.mkdir(parents=True, exist_ok=True)
    properties = folder / "server.properties"
    properties.write_text(_properties(folder / "data", node, nodes))
    if not (folder / "data" / "meta.properties").exists():
        words = ["kafka.tools.StorageTool", "format", "--config", str(properties)]
        done = subprocess.run(
            # One word with its option: one id in 64 begins with a dash and would be read as another option.
            [*run, *words, f"--cluster-id={_cluster_id(folder.parent)}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FORMAT_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BrokerError(f"the folder of {node.name} could not be formatted:\n{done.stdout}")
    return [*run, "kafka.Kafka", str(properties)]


def _cluster_id(folder: Path) -> str:
    """Returns the id that all nodes of a folder share, created on first use."""
    path = folder / "cluster.id"
    if not path.exists():
        path.write_text(base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode())
    return path.read_text()


def _properties(data: Path, node: Node, nodes: Sequence[Node]) -> str:
    copies = min(3, len(nodes))
    majority = copies // 2 + 1
    voters = ",".join(f"{voter.node_id}@{HOST}:{voter.controller_port}" for voter in nodes)
    lines = {
        "process.roles": "broker,controller",
        "node.id": node.node_id,
        "controller.quorum.voters": voters,
        "listeners": f"PLAINTEXT://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{node.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": data,
        # Whoever first writes to a topic creates it, with its own partitions and replicas.
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": majority,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": majority,
        # Committed positions never expire: a group that was away for a month continues where it was.
        "offsets.retention.minutes": 2**31 - 1,
        "group.initial.rebalance.delay.ms": 0,
        "broker.session.timeout.ms": 6_000,
        "controlled.shutdown.max.retries": 1,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())
