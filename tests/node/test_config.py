"""What an operator sets, and what they read when it is wrong."""

import tomllib
from pathlib import Path

import pytest

from shoal.node.addresses import is_loopback, split_address
from shoal.node.config import Settings, document_settings, load_settings, setting_names
from shoal.node.errors import BAD_INPUT, UserError


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("SHOAL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def complaint(path: Path | None, **overrides: object) -> str:
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    with pytest.raises(UserError) as caught:
        load_settings(path, dotted)
    assert caught.value.exit_code == BAD_INPUT
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_file_means_the_defaults_in_its_own_directory(config: Path) -> None:
    config.touch()
    settings = load_settings(config)
    assert settings.node.listen == "127.0.0.1:7400"
    assert settings.node.advertised == "127.0.0.1:7400"
    assert settings.node.directory == config.parent
    assert settings.train.device == "auto"


def test_a_flag_beats_the_environment_which_beats_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("[train]\nbatch = 2\nsequence = 32\nthreads = 3\n")
    monkeypatch.setenv("SHOAL_TRAIN__BATCH", "4")
    monkeypatch.setenv("SHOAL_TRAIN__SEQUENCE", "64")
    train = load_settings(config, {"train.batch": 5, "train.seed": None}).train
    assert (train.batch, train.sequence, train.threads, train.seed) == (5, 64, 3, 0)


def test_a_list_in_the_environment_is_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = [f"{'0a' * 32}@a:7400", f"{'0b' * 32}@b:7401"]
    monkeypatch.setenv("SHOAL_NODE__PEERS", ", ".join(peers))
    assert load_settings(None).node.peers == peers


def test_a_list_of_one_number_is_a_list_in_a_flag() -> None:
    assert load_settings(None, {"train.snapshot_rounds": 20}).train.snapshot_rounds == [20]


def test_settings_made_directly_read_nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TRAIN__BATCH", "4")
    assert Settings().train.batch == 8


def test_relative_paths_are_meant_from_where_the_file_lies(config: Path) -> None:
    config.write_text('[node]\ndirectory = "state"\n[train]\ndata = "texts"\n')
    settings = load_settings(config.parent)
    assert settings.node.directory == config.parent / "state"
    assert settings.train.data == str(config.parent / "texts")


@pytest.mark.parametrize("data", ["builtin:2/4", "hub:org/texts@v1#data/*.jsonl"])
def test_the_builtin_text_and_the_hubs_are_not_paths(config: Path, data: str) -> None:
    config.write_text(f'[train]\ndata = "{data}"\ntoken_cache = "tokens"\n')
    assert load_settings(config).train.data == data
    assert load_settings(config).train.token_cache == str(config.parent / "tokens")


@pytest.mark.parametrize(
    ("text", "line", "meant"),
    [
        ('[node]\nlistn = "x"\n', 2, "node.listen"),
        ("[gosip]\ndegree = 3\n", 1, "gossip"),
        ('[log]\nlevel = "info"\n[gossip]\n\nbatch = 4\n', 5, "train.batch"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest_one(
    config: Path, text: str, line: int, meant: str
) -> None:
    config.write_text(text)
    message = complaint(config)
    assert f"{config}:{line}: " in message
    assert f"did you mean {meant}?" in message


def test_an_unknown_flag_and_an_unknown_variable_name_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "flag for node.listn" in complaint(None, node__listn="127.0.0.1:1")
    monkeypatch.setenv("SHOAL_TRAIN__BACH", "4")
    assert "did you mean SHOAL_TRAIN__BATCH?" in complaint(None)


def test_a_variable_that_is_no_setting_of_ours_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOAL_IMAGE", "shoal:latest")
    assert load_settings(None) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[node\n", "line 1"),
        ("node = 3\n", "write [node]"),
        ("[train]\nmax_rounds = -1\n", ":2: train.max_rounds"),
        ('[train]\nbatch = "many"\n', "valid integer"),
        ('[train]\ndevice = "gpu"\n', "auto, cpu, cuda or cuda:N"),
        ('[node]\nlisten = "7400"\n', "not host:port"),
        ('[node]\npeers = ["a:1", "b"]\n', '"a:1" is not ID@host:port'),
        ('[log]\nlevel = "loud"\n', "'debug', 'info', 'warning' or 'error'"),
        ("[gossip]\nfetch_timeout_s = nan\n", "gossip.fetch_timeout_s"),
        ("[gossip]\nfetch_timeout_s = inf\n", "gossip.fetch_timeout_s"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line_with_place_and_purpose(
    config: Path, text: str, expected: str
) -> None:
    config.write_text(text)
    message = complaint(config)
    assert str(config) in message
    assert expected in message


def test_a_file_that_cannot_be_read_says_why(config: Path) -> None:
    assert "shoal init" in complaint(config)
    config.write_bytes(b"\xff\xfe")
    assert "UTF-8" in complaint(config)
    config.write_bytes(b"#" * (1 << 21))
    assert "1 MiB" in complaint(config)


@pytest.mark.parametrize("listen", ["0.0.0.0:7400", "192.168.1.5:7400", "[::]:7400", "example:1"])
def test_only_this_machine_may_ask_in_the_clear(listen: str) -> None:
    assert "not encrypted" in complaint(None, node__inspect=listen)
    places = load_settings(None, {"node.listen": listen}).node
    assert is_loopback(places.inspect_listen)


def test_the_other_listeners_follow_the_first() -> None:
    places = load_settings(None, {"node.listen": "[::]:7400", "node.advertise": "fish:17"}).node
    assert places.join_listen == "[::]:7500"
    assert places.join_advertised == "fish:7500"
    assert places.inspect_listen == "127.0.0.1:7600"
    assert places.metrics_listen == "127.0.0.1:7700"
    off = load_settings(
        None, dict.fromkeys(("node.join", "node.inspect", "node.metrics"), "off")
    ).node
    assert (off.join_listen, off.join_advertised) == ("", "")
    assert (off.inspect_listen, off.metrics_listen) == ("", "")
    wide = load_settings(None, {"node.metrics": "0.0.0.0:9000"}).node
    assert wide.metrics_listen == "0.0.0.0:9000", "Prometheus is often on another machine"
    assert "no port" in complaint(None, node__listen="127.0.0.1:65500")


def test_peers_have_an_id_and_an_address() -> None:
    peer = f"{'ab' * 32}@127.0.0.1:7400"
    assert load_settings(None, {"node.peers": [peer]}).node.peers == [peer]
    for wrong in ("127.0.0.1:7400", "ab@127.0.0.1:7400", f"{'ab' * 32}@nowhere"):
        assert "peers" in complaint(None, node__peers=[wrong])


def test_loopback_is_known_by_address_and_by_name() -> None:
    assert is_loopback("127.0.0.1:1")
    assert is_loopback("[::1]:1")
    assert is_loopback("localhost:1")
    assert not is_loopback("127.0.0.1.example.org:1")


@pytest.mark.parametrize("wrong", ["", ":1", "host", "host:", "host:65536", "host:-1", "::1:5"])
def test_what_is_not_an_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|IPv6"):
        split_address(wrong)


def test_a_documented_file_explains_every_key_and_reads_back(config: Path) -> None:
    peer = f"{'0c' * 32}@a:1"
    values = {"node.name": 'say "hi"', "node.peers": [peer], "node.join": "off"}
    text = document_settings(values)
    config.write_text(text)
    node = load_settings(config).node
    assert (node.name, node.peers, node.join) == ('say "hi"', [peer], "off")
    for name in setting_names():
        section, key = name.split(".")
        assert f"\n[{section}]\n" in text
        assert f"{key} = " in text


def test_what_a_documented_file_leaves_out_is_the_default() -> None:
    text = document_settings({})
    assert all(table == {} for table in tomllib.loads(text).values())
    written = "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line[:30])
    assert 'listen = "127.0.0.1:7400"' in written


def test_every_setting_has_a_description() -> None:
    from shoal.node.config import SECTIONS

    for section in SECTIONS.values():
        for key, field in section.model_fields.items():
            assert field.description, key
    assert list(SECTIONS) == list(Settings.model_fields)
