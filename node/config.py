"""What an operator may set: one TOML file, every field documented, nothing guessed.

Four layers, each stronger than the one before: the defaults below, node.toml, environment
variables (SHOAL_NODE__LISTEN sets [node] listen), flags of the command line. A key that does
not exist is an error that names the nearest one, and every error says which layer it came from:
a setting that is silently ignored costs somebody an evening.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from shoal.node.addresses import (
    DEFAULT_LISTEN,
    INSPECT_PORT_ABOVE,
    JOIN_PORT_ABOVE,
    METRICS_PORT_ABOVE,
    is_loopback,
    port_above,
    split_address,
    split_peer,
)
from shoal.node.errors import UserError
from shoal.node.toml_file import line_of, merge, nested, read_toml, toml_value

OFF = "off"
CONFIG_NAME = "node.toml"
# What is relative to the file that it stands in, besides [node] directory.
PATHS = (
    ("train", "data"),
    ("train", "base"),
    ("train", "token_cache"),
    ("tracking", "directory"),
)


def _checked_address(address: str) -> str:
    split_address(address)
    return address


def _checked_peer(text: str) -> str:
    split_peer(text)
    return text


def _comma_separated(value: object) -> object:
    """A variable cannot hold a list, so it holds "a:7400,b:7400"; a flag may be one number."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


Address = Annotated[str, AfterValidator(_checked_address)]
PeerAddress = Annotated[str, AfterValidator(_checked_peer)]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Count = Annotated[int, Field(ge=1, le=65536)]
Height = Annotated[int, Field(ge=1, lt=1 << 62)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class _Section(BaseModel):
    # The line of text below a field is its documentation, in errors and in a written node.toml.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NodeSettings(_Section):
    name: Annotated[str, Field(min_length=1, max_length=64)] = "node"
    """what people call this node"""
    listen: Address = DEFAULT_LISTEN
    """host:port where it serves members: TLS with certificates on both sides"""
    advertise: Address | Literal[""] = ""
    """host:port that others dial; "" means the same as listen"""
    directory: Path = Path()
    """where keys, checkpoints and logs live; relative to this file"""
    join: Address | Literal["", "off"] = ""
    """host:port where newcomers ask, TLS; "" means 100 ports above listen, "off" nowhere"""
    join_advertise: Address | Literal[""] = ""
    """host:port that newcomers are told; "" means the host of advertise and the port of join"""
    inspect: Address | Literal["", "off"] = ""
    """loopback host:port for `shoal status`, not encrypted; "" means 200 ports above listen"""
    metrics: Address | Literal["", "off"] = ""
    """host:port for Prometheus, not encrypted; "" means loopback, 300 ports above listen"""
    peers: Annotated[list[PeerAddress], NoDecode, BeforeValidator(_comma_separated)] = []
    """ID@host:port of members to dial first; the others are learned from the log"""
    contacts: Annotated[list[PeerAddress], NoDecode, BeforeValidator(_comma_separated)] = []
    """ID@host:port of join ports, asked until the log says that this node is a member"""

    @property
    def advertised(self) -> str:
        """The address that other members are told."""
        return self.advertise or self.listen

    @property
    def join_listen(self) -> str:
        """Where newcomers are served; "" for nowhere."""
        return "" if self.join == OFF else self.join or port_above(self.listen, JOIN_PORT_ABOVE)

    @property
    def join_advertised(self) -> str:
        """The address that newcomers are told; "" for none."""
        if self.join_advertise or not self.join_listen:
            return self.join_advertise
        host = self.advertised.rpartition(":")[0]
        return f"{host}:{split_address(self.join_listen)[1]}"

    @property
    def inspect_listen(self) -> str:
        """Where this machine's people ask; "" for nowhere."""
        if self.inspect == OFF:
            return ""
        return self.inspect or port_above(self.listen, INSPECT_PORT_ABOVE, host="127.0.0.1")

    @property
    def metrics_listen(self) -> str:
        """Where Prometheus asks; "" for nowhere."""
        if self.metrics == OFF:
            return ""
        return self.metrics or port_above(self.listen, METRICS_PORT_ABOVE, host="127.0.0.1")


class TrainSettings(_Section):
    enabled: bool = True
    """false: relay and validate, train nothing"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    data: Annotated[str, Field(min_length=1)] = "builtin:0/4"
    """builtin:I/N, a file or directory of text (relative to this file), or hub:NAME"""
    base: str = ""
    """directory of the model that the mesh trains adapters of, if it does; relative to this file"""
    token_cache: str = ""
    """directory for tokens that outgrow memory, relative to this file; "": ~/.cache/shoal/tokens"""
    task: Annotated[str, Field(pattern=r"^([A-Za-z0-9_.]+:[A-Za-z0-9_.]+)?$")] = ""
    """module:Class that may be imported as the task of the mesh, if no package offers it by name"""
    threads: Count = 1
    """CPU threads for the arithmetic"""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """processes that share each batch, with a GPU each where there are GPUs; batch is a multiple"""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """how far training stands back for everything else on the machine, 0 to 19"""
    batch: Count = 8
    """sequences per step"""
    sequence: Annotated[int, Field(ge=2, le=65536)] = 128
    """tokens per sequence"""
    max_rounds: Annotated[int, Field(ge=0)] = 0
    """stop training after this many rounds; 0: never"""
    snapshot_rounds: Annotated[list[Height], NoDecode, BeforeValidator(_comma_separated)] = []
    """rounds after which its own weights and the live anchor are written into snapshots/"""
    own_mean_rounds: Annotated[int, Field(ge=0, le=10_000)] = 0
    """rounds that the mean of this node's own weights goes back, for `shoal own`; 0: keep none"""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """order of this node's batches"""
    share_permille: Annotated[int, Field(ge=1, le=1000)] = 1000
    """share of the machine given to training, in thousandths"""
    eval_batches: Count = 8
    """batches of held-out text per evaluation"""


class GossipSettings(_Section):
    degree: Annotated[int, Field(ge=1, le=64)] = 8
    """neighbours to keep; up to 16 members, everybody is a neighbour"""
    summary_interval_s: Seconds = 5.0
    """seconds between two summaries of what is held"""
    fetch_timeout_s: Seconds = 20.0
    """seconds until another holder of a delta is asked"""
    fetch_parallel: Annotated[int, Field(ge=1, le=64)] = 4
    """fetches in flight per neighbour"""
    patience: Annotated[float, Field(ge=0.25, le=16, allow_inf_nan=False)] = 1.0
    """multiplies every deadline of failure detection; they are learned, this is the only knob"""


class ConsensusSettings(_Section):
    base_timeout_s: Seconds = 2.0
    """seconds without progress until the first change of view; then it doubles"""
    candidate_timeout_s: Seconds = 5.0
    """seconds a proposer has for its candidate cut"""
    willing: bool = True
    """whether this node may be made a validator when it joins"""
    validators_wanted: Annotated[int, Field(ge=0, le=31)] = 0
    """approve willing members as validators up to so many; 0: only by `shoal promote`"""
    capture: bool = False
    """keep every consensus message and decision in capture/, for an audit; it grows for ever"""


class RetentionSettings(_Section):
    keep_whole: Annotated[int, Field(ge=2, le=1000)] = 2
    """newest checkpoints kept whole; the same on all nodes, like keep_every and archived_max"""
    keep_every: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """of the older ones, multiples of this are kept in pieces by some members each"""
    archived_max: Annotated[int, Field(ge=0, le=10_000)] = 16
    """at most so many old checkpoints; then the oldest goes"""
    pinned: Annotated[list[Height], NoDecode, BeforeValidator(_comma_separated)] = []
    """heights of which this node keeps every piece, whatever the others do"""
    repair_bytes_per_s: Annotated[int, Field(ge=1024, le=1 << 40)] = 8 << 20
    """bytes per second for pulling what this node should keep and does not have"""


class TrackingSettings(_Section):
    trackers: Annotated[list[Tracker], NoDecode, BeforeValidator(_comma_separated)] = []
    """who shows runs besides `shoal runs`: of tensorboard, wandb, mlflow (docs/tracking.md)"""
    directory: str = ""
    """where they write, relative to this file; "" means tracking/ in the node's directory"""
    project: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")] = "shoal"
    """project of W&B, experiment of MLflow"""
    wandb_online: bool = False
    """true: W&B sends every run to its server; false: nothing leaves this machine"""


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error"""
    format: Literal["auto", "json", "console"] = "auto"
    """json, console, or auto: console on a terminal, one JSON object per line elsewhere"""


class Settings(BaseSettings):
    """Everything above. Built from arguments alone; load_settings is what reads the layers."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="SHOAL_", env_nested_delimiter="__"
    )

    node: NodeSettings = NodeSettings()
    train: TrainSettings = TrainSettings()
    gossip: GossipSettings = GossipSettings()
    consensus: ConsensusSettings = ConsensusSettings()
    retention: RetentionSettings = RetentionSettings()
    tracking: TrackingSettings = TrackingSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[Any, ...]:
        return (sources["init_settings"],)


SECTIONS: dict[str, type[_Section]] = {
    "node": NodeSettings,
    "train": TrainSettings,
    "gossip": GossipSettings,
    "consensus": ConsensusSettings,
    "retention": RetentionSettings,
    "tracking": TrackingSettings,
    "log": LogSettings,
}


def setting_names() -> list[str]:
    """Every key there is, as "section.key", in the order of the file."""
    return [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields]


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The known name that was most likely meant: the same key elsewhere, or similar letters."""
    names = sorted(known)
    key = wrong.rpartition(".")[2]
    same_key = [name for name in names if name.rpartition(".")[2] == key]
    return (same_key or difflib.get_close_matches(wrong, names, n=1, cutoff=0.0))[0]


def load_settings(path: Path | None, overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of one node.

    path: its node.toml, the directory that holds one, or None for defaults alone.
    overrides: flags, by dotted name, as {"node.listen": "127.0.0.1:7401"}; None is no override.
    Raises UserError, one line, for a file that cannot be read, a key that does not exist and a
    value that does not fit.
    """
    if path is not None and path.is_dir():
        path = path / CONFIG_NAME
    from_file = _from_file(path) if path is not None else {}
    flags = nested({name: value for name, value in (overrides or {}).items() if value is not None})
    _refuse_unknown_variables()
    try:
        from_environment = EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise UserError(f"environment: {error}") from None
    merged = merge(merge(from_file, from_environment), flags)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise UserError(_explain(error, path, flags)) from None
    try:
        _ = settings.node.join_listen, settings.node.metrics_listen
        inspect = settings.node.inspect_listen
    except ValueError as error:
        raise UserError(f"{_origin(path, flags, 'node', 'listen')}: {error}") from None
    if inspect and not is_loopback(inspect):
        raise UserError(
            f"{_origin(path, flags, 'node', 'inspect')} = {inspect} can be reached from other "
            "machines, and what is said there is not encrypted; use 127.0.0.1"
        )
    return settings


def document_settings(values: Mapping[str, object]) -> str:
    """A node.toml with every key explained; those not in values stay commented, as defaults.

    values: by dotted name. Raises AssertionError for a name that does not exist.
    """
    unknown = sorted(set(values) - set(setting_names()))
    assert not unknown, f"not settings: {unknown}"
    lines = ["# One Shoal node; SHOAL_NODE__LISTEN=... in the environment and flags override this."]
    for name, section in SECTIONS.items():
        lines += ["", f"[{name}]"]
        for key, field in section.model_fields.items():
            given = f"{name}.{key}" in values
            value = values[f"{name}.{key}"] if given else field.get_default()
            lines += [
                f"# {field.description}",
                f"{'' if given else '# '}{key} = {toml_value(value)}",
            ]
    return "\n".join(lines) + "\n"


def _from_file(path: Path) -> dict[str, Any]:
    values = read_toml(path)
    # The settings themselves take [Node] for [node]; then its paths would be meant from elsewhere.
    for section in values:
        if section not in SECTIONS:
            raise UserError(_no_such(_origin(path, {}, section, ""), section, ""))
    return _anchored(values, path)


def _anchored(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Relative paths in a file are meant from where the file lies."""
    home = path.resolve().parent
    node = values.get("node", {})
    if isinstance(node, dict) and isinstance(node.get("directory", ""), str):
        values = merge(values, {"node": {"directory": str(home / node.get("directory", ""))}})
    for section, key in PATHS:
        table = values.get(section)
        place = table.get(key) if isinstance(table, dict) else None
        if isinstance(place, str) and place and not place.startswith(("builtin:", "hub:")):
            values = merge(values, {section: {key: str(home / place)}})
    return values


def _explain(error: ValidationError, path: Path | None, flags: Mapping[str, Any]) -> str:
    """The first problem as one line: where, what, and what it is for."""
    first = error.errors(include_url=False)[0]
    section, key = (*map(str, first["loc"][:2]), "")[:2]
    where = _origin(path, flags, section, key)
    if first["type"] == "extra_forbidden":
        return _no_such(where, section, key)
    if not key:
        return f"{where}: is a table; write [{section}] and its keys below it"
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[:1].lower() + problem[1:]
    given = first["input"]
    if isinstance(given, str | int | float) and str(given) not in problem:
        problem += f", not {given!r}"
    return f"{where}: {problem} (it is: {SECTIONS[section].model_fields[key].description})"


def _no_such(where: str, section: str, key: str) -> str:
    known = setting_names() if key else [*SECTIONS, *setting_names()]
    meant = nearest(f"{section}.{key}" if key else section, known)
    return f"{where}: there is no such setting; did you mean {meant}?"


def _origin(path: Path | None, flags: Mapping[str, Any], section: str, key: str) -> str:
    """Which layer a value came from, and where in it."""
    name = f"{section}.{key}" if key else section
    if key in flags.get(section, {}):
        return f"flag for {name}"
    variable = f"SHOAL_{section}__{key}".upper()
    if variable in {each.upper() for each in os.environ}:
        return f"environment variable {variable}"
    if path is None:
        return name
    line = line_of(path, section, key)
    return f"{path}:{line}: {name}" if line else f"{path}: {name}"


def _refuse_unknown_variables() -> None:
    """SHOAL_X__Y can only mean a setting; other SHOAL_ names may belong to somebody else."""
    known = {f"SHOAL_{name.replace('.', '__')}".upper() for name in setting_names()}
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith("SHOAL_") and "__" in name and name not in known:
            raise UserError(
                f"environment variable {variable}: there is no such setting; "
                f"did you mean {nearest(name, known)}?"
            )
