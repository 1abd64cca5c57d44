"""Everybody computes the same graph, and it is a good one."""

import hashlib
import random

import pytest

from shoal.gossip.topology import neighbours
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
