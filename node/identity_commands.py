"""`shoal identity`: who a node is, and copies of its key."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.node.cli_options import AsJson, answer
from shoal.node.errors import UserError

identity = typer.Typer(
    help="Show who a node is; back its key up, and bring it back.",
    rich_markup_mode=None,
)

Directory = Annotated[Path, typer.Argument(help="the node's directory")]
Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="a file whose first line it is; default: ask"),
]


@identity.command()
def show(directory: Directory, as_json: AsJson = False) -> None:
    """Print a node's id, and where newcomers ask it.

    Example: shoal identity show runs/mesh/node0
    """
    from shoal.node.backup import KEY_NAME, backup_warnings
    from shoal.node.config import load_settings
    from shoal.node.identity import Identity

    node_id = Identity.load(directory / KEY_NAME).node_id
    warnings = backup_warnings(directory, node_id)
    join = load_settings(directory).node.join_advertised
    lines = [f"id     {node_id.hex()}"]
    if join:
        lines.append(f"join   {join}, with what `shoal invite {directory}` prints")
    lines.append(f"backup {'; '.join(warnings) or 'made'}")
    facts = {"node_id": node_id.hex(), "join": join or None, "backup_warnings": warnings}
    answer(facts, lines, as_json=as_json)


@identity.command()
def export(
    directory: Directory,
    target: Annotated[Path, typer.Argument(help="a new file, on another disk")],
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Copy a node's key to a file, locked with a passphrase.

    Example: shoal identity export runs/mesh/node0 /media/stick/node0.pem
    """
    from shoal.node.backup import export_key

    made = export_key(directory, target, _passphrase(passphrase_file, confirm=True))
    node_id = made.node_id.hex()
    line = f"the key of {node_id} is in {target}, for whoever has the passphrase"
    answer({"node_id": node_id, "file": str(target)}, [line], as_json=as_json)


@identity.command("import")
def bring_back(
    source: Annotated[Path, typer.Argument(help="what `shoal identity export` wrote")],
    directory: Directory,
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Bring a node's key back from a copy.

    The node starts only where the key's safety.db is as well: a key without the memory of its
    votes must not vote.

    Example: shoal identity import /media/stick/node0.pem runs/mesh/node0
    """
    from shoal.node.backup import import_key

    brought = import_key(source, directory, _passphrase(passphrase_file, confirm=False))
    node_id = brought.node_id.hex()
    facts = {"node_id": node_id, "directory": str(directory)}
    answer(facts, [f"{directory} has the key of {node_id}"], as_json=as_json)


def _passphrase(file: Path | None, *, confirm: bool) -> str:
    if file is None:
        return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    return lines[0] if lines else ""


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(identity, name="identity")
