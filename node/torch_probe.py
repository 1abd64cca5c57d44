"""Says what torch is here, as one line of JSON: `python -m shoal.node.torch_probe`.

A process of its own, because loading torch takes seconds and hundreds of mebibytes, and a broken
one may end the process that loads it.
"""

import json
from typing import Any


def look() -> dict[str, Any]:
    """Load torch and ask it; what goes wrong is part of the answer."""
    try:
        import torch
    except BaseException as error:  # Whatever a broken installation raises is what is asked for.
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    found: dict[str, Any] = {"version": str(torch.__version__), "cuda": torch.version.cuda or ""}
    try:
        found["available"] = bool(torch.cuda.is_available())
        found["gpus"] = [
            {
                "name": torch.cuda.get_device_name(index),
                "bytes": torch.cuda.get_device_properties(index).total_memory,
            }
            for index in range(torch.cuda.device_count() if found["available"] else 0)
        ]
    except (RuntimeError, AssertionError, OSError):
        # It says that there are some and cannot use them: the same as none.
        found |= {"available": False, "gpus": []}
    return found


if __name__ == "__main__":
    print(json.dumps(look()), flush=True)
