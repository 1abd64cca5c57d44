"""Weights that a node keeps after certain rounds, to be measured when the run is over."""

import asyncio
from pathlib import Path

import numpy as np
import torch

from shoal.node.genesis import load_genesis
from tests.node.mesh import found_mesh, running, until


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(path, dtype="<f4"))


def test_a_node_keeps_its_own_model_and_the_live_anchor(tmp_path: Path) -> None:
    async def story() -> None:
        (directory,) = found_mesh(tmp_path, nodes=1, start_share=0.0)
        kept = directory / "snapshots"
        async with running([directory], rounds=3, train__snapshot_rounds=[1, 3]) as nodes:
            seed = nodes[0].id[0]
            await until(lambda: (kept / "3-live.f32").exists(), nodes)
        names = {path.name for path in kept.iterdir()}
        assert names == {"1-own.f32", "1-live.f32", "3-own.f32", "3-live.f32"}

        # The first round began at the genesis; what it learned is not in the live anchor whole.
        start = load_genesis(directory / "genesis")[1].to_weights()
        learned = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed)) * 1e-3
        own, live = read(kept / "1-own.f32"), read(kept / "1-live.f32")
        assert torch.equal(own, start - learned)
        assert 0 < (live - start).norm() < (own - start).norm()

    asyncio.run(story())
