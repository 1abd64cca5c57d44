"""How many threads a training process uses, decided before torch is loaded.

OpenMP reads its number of threads once, when torch is loaded, so the worker calls this between
reading its configuration and importing anything heavy. Nothing here may import torch.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.training.errors import TrainingError


@contextmanager
def loading() -> Iterator[None]:
    """Import something large. What it makes stays: walking it again and again while it grows takes
    a tenth of the time, and walking it later would copy it in a process that was forked."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def limit_threads(threads: int) -> None:
    """Limit the arithmetic to `threads` CPU threads."""
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise TrainingError(f"threads must be a whole number from 1 to 1024, not {threads!r}")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["MKL_NUM_THREADS"] = str(threads)
    # The tokenizers library's.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
