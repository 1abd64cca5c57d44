"""`shoal serve`: the command; what it does is in serve.py."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from shoal.node.addresses import DEFAULT_SERVE, is_loopback
from shoal.node.cli_options import Device
from shoal.node.errors import OK, UserError
from shoal.node.progress import shown

KEY_BYTES_MAX = 4096
KEY_CHARACTERS_MIN = 16


def serve(
    directory: Annotated[Path, typer.Argument(help="a node's directory, or a checkpoint")] = Path(),
    listen: Annotated[str, typer.Option(help="host:port for HTTP")] = DEFAULT_SERVE,
    grpc: Annotated[str, typer.Option(help='host:port for gRPC, shoal.v1.Text; "": none')] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(help="its first line is what clients must show")
    ] = None,
    trust: Annotated[
        str | None, typer.Option(metavar="MESH", help="mesh id in hex, or a genesis.json")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="directory of the model that the checkpoint's adapters are for"),
    ] = None,
    average: Annotated[
        int, typer.Option(min=1, max=64, help="serve the mean of so many newest checkpoints")
    ] = 1,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="of its arithmetic")] = 1,
    requests: Annotated[
        int, typer.Option(min=1, max=1024, help="answered at a time; more are told to wait")
    ] = 16,
    device: Device = "cpu",
) -> None:
    """Serve the newest certified checkpoint to OpenAI's clients.

    Verifies it first, and each newer one that appears in the directory, also while a node trains
    there. Its URL for clients is http://ADDRESS/v1, the model is called shoal.

    Example: shoal serve runs/mesh/node0
    """
    from shoal.node.checkpoint_dirs import newest_checkpoint
    from shoal.node.verify import trusted_mesh
    from shoal.training.process import limit_threads

    key = read_key(api_key_file, listen)
    if grpc:
        read_key(api_key_file, grpc, "--grpc")
    mesh_id = trusted_mesh(trust) if trust is not None else None
    if newest_checkpoint(directory) == directory and average > 1:
        raise UserError(
            f"{directory} is one checkpoint; --average {average} needs a node's directory"
        )
    limit_threads(threads)
    # It loads torch, which reads that.
    from shoal.node.follow import Follower
    from shoal.node.log import configure_logging
    from shoal.node.serve import Serving, run
    from shoal.training.device import pick_device

    configure_logging(level="info", output_format="auto", node="serve")
    follower = Follower(
        directory,
        trust=mesh_id,
        base=base,
        device=pick_device(device or "cpu"),
        clock=time.time,
        average=average,
    )
    with shown("verifying the newest checkpoint"):
        first = follower.look()
    assert first is not None, "the first one is newer than none"
    service = run(Serving(follower, first), listen, key=key, requests_max=requests, grpc=grpc)
    asyncio.run(service)
    raise typer.Exit(OK)


def read_key(path: Path | None, listen: str, option: str = "--listen") -> str:
    """The key that clients must show: the first line of a file, "" for none.

    Raises UserError where it is too short to be one, or missing where others can connect.
    """
    try:
        loopback = is_loopback(listen)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
    if path is None:
        if not loopback:
            raise UserError(
                f"whoever reaches {listen} could use the model; give --api-key-file FILE too "
                "(one line, like that of `openssl rand -hex 32`), or listen on 127.0.0.1"
            )
        return ""
    try:
        with path.open("rb") as file:
            lines = file.read(KEY_BYTES_MAX).decode().splitlines()
    except ValueError:
        lines = []
    except OSError as error:
        raise UserError(f"--api-key-file {path}: {error.strerror}") from None
    key = lines[0].strip() if lines else ""
    if len(key) < KEY_CHARACTERS_MIN:
        raise UserError(
            f"--api-key-file {path}: its first line is the key, of {KEY_CHARACTERS_MIN} "
            "characters at least; make one with `openssl rand -hex 32`"
        )
    return key


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(serve)
