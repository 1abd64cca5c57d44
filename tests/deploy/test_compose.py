"""docker-compose.yml in each of its forms as compose reads it, and that its parts fit together.

Whether containers really make a mesh is what `make compose-test` is for; it takes minutes.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.node.config import load_settings

ROOT = Path(__file__).parents[2]
NODES = ("node0", "node1", "node2", "node3")
MEMBERS = (*NODES, "member")


def compose_command() -> list[str] | None:
    """How compose is called here, None where it is not installed."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]):
            done = subprocess.run([*words, "version"], capture_output=True, timeout=60)
            if done.returncode == 0:
                return words
    return None


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], NODES),
        (["--profile", "members"], MEMBERS),
        (["--profile", "monitoring"], (*NODES, "prometheus", "grafana")),
        (["--file", "docker-compose.yml", "--file", "deploy/compose.cuda.yml"], NODES),
    ],
    ids=["alone", "members", "monitoring", "cuda"],
)
def test_compose_reads_it(words: list[str], expected: tuple[str, ...]) -> None:
    compose = compose_command()
    if compose is None:
        pytest.skip("*** NO docker compose HERE: docker-compose.yml was not read by it ***")
    done = subprocess.run(
        [*compose, *words, "config", "--services"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(expected) <= set(done.stdout.split())


def test_nothing_in_the_clear_is_published_and_nothing_at_all_beyond_this_machine() -> None:
    for name, service in read("docker-compose.yml")["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
            assert port.rpartition(":")[2] == ("3000" if name == "grafana" else "7400"), name


def test_every_node_runs_with_settings_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    services = read("docker-compose.yml")["services"]
    for name in MEMBERS:
        with monkeypatch.context() as patch:
            for key, value in services[name]["environment"].items():
                patch.setenv(key, value)
            node = load_settings(None).node
        assert (node.listen, node.metrics_listen) == ("0.0.0.0:7400", "0.0.0.0:7700")
        assert node.inspect_listen == "127.0.0.1:7600", "health checks ask there, nobody else can"
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]


def test_prometheus_asks_every_node_where_it_answers() -> None:
    (job,) = read("deploy/prometheus.yml")["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert (set(found["names"]), found["port"]) == (set(MEMBERS), 7700)
    if shutil.which("promtool") is None:
        pytest.skip("*** NO promtool HERE: Prometheus has not read deploy/prometheus.yml ***")
    done = subprocess.run(
        ["promtool", "check", "config", str(ROOT / "deploy/prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    services = read("docker-compose.yml")["services"]
    provisioning = "deploy/grafana/provisioning"
    (source,) = read(f"{provisioning}/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    (provider,) = read(f"{provisioning}/dashboards/shoal.yml")["providers"]
    mounts = dict(each.split(":")[:2] for each in services["grafana"]["volumes"])
    assert mounts[f"./{provisioning}"] == "/etc/grafana/provisioning"
    assert mounts["./deploy/grafana/shoal.json"] == f"{provider['options']['path']}/shoal.json"
