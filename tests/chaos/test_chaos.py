"""Real processes under real faults, briefly: what `make chaos` does for ten minutes.

The seed was chosen because its first 45 seconds hold one fault of every kind. Limits are generous:
this is about coming back at all and about safety; how fast it goes is measured by `make chaos` on
a machine with nothing else to do.
"""

import asyncio
import json
from pathlib import Path

import pytest

from tests.chaos.netns import HOST_TEMPLATE, filter_rules, node_host
from tests.chaos.network import Condition
from tests.chaos.proxy import ProxyNetwork
from tests.chaos.run import Plan, claim, run_chaos, summary

SEED = 147


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("chaos")
def test_four_nodes_live_through_every_kind_of_fault(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "run", seconds=45, seed=SEED, recovery_s=150, gap_s=60)
    report = summary(asyncio.run(run_chaos(plan, None)))
    details = json.dumps(report, indent=1)
    assert report["problems"] == [], details
    assert set(report["faults"]) == set(ProxyNetwork.kinds)
    assert sum(report["starts"]) > plan.nodes, "somebody was killed and came back"
    assert report["commits"] > 0
    assert report["audit"]["votes"] > 0 and report["audit"]["double_votes"] == 0, details
    assert report["audit"]["certificates_checked"] > 0


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose this")
    with pytest.raises(Exception, match="something else"):
        claim(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    claim(tmp_path / "run")
    claim(tmp_path / "run")


def test_the_rules_of_a_receiver_name_its_sources() -> None:
    assert node_host(12) == HOST_TEMPLATE.format(index=12) == "10.77.0.112"
    rules = filter_rules({1: Condition(loss=0.25), 2: Condition(blocked=True), 3: Condition()})
    assert [line for line in rules.splitlines() if line.startswith("-A")] == [
        "-A INPUT -s 10.77.0.11 -m statistic --mode random --probability 0.2500 -j DROP",
        "-A INPUT -s 10.77.0.12 -j DROP",
    ]
