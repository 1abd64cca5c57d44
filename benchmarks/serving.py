"""How soon `shoal serve` answers, while a node trains and after: python -m benchmarks.serving

JSON lines, milliseconds. A mesh of the demo's model trains on this machine, a process for each
node, and one more serves what they certify; the client is OpenAI's. Per line: time to the first
token of a prompt that was not read before and of one that was but for its end, and time between
tokens, with one client and with two at once.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.demo_processes import start_node, stop_nodes
from shoal.node.founding import create_mesh
from shoal.node.parameters import MeshParameters
from shoal.node.ports import free_ports

PROMPT_TOKENS = 200
ANSWER_TOKENS = 32
REPEATS = 15


async def ask(client: openai.AsyncOpenAI, prompt: str) -> tuple[float, float]:
    """Milliseconds until the first piece of text, and between the others."""
    started = time.perf_counter()
    stream = await client.completions.create(
        model="shoal", prompt=prompt, max_tokens=ANSWER_TOKENS, temperature=1, stream=True
    )
    arrived = [time.perf_counter() async for _ in stream]
    between = (arrived[-1] - arrived[0]) / max(1, len(arrived) - 1)
    return 1e3 * (arrived[0] - started), 1e3 * between


def prompt_of(number: int, same: bool) -> str:
    """One token a byte; all of them but the last few are another prompt's, or none is."""
    text = "import asyncio, then await what it promises. " * 5
    return f"{'' if same else number:05}{text}"[: PROMPT_TOKENS - 5] + f"{number:05}"


async def measure(url: str, *, training: int) -> None:
    """Ask, and print a line for each number of clients."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http) as client:
        await ask(client, prompt_of(0, same=True))
        for clients in (1, 2):
            line: dict[str, Any] = {
                "benchmark": "serving",
                "nodes_training": training,
                "clients": clients,
                "prompt_tokens": PROMPT_TOKENS,
            }
            gaps: list[float] = []
            for name, same in (("first_token", False), ("first_token_reused", True)):
                firsts: list[float] = []
                for number in range(REPEATS):
                    prompts = [prompt_of(number * 10 + each, same) for each in range(clients)]
                    for first, gap in await asyncio.gather(*(ask(client, p) for p in prompts)):
                        firsts.append(first)
                        gaps.append(gap)
                line[f"{name}_p50_ms"] = round(statistics.median(firsts), 1)
                line[f"{name}_max_ms"] = round(max(firsts), 1)
            line["between_tokens_p50_ms"] = round(statistics.median(gaps), 2)
            print(json.dumps(line), flush=True)


def main() -> None:
    """Start the nodes, wait for their first checkpoint, serve it, measure, end them, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1, help="that train meanwhile")
    nodes: int = parser.parse_args().nodes
    with tempfile.TemporaryDirectory() as place:
        names = [f"node{index}" for index in range(nodes)]
        create_mesh(
            Path(place),
            nodes=nodes,
            host="127.0.0.1",
            ports=free_ports(nodes),
            data="builtin",
            model_config=None,
            parameters=MeshParameters(local_steps=4, rounds_per_checkpoint=4),
            seed=0,
            names=names,
        )
        directories = [Path(place) / name for name in names]
        try:
            for directory in directories:
                start_node(directory, address="", max_rounds=0)
            while not checkpoint_directories(directories[0]):
                time.sleep(0.5)
            words = ["-m", "shoal.node", "serve", str(directories[0]), "--listen", "127.0.0.1:0"]
            with subprocess.Popen(
                [sys.executable, *words], stderr=subprocess.PIPE, text=True
            ) as serve:
                assert serve.stderr is not None
                url = json.loads(serve.stderr.readline())["url"]
                try:
                    asyncio.run(measure(url, training=nodes))
                    stop_nodes(directories)
                    asyncio.run(measure(url, training=0))
                finally:
                    serve.terminate()
        finally:
            stop_nodes(directories)


if __name__ == "__main__":
    main()
