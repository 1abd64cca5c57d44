"""Shoal: train one model together on many machines, with no server in the middle.

`shoal.Task` is what a mesh trains that is not text; `shoal.load` opens a checkpoint of one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.node.local_model import load
    from shoal.training.task import Cursor, Task

__version__ = "0.1.0"
__all__ = ["Cursor", "Task", "load"]


def __getattr__(name: str) -> Any:
    # Loaded when they are asked for: `shoal status` has no use for torch.
    if name in ("Cursor", "Task"):
        from shoal.training import task

        return getattr(task, name)
    if name == "load":
        from shoal.node.local_model import load

        return load
    raise AttributeError(f"module shoal has no {name}")
