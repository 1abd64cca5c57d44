"""Every fuzz target against hypothesis, for seconds, and against all that ever crashed it.

Inputs are the seeds with some bytes changed: noise alone is refused at the first byte. They follow
from the code, so a failure repeats.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CRASHERS, TARGETS, crashers

EXAMPLES = 60
Edit = tuple[float, int, bytes]

# Where (as a share of the length), how many bytes go there, and what comes in their place.
edits = st.tuples(
    st.floats(0, 1),
    st.sampled_from([0, 1, 1, 2, 4, 8, 32]),
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"", b"\x00", b"\xff", b"\xff" * 4, b"\x7f" + b"\xff" * 7]),
    ),
)


def edited(seed: bytes, changes: list[Edit]) -> bytes:
    data = bytearray(seed)
    for where, size, replacement in changes:
        at = int(where * len(data))
        data[at : at + size] = replacement
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds():
        assert len(seed) <= TARGETS[name].bytes_max
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_raises_nothing_that_is_not_documented(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        seed=st.sampled_from(seeds),
        changes=st.lists(edits, max_size=6),
        noise=st.binary(max_size=64),
    )
    @example(seed=b"", changes=[], noise=b"")
    def tries(seed: bytes, changes: list[Edit], noise: bytes) -> None:
        target.run(edited(seed, changes))
        target.run(noise)

    tries()


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name in TARGETS for path in crashers(name)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_what_crashed_a_target_once_does_not_any_more(name: str, path: Path) -> None:
    TARGETS[name].run(path.read_bytes())


def test_every_crasher_belongs_to_a_target() -> None:
    assert {path.parent.name for path in CRASHERS.glob("*/*")} <= set(TARGETS)
