"""What every member of a mesh does alike: the parameters, their ranges, and what follows from them.

A genesis has the first ones, an epoch's record may have others (mesh_parameters.py). How often
members speak and how much they say follows from the budget and from how many they are.
"""

from dataclasses import dataclass, replace
from functools import cache

from shoal.gossip.density import SAID_MIN, kept_per_chunk, stretch

# Steps of a round whose length follows from the budget, where that is large enough.
USUAL_STEPS = 5
# Who says less keeps more to itself: so much more of the unsaid each time that rounds double, in
# all at most half (docs/adr/0030).
SHARE_STEP, SHARE_MAX = 0.1, 0.5
# Of the mesh parameters, both ends included; whole where both ends are, a switch where both are.
RANGES: dict[str, tuple[float, float]] = {
    "local_steps": (0, 100_000),
    "rounds_per_checkpoint": (1, 1024),
    "budget": (0.0001, 1000.0),
    "beta": (0.001, 1.0),
    "start_share": (0.0, 1.0),
    "alpha": (0.01, 100.0),
    "clip_factor": (0.1, 1e6),
    "staleness": (0, 16),
    "learning_rate": (1e-9, 10.0),
    "muon_scale": (0.0, 100.0),
    "warmup_tokens": (0, 2**62),
    "schedule_tokens": (1, 2**62),
    "normalise_steps": (False, True),
    "trust": (False, True),
    "evict_harmful": (False, True),
}


@dataclass(frozen=True, slots=True)
class MeshParameters:
    """What every member must do alike; chosen when the mesh is made.

    A quorum may change most of them later: mesh_parameters.py says which.
    """

    local_steps: int = 0
    """steps of the optimiser between two deltas (H); 0: what the budget makes of 5"""
    rounds_per_checkpoint: int = 8
    """own deltas between two checkpoints (E), of 5 steps each if local_steps is 0"""
    # How much of a delta is said follows from it and from the members (gossip/density.py).
    budget: float = 0.06
    """bytes per parameter that a member sends a round, or every 5 steps if local_steps is 0"""
    beta: float = 0.95
    """error feedback: what could not be said decays by this factor each round"""
    start_share: float = 0.3
    """share of its own residual that a node keeps in the weights it starts a round from"""
    # Later ones measure it (gossip/parameters.py).
    alpha: float = 1.0
    """gain of the first epoch"""
    clip_factor: float = 2.0
    """clip radius, in median norms of the last epoch's messages"""
    staleness: int = 2
    """cuts that a delta may miss before it expires"""
    learning_rate: float = 1e-3
    """of AdamW, at its highest"""
    muon_scale: float = 4.0
    """Muon trains hidden matrices at so many times that rate; 0: AdamW does, like all the rest"""
    warmup_tokens: int = 100_000
    """tokens of the whole mesh over which the learning rate rises"""
    schedule_tokens: int = 100_000_000
    """tokens of the whole mesh until which it falls"""
    normalise_steps: bool = False
    """a delta counts as if it had the mesh's usual number of steps, whatever its own is"""
    trust: bool = True
    """members whose deltas go against the others' count for less, down to a tenth"""
    evict_harmful: bool = False
    """members check each other on held-out text, and a quorum puts out who harms the model"""

    def worked_out(self, members: int) -> "MeshParameters":
        """The same for a mesh of so many members, with what follows from the budget worked out.

        Where the budget lengthens rounds, checkpoints come after as many steps as ever.
        """
        if self.local_steps:
            return self
        longer = stretch(self.budget, members)
        more = SHARE_STEP * (longer.bit_length() - 1)
        return replace(
            self,
            local_steps=longer * USUAL_STEPS,
            rounds_per_checkpoint=max(1, self.rounds_per_checkpoint // longer),
            budget=longer * self.budget,
            start_share=max(self.start_share, min(self.start_share + more, SHARE_MAX)),
        )

    def kept_per_chunk(self, members: int) -> int:
        """Values of each 4096 that a member of so many says a round."""
        return kept_per_chunk(self.worked_out(members).budget, members)

    @property
    def largest_first_value(self) -> float:
        """What bounds the deltas of the first epoch (root mean square of what they keep).

        A step of AdamW moves a value by about the learning rate, one of Muon by a fifth of its
        own; so an honest round cannot go further.
        """
        assert self.local_steps, "worked out first"
        step = self.learning_rate * max(1.0, self.muon_scale)
        return self.clip_factor * self.local_steps * step

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one short phrase each."""
        found = []
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            whole = isinstance(low, int) and isinstance(high, int)
            if isinstance(low, bool):
                if not isinstance(value, bool):
                    found.append(f"{name} must be true or false")
            elif isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                found.append(f"{name} must be a {'whole ' if whole else ''}number")
            elif not low <= value <= high:  # Not a number is between nothing and nothing.
                found.append(f"{name} must be from {low} to {high}")
        return found


@cache
def most_kept_per_chunk(mesh: MeshParameters) -> int:
    """What a member keeps at most, however many there are: nobody knows who will come and go."""
    # With more than these, one value each is enough.
    return max(mesh.kept_per_chunk(members) for members in range(1, SAID_MIN + 1))
