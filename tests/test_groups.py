"""Tests that share something costly run in one process: where a release of pytest stops that, it
says nothing, and the suite takes a third longer and its processes get in each other's way."""

import pytest


@pytest.mark.xdist_group("groups")
def test_a_group_of_tests_is_one(request: pytest.FixtureRequest) -> None:
    if hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith("@groups")
