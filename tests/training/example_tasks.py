"""Tasks to try things with: the example that Shoal comes with, and one written on the spot."""

from pathlib import Path

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
DIGITS_TASK = "shoal_digits:Digits"

# y = a x + b by least squares; a source is how many examples there are of it.
LINE = """
import shoal, torch
from torch.utils.data import TensorDataset

class Line(shoal.Task):
    version = "{version}"

    def build(self):
        return {module}

    def read(self, source):
        x = torch.linspace(-1, 1, int(source))[:, None]
        data = TensorDataset(x, 3 * x - 1)
        return data, data

    def loss(self, module, batch):
        x, y = batch
        return (module(x) - y).square().mean()
"""


def write_line(
    directory: Path,
    *,
    name: str = "line",
    version: str = "2",
    module: str = "torch.nn.Linear(1, 1)",
) -> str:
    """Write the module `name` with the task; returns how it is named."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(LINE.format(version=version, module=module))
    return f"{name}:Line"


def offer(directory: Path, entry: str, target: str, *, package: str = "some_package") -> None:
    """What an installed package leaves in `directory` that offers `target` as the task `entry`."""
    place = directory / f"{package}-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(f"[shoal.tasks]\n{entry} = {target}\n")
