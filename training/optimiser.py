"""What turns gradients into steps: AdamW, and Muon for the matrices between a model's two ends.

Muon takes the momentum of a matrix and makes its singular values equal, so that every direction is
learned, not only the few that the gradient is loudest in. It is meant for weights that map hidden
values to hidden values; embeddings, output heads, norms and biases stay with AdamW. Its steps are
scaled to the root mean square of AdamW's, so that `muon_scale` is all that is chosen.

Source: Jordan et al., Muon (2024); Liu et al., Muon is Scalable for LLM Training (2025), 2.2.
"""

import torch

from shoal.training.model import FlatModel

BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95


class Optimiser:
    """AdamW over the whole flat vector, or over what Muon leaves to it."""

    def __init__(self, model: FlatModel, *, weight_decay: float, muon_scale: float) -> None:
        """muon_scale: how many times AdamW's learning rate Muon's is; 0 is AdamW for everything."""
        self._muon_scale = muon_scale
        self.muon: torch.optim.Muon | None = None
        self.adamw: torch.optim.Optimizer | None = None
        matrices = hidden_matrices(model.module) if muon_scale else []
        # One parameter for AdamW where it has all, so that its step is one fused pass.
        rest = [torch.nn.Parameter(model.flat)]
        rest[0].grad = model.gradient
        if matrices:
            self.muon = torch.optim.Muon(
                matrices,
                # It is multiplied by Muon's rate, and shall be as strong as AdamW's.
                weight_decay=weight_decay / muon_scale,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
            taken = {id(matrix) for matrix in matrices}
            rest = [each for each in model.trained() if id(each) not in taken]
        # Adapters are matrices between the ends, all of them.
        if rest:
            self.adamw = torch.optim.AdamW(rest, betas=BETAS, weight_decay=weight_decay, fused=True)

    def step(self, learning_rate: float) -> None:
        """Move the parameters by their gradients."""
        if self.adamw is not None:
            self.adamw.param_groups[0]["lr"] = learning_rate
            self.adamw.step()
        if self.muon is not None:
            self.muon.param_groups[0]["lr"] = learning_rate * self._muon_scale
            self.muon.step()  # type: ignore[no-untyped-call]


def hidden_matrices(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The trained matrices of a transformers model between its embeddings and its output head."""
    ends = {id(each.weight) for each in module.modules() if isinstance(each, torch.nn.Embedding)}
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is not None:
        ends.add(id(head.weight))
    found = [each for each in module.parameters() if each.requires_grad and each.ndim == 2]
    return [each for each in found if id(each) not in ends]
