"""Where a node's tokens go, and what it says while a long text is read."""

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shoal.node.config import TrainSettings
from shoal.node.sources import token_cache
from shoal.node.trainer import TrainerProcess


def test_tokens_go_where_all_nodes_of_a_user_find_them_or_else_into_the_nodes_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, train = tmp_path / "node", TrainSettings()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert token_cache(train, node) == tmp_path / "caches" / "shoal" / "tokens"
    assert token_cache(TrainSettings(token_cache="/srv/tokens"), node) == Path("/srv/tokens")
    (tmp_path / "caches").write_text("in the way")
    assert token_cache(train, node) == node / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert token_cache(train, node) == node / "tokens"


def test_a_node_says_how_far_the_reading_is_once_per_cent() -> None:
    events = [
        *({"event": "reading", "done": done, "of": 10**9} for done in (10**6, 2 * 10**6, 10**8)),
        {"event": "text", "shard_tokens": 7},
    ]

    async def shard_tokens() -> int:
        # Of the process, only what it says matters here.
        trainer = TrainerProcess.__new__(TrainerProcess)
        trainer._events = asyncio.StreamReader()
        for event in events:
            trainer._events.feed_data(json.dumps(event).encode() + b"\n")
        return await trainer.shard_tokens()

    with capture_logs() as logs:
        assert asyncio.run(shard_tokens()) == 7
    assert [line["percent"] for line in logs] == [0, 10]
