"""Flower's FedAvg over the four SuperNodes; the mean is kept at the marks."""

from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.common_work import WORKERS, first_model, keep_weights, read_marks

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Give out the first weights, take the mean, round after round."""
    config = context.run_config
    local_steps = int(config["local-steps"])
    work = Path(str(config["work"]))
    model = first_model(work, int(config["seed"]))
    marks = read_marks(work)

    def keep(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if (steps := number * local_steps) in marks:
            weights = arrays.to_torch_state_dict()["weights"]
            keep_weights(Path(str(config["out"])) / "server" / f"{steps}.f32", model, weights)
        return None

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=WORKERS, min_available_nodes=WORKERS)
    strategy.start(
        grid,
        ArrayRecord({"weights": model.flat}),
        num_rounds=int(config["rounds"]),
        evaluate_fn=keep,
    )
