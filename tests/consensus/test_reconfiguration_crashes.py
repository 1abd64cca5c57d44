"""A power cut before any single effect of a change of the voting set."""

from collections.abc import Callable

import pytest

from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.effects import Effect, Event
from tests.consensus.mesh import Mesh
from tests.consensus.test_reconfiguration import assert_sound, assert_together


def growing(mesh: Mesh) -> None:
    """The approval that completes the quorum, and one more, since the first may be lost."""
    for by in (2, 3):
        mesh.submit(by, mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), by, epoch=0))
        mesh.deliver()
    mesh.gossip(1)


def leaving(mesh: Mesh) -> None:
    """A goodbye by two ways, since one of them may be lost."""
    for at in (3, 1):
        mesh.order([mesh.leave(3)], at=at)
    mesh.gossip(1)


def crashing(mesh: Mesh, story: Callable[[Mesh], None], victim: int, crash_at: int | None) -> int:
    """Tell the story; the victim dies before its crash_at-th effect. Returns how many it had."""
    for by in (0, 1):
        mesh.order([mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), by)], at=by)
    count = 0
    ordinary = mesh.step

    def counting(index: int, event: Event, *, until: int | None = None) -> list[Effect]:
        nonlocal count
        if index != victim:
            return ordinary(index, event)
        effects = mesh.replicas[index].step(mesh.now_ms, event)
        for effect in effects:
            count += 1
            if count - 1 == crash_at:
                mesh.restart(victim)
                return effects
            mesh._carry_out(index, effect)
        return effects

    mesh.step = counting  # type: ignore[method-assign]
    story(mesh)
    mesh.step = ordinary  # type: ignore[method-assign]
    mesh.order([mesh.join("last")], at=2)
    mesh.gossip(3)
    return count


@pytest.mark.parametrize(
    ("story", "victim", "voters"),
    [(growing, 1, [0, 1, 2, 3, 4]), (growing, 4, [0, 1, 2, 3, 4]), (leaving, 3, [0, 1, 2])],
)
def test_a_crash_before_any_single_effect_of_a_change_is_safe(
    story: Callable[[Mesh], None], victim: int, voters: list[int]
) -> None:
    total = crashing(Mesh(4, 1), story, victim, None)
    assert total > 15
    for crash_at in range(total):
        mesh = Mesh(4, 1)
        crashing(mesh, story, victim, crash_at)
        assert mesh.voters() == voters, crash_at
        assert_together(mesh)
        assert_sound(mesh)
