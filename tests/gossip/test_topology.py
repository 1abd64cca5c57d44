"""Everybody computes the same graph, and it is a good one."""

import hashlib
import random

import pytest

from shoal.gossip.topology import GRAPHS, matching, neighbours
from shoal.gossip.topology import graph as named_graph
from tests.gossip.builders import member

IDS = [hashlib.sha256(bytes([n // 256, n % 256])).digest() for n in range(300)]
SEED = b"s" * 32


def graph(count: int, seed: bytes = SEED, degree: int = 8) -> dict[bytes, tuple[bytes, ...]]:
    return {me: neighbours(IDS[:count], me, seed, degree) for me in IDS[:count]}


def farthest(links: dict[bytes, tuple[bytes, ...]]) -> int:
    """Steps from the first node to the last one reached; all must be reached."""
    start = next(iter(links))
    distance, front = {start: 0}, [start]
    for node in front:
        for other in links[node]:
            if other not in distance:
                distance[other] = distance[node] + 1
                front.append(other)
    assert len(distance) == len(links), "the graph is not connected"
    return max(distance.values())


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_few_members_all_link_to_each_other(count: int) -> None:
    for me, others in graph(count).items():
        assert set(others) == set(IDS[:count]) - {me}


@pytest.mark.parametrize("count", [17, 18, 31, 64, 120])
def test_many_members_make_a_regular_connected_graph(count: int) -> None:
    links = graph(count)
    for me, others in links.items():
        assert me not in others
        assert list(others) == sorted(set(others))
        assert all(me in links[other] for other in others), "links are mutual"
        assert len(others) == 8
    assert farthest(links) <= 5


def test_all_nodes_agree_whatever_order_they_know_the_members_in() -> None:
    for me in IDS[:5]:
        shuffled = random.Random(1).sample(IDS[:40], 40)
        assert neighbours(shuffled, me, SEED) == neighbours(IDS[:40], me, SEED)


def test_another_epoch_draws_another_graph() -> None:
    assert graph(64) != graph(64, b"t" * 32)
    assert graph(64, degree=4) != graph(64)
    assert all(len(others) == 4 for others in graph(64, degree=4).values())


def test_the_graph_is_the_one_it_always_was() -> None:
    listing = b"".join(b"".join(others) for _, others in sorted(graph(40).items()))
    assert hashlib.sha256(listing).hexdigest() == GOLDEN_GRAPH


GOLDEN_GRAPH = "52572c731a79a8bbf44f15a5a1fe42e0c90d1cbfb3e163d74b8747299458b9c8"


def test_a_stranger_has_no_neighbours() -> None:
    assert neighbours(IDS[:40], member(9), SEED) == ()


def test_small_meshes_just_above_the_full_mesh_are_regular_for_many_seeds() -> None:
    for number in range(20):
        for others in graph(17, bytes([number]) * 32).values():
            assert 6 <= len(others) <= 8


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 16, 17, 64])
def test_every_named_graph_is_connected_and_mutual(kind: str, count: int) -> None:
    links = named_graph(kind, IDS[:count], SEED, 4)
    for me, others in links.items():
        assert me not in others
        assert list(others) == sorted(set(others))
        assert all(me in links[other] for other in others), "links are mutual"
    farthest(links)


def test_named_graphs_have_the_links_of_their_names() -> None:
    degrees = {
        kind: {len(others) for others in named_graph(kind, IDS[:64], SEED, 6).values()}
        for kind in GRAPHS
    }
    assert degrees == {
        "ring": {2},
        "torus": {4},
        "exponential": {11},  # 1, 2, 4, 8, 16 both ways, and 32, which is both ways at once
        "random-regular": {6},
        "complete": {63},
    }
    steps = {kind: farthest(named_graph(kind, IDS[:64], SEED, 6)) for kind in GRAPHS}
    assert steps["complete"] == 1
    assert steps["ring"] == 32
    assert steps["torus"] == 8
    assert steps["exponential"] == 3
    assert steps["random-regular"] <= 4


def test_everybody_meets_one_other_and_not_the_same_every_round() -> None:
    for count in (2, 7, 16):
        pairs = [matching(IDS[:count], SEED, number) for number in range(20)]
        for met in pairs:
            assert len(met) == count - count % 2
            assert all(met[other] == me and other != me for me, other in met.items())
        assert count == 2 or len({tuple(sorted(met.items())) for met in pairs}) > 10
