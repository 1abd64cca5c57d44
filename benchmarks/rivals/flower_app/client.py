"""What a SuperNode runs each round: from the server's weights, H steps, and back."""

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.common_work import Worker

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Each round is a process of its own, so the optimiser begins again."""
    config = context.run_config
    local_steps = int(config["local-steps"])
    worker = Worker(
        Path(str(config["work"])),
        index=int(context.node_config["partition-id"]),
        seed=int(config["seed"]),
        out=Path(str(config["out"])),
    )
    weights = message.content["arrays"].to_torch_state_dict()["weights"]
    worker.model.flat.copy_(weights)
    worker.steps = (int(message.content["config"]["server-round"]) - 1) * local_steps
    if worker.steps:
        worker.forget_moments()
    for _ in range(local_steps):
        worker.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": worker.model.flat}),
            # What the mean is weighted by: everybody has done as much.
            "metrics": MetricRecord({"num-examples": local_steps * worker.step_tokens}),
        }
    )
    return Message(content=content, reply_to=message)
