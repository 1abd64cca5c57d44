"""What several nodes say about themselves and each other, as one picture of the mesh. Pure.

Each node has an opinion of each other one, and they may differ. A member is shown as dead where
most of those who answer and know it say so, as suspect where anybody doubts. The mesh is as high as
most of them say. What a node that does not answer any more said last is shown, and counts for
nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from statistics import fmean
from typing import Any

from shoal.node.inspect_client import CheckpointReply, PeerReply, StatusReply
from shoal.node.views import printable

# One height less is the normal case while a checkpoint is being rebuilt.
BEHIND_HEIGHTS = 2
CHECKPOINTS_SHOWN = 20
WORD_MAX = 64
SENTENCE_MAX = 200

Picture = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The newest reply of one node; fresh: it still answers."""

    reply: StatusReply
    fresh: bool


def clean(text: str, limit: int = WORD_MAX) -> str:
    """Text of another machine, short and without control characters."""
    return printable(text[:limit]).replace("\n", " ")


def _finite(value: float) -> float:
    return value if isfinite(value) else 0.0


def picture(ids: Sequence[str], answers: Mapping[str, Answer], home: str = "") -> Picture:
    """The mesh of these members, as JSON takes it; `answers` by id, of whoever ever answered.

    home: whose word is taken for what only one can say, like the epoch, as long as it answers.
    Byte counts are sums over the nodes that answer, the shared model's loss the mean of theirs.
    """
    fresh = {node: answer.reply for node, answer in answers.items() if answer.fresh}
    if not fresh:
        return {"trouble": "no node answers"}
    replies = [fresh[node] for node in sorted(fresh, key=lambda node: (node != home, node))]
    told_by, height = replies[0], _height(replies)
    checkpoints = list(_checkpoints(replies, height))
    seen = {node: _opinions(node, fresh) for node in ids}
    return {
        "id": clean(told_by.mesh_id),
        "version": clean(told_by.version),
        "parameters": told_by.training.parameters,
        "rounds_per_checkpoint": max(1, told_by.training.rounds_per_checkpoint),
        "epoch": told_by.consensus.epoch,
        "view": told_by.consensus.view,
        "view_active": told_by.consensus.view_active,
        "validators": told_by.consensus.validators,
        "quorum": told_by.consensus.quorum,
        "height": height,
        "loss": next((each["loss"] for each in checkpoints if each["loss"]), 0.0),
        "answering": len(fresh),
        "members": sorted(
            (_member(node, seen[node], answers.get(node), height) for node in ids),
            key=lambda member: (member["name"], member["id"]),
        ),
        "links": list(_links(ids, fresh, seen)),
        "bytes": list(_bytes(replies)),
        "checkpoints": checkpoints,
    }


def _opinions(node: str, fresh: Mapping[str, StatusReply]) -> dict[str, PeerReply]:
    """What each of the others that answer says of a node."""
    return {
        other: peer
        for other, reply in fresh.items()
        for peer in reply.peers
        if peer.node_id == node and other != node
    }


def verdict(opinions: Sequence[str], *, answers: bool) -> str:
    """alive, suspect, dead, or unknown where nobody says anything; see the module for the rule."""
    known = Counter(each for each in opinions if each)
    if not known:
        return "alive" if answers else "unknown"
    if 2 * known["dead"] > known.total():
        return "dead"
    return "suspect" if known["dead"] or known["suspect"] else "alive"


def _member(
    node: str, said: Mapping[str, PeerReply], answer: Answer | None, mesh_height: int
) -> Picture:
    reply = answer.reply if answer is not None else StatusReply()
    fresh = answer is not None and answer.fresh
    state = verdict([peer.liveness for peer in said.values()], answers=fresh)
    own = [each.height for each in reply.checkpoints if each.materialised]
    height = max([*own, *(peer.committed_height for peer in said.values())], default=0)
    behind = mesh_height - height if state == "alive" else 0
    newest = max([reply.training.round, *(peer.last_sequence for peer in said.values())])
    elsewhere = sum(peer.pending_deltas for peer in reply.peers)
    kept = max(0, reply.gossip.pending_deltas - elsewhere) if fresh else 0
    validator = reply.role == "validator" if fresh else any(p.validator for p in said.values())
    return {
        "id": node,
        "name": clean(reply.node) or node[:8],
        "role": "validator" if validator else clean(reply.role) or "member",
        "answers": fresh,
        "state": state,
        "shown": "behind" if behind >= BEHIND_HEIGHTS else state,
        "words": _words(state, behind),
        "why": "" if state == "alive" else _why(state, said.values()),
        "height": height,
        "round": reply.training.round,
        "loss": _finite(reply.training.loss),
        "tokens_per_second": _finite(reply.training.tokens_per_second) if fresh else 0.0,
        "sent": sum(reply.sent_bytes.values()),
        "received": sum(reply.received_bytes.values()),
        "newest": newest,
        "held_by": sum(p.last_sequence >= newest for p in said.values()) + fresh,
        "pending": max([kept, *(p.pending_deltas for p in said.values())]),
    }


def _why(state: str, said: Iterable[PeerReply]) -> str:
    """What those say who think so."""
    return clean(next((p.why for p in said if p.liveness == state and p.why), ""), SENTENCE_MAX)


def _words(state: str, behind: int) -> str:
    if behind >= BEHIND_HEIGHTS:
        return f"{behind} checkpoints behind"
    return "not heard of yet" if state == "unknown" else state


def _links(
    ids: Sequence[str],
    fresh: Mapping[str, StatusReply],
    seen: Mapping[str, Mapping[str, PeerReply]],
) -> Iterator[Picture]:
    """Pairs of which at least one side answers and knows the other."""
    for a, b in combinations(ids, 2):
        ends = [seen[a].get(b), seen[b].get(a)]
        said = [peer.state for peer in ends if peer is not None]
        if said:
            yield {"a": a, "b": b, "up": "connected" in said}


def _bytes(replies: Sequence[StatusReply]) -> Iterator[Picture]:
    sent, received = Counter[str](), Counter[str]()
    for reply in replies:
        sent.update(dict(reply.sent_bytes))
        received.update(dict(reply.received_bytes))
    for kind in sorted({*sent, *received}, key=lambda kind: (-sent[kind], kind)):
        yield {"kind": clean(kind), "sent": sent[kind], "received": received[kind]}


def _height(replies: Sequence[StatusReply]) -> int:
    """The newest height that most of them have: none that a single one made up."""
    having = Counter(height for r in replies for height in {each.height for each in r.checkpoints})
    return max((height for height, n in having.items() if 2 * n > len(replies)), default=0)


def _checkpoints(replies: Sequence[StatusReply], newest: int) -> Iterator[Picture]:
    """Newest first, as the first of `replies` that has it tells it; `roots` counts the different
    ones, which should be 1."""
    by_height: dict[int, list[CheckpointReply]] = {}
    for reply in replies:
        for each in reply.checkpoints:
            if each.height <= newest:
                by_height.setdefault(each.height, []).append(each)
    for height in sorted(by_height, reverse=True)[:CHECKPOINTS_SHOWN]:
        found = by_height[height]
        told = found[0]
        losses = [loss for each in found if (loss := _finite(each.held_out_loss))]
        yield {
            "height": height,
            "round": told.round,
            "root": clean(told.root),
            "roots": len({each.root for each in found}),
            "signatures": told.signatures,
            "signers": [clean(signer) for signer in told.signers],
            "deltas": told.deltas,
            "loss": fmean(losses) if losses else 0.0,
        }


def news(before: Picture, after: Picture) -> Iterator[tuple[str, str]]:
    """What changed between two pictures, as (good, warn, bad or plain; a sentence)."""
    if "trouble" in before or "trouble" in after:
        return
    known = {member["id"]: member for member in before["members"]}
    for member in after["members"]:
        was = known.get(member["id"])
        if was is None:
            yield "plain", f"{member['name']} is a member"
        elif member["shown"] != was["shown"]:
            because = f": {member['why']}" if member["why"] else ""
            yield TONES[member["shown"]], f"{member['name']} is {member['words']}{because}"
    for each in reversed(after["checkpoints"]):
        if each["height"] > before["height"]:
            signed = f"{each['signatures']} of {after['validators']} signed"
            yield "good", f"checkpoint {each['height']}, {signed}, root {each['root'][:12]}"
    conflicts = {each["height"] for each in before["checkpoints"] if each["roots"] > 1}
    for each in after["checkpoints"]:
        if each["roots"] > 1 and each["height"] not in conflicts:
            yield "bad", f"the roots of checkpoint {each['height']} differ"
    if after["view"] != before["view"]:
        yield "warn", f"view {after['view']} after {before['view']}"
    if after["epoch"] != before["epoch"]:
        voters = f"{after['validators']} validators vote"
        yield "plain", f"epoch {after['epoch']} begins: {voters}"


TONES = {"alive": "good", "behind": "warn", "suspect": "warn", "dead": "bad", "unknown": "plain"}
