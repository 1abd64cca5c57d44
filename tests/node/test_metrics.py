"""What Prometheus reads from a node, and that the dashboard for Grafana asks for nothing else."""

import asyncio
import json
import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from shoal.node.errors import UserError
from shoal.node.inspect_client import StatusReply
from shoal.node.metrics import families, serve_metrics
from shoal.node.ports import free_ports
from tests.node.fake_node import example_reply
from tests.node.played import played

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"


def exposed(reply: StatusReply) -> str:
    """The page that Prometheus would get."""

    class One(Collector):
        def collect(self):  # type: ignore[no-untyped-def]
            return families(reply)

    registry = CollectorRegistry()
    registry.register(One())
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, str], float]:
    """By name and the last label's value, "" for none."""
    return {
        (sample.name, [*sample.labels.values(), ""][-1 if not sample.labels else -2]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_numbers_are_those_of_the_status() -> None:
    reply = example_reply()
    reply.peers[0].liveness, reply.peers[1].liveness = "alive", "dead"
    reply.gossip.late_deltas = 2
    reply.checkpoints[-1].held_out_loss = 2.5
    seen = samples(exposed(reply))
    assert seen["shoal_training_loss", ""] == 2.513
    assert seen["shoal_held_out_loss", ""] == 2.5
    assert seen["shoal_rounds_total", ""] == seen["shoal_deltas_total", "published"] == 17
    assert seen["shoal_deltas_total", "late"] == 2
    assert [seen["shoal_members", each] for each in ("alive", "suspect", "dead")] == [1, 0, 1]
    assert seen["shoal_queue_length", "pending_deltas"] == 3
    assert seen["shoal_refused_total", "bad-signature"] == 2
    assert seen["shoal_checkpoint_height", ""] == 2
    assert seen["shoal_consensus_view", ""] == 1
    assert seen["shoal_event_loop_lag_p99_seconds", ""] == 0.0035
    traffic = 'shoal_payload_bytes_total{direction="sent",kind="delta"} 1.234567e+06'
    assert traffic in exposed(reply).splitlines()


def test_what_is_not_known_yet_is_left_out() -> None:
    reply = StatusReply()
    reply.consensus.commit_seconds = -1.0
    seen = samples(exposed(reply))
    for name in ("shoal_training_loss", "shoal_held_out_loss", "shoal_checkpoint_age_seconds"):
        assert (name, "") not in seen
    assert seen["shoal_members", "dead"] == 0, "an alert needs a 0 to start from"


def test_a_name_that_a_peer_chose_stays_inside_its_label() -> None:
    text = exposed(example_reply(node='x"} 1\nshoal_quorum 99\n'))
    assert samples(text)["shoal_quorum", ""] == 3


def test_the_names_follow_the_conventions_of_prometheus() -> None:
    for family in text_string_to_metric_families(exposed(example_reply())):
        assert re.fullmatch(r"shoal(_[a-z0-9]+)+", family.name) and family.documentation
        counted = all(sample.name.endswith("_total") for sample in family.samples)
        assert counted == (family.type == "counter") or not family.samples
        assert not re.search(r"_(ms|milliseconds|kb|mb)$", family.name), "base units"


@played
async def test_a_scrape_asks_the_event_loop_for_the_state_of_that_moment() -> None:
    port, rounds = free_ports(1)[0], iter((17, 18))
    home = asyncio.get_running_loop()

    def status() -> StatusReply:
        assert asyncio.get_running_loop() is home, "the node's state is of this loop alone"
        reply = example_reply()
        reply.training.round = next(rounds)
        return reply

    def scrape() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            return str(page.read().decode())

    server = serve_metrics(f"127.0.0.1:{port}", status)
    try:
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve_metrics(f"127.0.0.1:{port}", status)
        first, second = [samples(await asyncio.to_thread(scrape)) for _ in range(2)]
    finally:
        await server.stop()
    assert (first["shoal_rounds_total", ""], second["shoal_rounds_total", ""]) == (17, 18)
    assert first["process_resident_memory_bytes", ""] > 0
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape)


def test_the_dashboard_for_grafana_asks_only_for_what_there_is() -> None:
    known = {sample.name for f in families(example_reply()) for sample in f.samples}
    known |= {"process_resident_memory_bytes"}
    dashboard = json.loads((GRAFANA / "shoal.json").read_text())
    variables = dashboard["templating"]["list"]
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["query"] for each in variables if each["type"] == "query"]
    for query in queries:
        asked = set(re.findall(r"\b(?:shoal|process)_\w+", query))
        assert asked and asked <= known, f"{query}: {asked - known}"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
