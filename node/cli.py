"""The shoal command: what a person types.

Everything heavy is imported inside the command that needs it, so that `shoal status` answers at
once and never loads torch. What goes wrong ends in main(), as one line on stderr and an exit code
of errors.py: a traceback is for us, so it goes to a file.
"""

import asyncio
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import shoal
from shoal.node import (
    dashboard_command,
    demo_command,
    doctor_command,
    errors,
    identity_commands,
    joining_commands,
    life_commands,
    membership_commands,
    proof_commands,
    runs_command,
    serve_command,
    simulate_command,
)
from shoal.node.addresses import DEFAULT_INSPECT
from shoal.node.cli_options import (
    AsJson,
    Device,
    Overrides,
    PresetFile,
    Target,
    answer,
    parse_overrides,
)
from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.progress import shown

# typer carries its own click from some version on, so its usage errors have no stable import path.
_USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="shoal",
    help="Train one language model together on many machines, with no server in the middle.",
    epilog="Start here: `shoal demo`, four nodes on this machine in a few minutes.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Listen = Annotated[str | None, typer.Option(help="host:port to serve on")]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="where the nodes' directories go")],
    nodes: Annotated[int, typer.Option(min=1, max=31, help="founding members")] = 4,
    host: Annotated[
        str, typer.Option(help="host of their addresses; {index} counts")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="first of their ports")] = 7400,
    data: Annotated[
        str, typer.Option(help="builtin, or a path of text; {index} counts")
    ] = "builtin",
    model: Annotated[
        Path | None,
        typer.Option(
            help="a transformers config.json, a pretrained model's directory, or hub:NAME"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="train this installed task, or module:Class, with --model as its config"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first weights and of batches")] = 0,
    budget: Annotated[
        str | None,
        typer.Option(help="what a member sends: bytes per parameter and round, or 20Mbit"),
    ] = None,
    preset: PresetFile = None,
    settings: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    as_json: AsJson = False,
) -> None:
    """Make a mesh: a directory for each node.

    Each gets a key and a node.toml of its own and the same genesis, which names the mesh.

    Example: shoal init runs/mesh --nodes 4, then shoal run runs/mesh/node0 and so on; whoever is to
    come later is invited with shoal invite runs/mesh/node0.
    """
    with shown("loading"):
        from shoal.node.provision import make_mesh

        made = make_mesh(
            directory,
            nodes=nodes,
            host=host,
            port=port,
            data=data,
            model=model,
            seed=seed,
            preset=preset,
            flags=parse_overrides(settings),
            budget=budget,
            task=task,
        )
    answer(made.as_plain(), made.lines(), as_json=as_json)


@app.command()
def run(
    directory: Annotated[Path | None, typer.Argument(help="a node's directory")] = None,
    config: Annotated[Path | None, typer.Option(help="its node.toml, if elsewhere")] = None,
    listen: Listen = None,
    device: Device = None,
    settings: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Run a node until Ctrl-C or SIGTERM.

    Example: shoal run runs/mesh/node0 --device cpu
    """
    if (directory is None) == (config is None):
        raise UserError("say which node: `shoal run DIR` or `shoal run --config node.toml`")
    overrides = {
        "node.listen": listen,
        "train.device": device,
        **parse_overrides(settings),
    }
    loaded = load_settings(config or directory, overrides)
    from shoal.node.trainer_child import training_child

    with training_child(loaded.train) as child:
        # It loads torch, which takes this process seconds as well.
        from shoal.node.daemon import run as run_daemon

        raise typer.Exit(run_daemon(loaded, child))


@app.command()
def status(
    address: Target = DEFAULT_INSPECT,
    watch: Annotated[bool, typer.Option("--watch", help="refresh until Ctrl-C")] = False,
    as_json: AsJson = False,
    member: Annotated[
        Path | None, typer.Option("--as", help="ask ID@host:port as the member of this directory")
    ] = None,
) -> None:
    """Show what a node does.

    Rounds, loss, checkpoints, peers, bytes, view, and what it refused.

    Example: shoal status runs/mesh/node0 --watch
    """
    from shoal.node.inspect_client import as_plain, fetch_status
    from shoal.node.views import make_console, status_view

    if watch:
        asyncio.run(_watch(address, member, as_json=as_json))
        return
    reply = asyncio.run(fetch_status(address, member=member))
    if as_json:
        print(json.dumps(as_plain(reply), indent=2, allow_nan=False))
    else:
        make_console().print(status_view(reply))


@app.command()
def checkpoints(address: Target = DEFAULT_INSPECT, as_json: AsJson = False) -> None:
    """List the checkpoints that the mesh committed.

    Example: shoal checkpoints runs/mesh/node0 --json
    """
    from shoal.node.inspect_client import as_plain, fetch_status
    from shoal.node.views import checkpoints_table, make_console

    reply = asyncio.run(fetch_status(address))
    if as_json:
        print(json.dumps([as_plain(each) for each in reply.checkpoints], indent=2))
    else:
        make_console().print(checkpoints_table(reply.checkpoints, total=len(reply.checkpoints)))


@app.command()
def health(
    address: Target = DEFAULT_INSPECT,
    service: Annotated[str, typer.Option(help="a gRPC service; empty: the whole node")] = "",
    as_json: AsJson = False,
) -> None:
    """Exit with 0 when a node says SERVING.

    It is the standard gRPC health service, so any other prober can ask too.

    Example: shoal health 127.0.0.1:7600
    """
    from shoal.node.inspect_client import check_health

    said = asyncio.run(check_health(address, service=service))
    answer({"service": service, "status": said}, [said], as_json=as_json)
    raise typer.Exit(errors.OK if said == "SERVING" else errors.UNREACHABLE)


@app.command()
def generate(
    directory: Annotated[Path, typer.Argument(help="a node's directory, or a checkpoint")],
    prompt: Annotated[str, typer.Option(help="the text to continue")],
    base: Annotated[
        Path | None,
        typer.Option(help="directory of the model that the checkpoint's adapters are for"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="how many to add; default: 200, if there is room"),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0, help="0: greedy")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same text")] = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a text with the newest checkpoint.

    Example: shoal generate runs/mesh/node0 --prompt "The import statement"
    """
    from shoal.node.checkpoint_dirs import newest_checkpoint

    checkpoint = newest_checkpoint(directory)
    with shown("writing"):
        from shoal.node.local_model import continue_text, own_base

        named = own_base(directory, base)
        text = continue_text(
            checkpoint, prompt, base=named, tokens=tokens, temperature=temperature, seed=seed
        )
    answer({"checkpoint": str(checkpoint), "text": text}, [text], as_json=as_json)


app.command()(proof_commands.verify)
app.command()(proof_commands.audit)
app.command()(proof_commands.average)
app.command()(proof_commands.own)
app.command()(demo_command.demo)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version.

    Example: shoal version
    """
    answer({"version": shoal.__version__}, [f"shoal {shoal.__version__}"], as_json=as_json)


joining_commands.register(app)
membership_commands.register(app)
identity_commands.register(app)
life_commands.register(app)
dashboard_command.register(app)
doctor_command.register(app)
simulate_command.register(app)
serve_command.register(app)
runs_command.register(app)


async def _watch(address: str, member: Path | None, *, as_json: bool) -> None:
    """Full view, refreshed; one JSON object a line with --json."""
    from rich.live import Live

    from shoal.node.inspect_client import as_plain, watch_status
    from shoal.node.views import fitted, make_console, status_view

    console = make_console()
    if as_json or not console.is_terminal:
        async for reply in watch_status(address, member=member):
            if as_json:
                print(json.dumps(as_plain(reply), allow_nan=False), flush=True)
            else:
                console.print(status_view(reply))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        async for reply in watch_status(address, member=member):
            live.update(fitted(status_view(reply), console), refresh=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never lets a traceback through."""
    # The training process is started, not forked into, so gRPC need not prepare for (and warn of)
    # forks. It reads this once, when it is imported.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # It would print a line of its own for every stranger whose handshake fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        result = app(args=given or ["--help"], prog_name="shoal", standalone_mode=False)
        return result if isinstance(result, int) else errors.OK
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except _USAGE_ERROR as error:
        return _complain(_usage_message(error), errors.BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort, asyncio.CancelledError):
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`shoal status | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.OK
    except Exception as error:
        return _explain_unexpected(error)


def _explain_unexpected(error: Exception) -> int:
    training = sys.modules.get("shoal.training.errors")
    if training is not None and isinstance(error, training.TrainingError):
        return _complain(str(error), errors.BAD_INPUT)
    if isinstance(error, OSError) and error.filename is not None:
        return _complain(f"{error.filename}: {error.strerror}", errors.BAD_INPUT)
    path = _write_traceback(error)
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _complain(
        f"unexpected {name}; this is a fault in Shoal, its traceback is in {path}",
        errors.INTERNAL,
    )


def _write_traceback(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="shoal-error-", suffix=".log", encoding="utf-8", delete=False
    ) as file:
        file.write(f"shoal {shoal.__version__}\n{' '.join(sys.argv)}\n{text}")
    return file.name


def _usage_message(error: Any) -> str:
    context = error.ctx
    command = context.command_path if context is not None else "shoal"
    return f"{error.format_message().rstrip('.')}; see `{command} --help`"


def _complain(message: str, exit_code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
