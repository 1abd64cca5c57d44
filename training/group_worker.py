"""A further rank of a node's training: `python -m shoal.training.group_worker`, started by rank 0.

It is told on its stdin what to train, as the training process was, and then each step (group.py).
It ends with its input, at any time.
"""

import json
import os
import signal
import threading
import traceback
from typing import NoReturn

from shoal.training.errors import TrainingError
from shoal.training.process import limit_threads
from shoal.training.worker import Inbox, read_commands


def main() -> NoReturn:
    """Train as rank 0 says; where that fails, tell it why and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    to_rank_0 = os.dup(1)
    os.dup2(2, 1)
    inbox = Inbox()
    threading.Thread(target=read_commands, args=(inbox,), name="commands", daemon=True).start()
    try:
        _follow(inbox)
    except TrainingError as error:
        message = str(error)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    os.write(to_rank_0, json.dumps({"message": " ".join(message.split())}).encode() + b"\n")
    os._exit(1)


def _follow(inbox: Inbox) -> NoReturn:
    configuration = inbox.first()
    rank, meeting = int(configuration.pop("rank")), str(configuration.pop("meeting"))
    limit_threads(configuration["threads"])
    import torch
    import torch.distributed as dist

    torch.set_num_threads(configuration["threads"])
    from shoal.training.group import join_group
    from shoal.training.session import SessionConfig, TrainingSession

    config = SessionConfig.from_json(configuration)
    session = TrainingSession(config, rank=rank)
    session.train_with(
        join_group(session.model, rank=rank, processes=config.processes, meeting=meeting)
    )
    os.nice(config.nice)
    total = torch.zeros((), device=session.model.device)
    while True:
        command = inbox.next()
        match command.pop("cmd"):
            case "weights":
                dist.broadcast(session.model.flat, 0)
            case "step":
                total += session.step(**command)
            case "loss":
                dist.all_reduce(total)
                total.zero_()


if __name__ == "__main__":
    main()
