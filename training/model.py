"""The language model, and its parameters as one flat vector.

What the mesh exchanges is a vector of float32 values, not a tree of tensors. So the parameters of
the module *are* that vector: each is a view into one buffer, in the order of `named_parameters()`,
tied weights once; and each gradient is a view into a second buffer. Taking a delta, clipping a
gradient and an AdamW step are then single passes over contiguous memory, with nothing to flatten.

Models come from transformers, by their JSON configuration. A configuration may have come from a
stranger, so keys that make transformers fetch or run other code are refused, and the size is
measured on torch's "meta" device before any memory is taken.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from shoal.training.errors import TrainingError

PARAMETERS_MAX = 500_000_000
LAYERS_MAX = 1024
# Keys that would make transformers load code or kernels from elsewhere.
REFUSED_KEYS = frozenset(
    {
        "_attn_implementation",
        "attn_implementation",
        "auto_map",
        "quantization_config",
        "trust_remote_code",
        "use_kernels",
    }
)


def default_config() -> dict[str, Any]:
    """Return the LlamaConfig of the built-in model: 824,448 parameters, one token per byte."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 256,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        # Byte 0 separates documents (tokenizer.py).
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "float32",
    }


def build_model(config: Mapping[str, Any], seed: int) -> torch.nn.Module:
    """Return a causal language model with fresh float32 weights drawn from `seed`.

    The caller's random state is left as it was. Raises TrainingError for a configuration that
    transformers does not know, that names foreign code, or that is too large.
    """
    parsed = _parse_config(config)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _construct(parsed).parameters())
    if size > PARAMETERS_MAX:
        raise TrainingError(f"the model has {size} parameters; at most {PARAMETERS_MAX} are meant")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _construct(parsed).float()


def _construct(parsed: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    try:
        module = factory.from_config(parsed, attn_implementation="sdpa")
    except Exception as error:  # transformers does not say what it raises.
        raise TrainingError(f"the model configuration does not work: {_one_line(error)}") from None
    assert isinstance(module, torch.nn.Module)
    return module


def _parse_config(config: Mapping[str, Any]) -> Any:
    # Weights come from the mesh alone: this keeps transformers from ever asking a network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if refused := sorted(REFUSED_KEYS & config.keys()):
        raise TrainingError(f"the model configuration may not set {', '.join(refused)}")
    values = dict(config)
    model_type = str(values.pop("model_type", ""))
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        similar = difflib.get_close_matches(model_type, known, n=3, cutoff=0.5)
        raise TrainingError(
            f'transformers knows no causal language model of model_type "{model_type}"; '
            f"{'similar' if similar else 'some'} are {', '.join(similar or ['gpt2', 'llama'])}"
        )
    try:
        parsed = AutoConfig.for_model(model_type, **values)
    except Exception as error:
        raise TrainingError(f"the model configuration does not work: {_one_line(error)}") from None
    if not 1 <= int(getattr(parsed, "num_hidden_layers", 1)) <= LAYERS_MAX:
        raise TrainingError(f"num_hidden_layers must be from 1 to {LAYERS_MAX}")
    return parsed


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class FlatModel:
    """A module whose trainable parameters are views of one float32 vector of P values."""

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.module = module.to(self.device, torch.float32)
        self.module.train()
        # named_parameters() gives a tied weight once.
        self._named = [item for item in module.named_parameters() if item[1].requires_grad]
        self.size = sum(parameter.numel() for _, parameter in self._named)
        self.flat = torch.empty(self.size, device=self.device)
        self.gradient = torch.zeros(self.size, device=self.device)
        offset = 0
        for _, parameter in self._named:
            end = offset + parameter.numel()
            view = self.flat[offset:end].view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data = view
            # autograd adds into a gradient that is there already, so the views stay.
            parameter.grad = self.gradient[offset:end].view(parameter.shape)
            offset = end

    def names_and_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return name and shape of each tensor, in the order in which `flat` holds them."""
        return [(name, tuple(parameter.shape)) for name, parameter in self._named]

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens the model knows."""
        return int(getattr(self.module.config, "vocab_size", 0))

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can look at, where its configuration says so."""
        length = getattr(self.module.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def end_token(self) -> int | None:
        """The token that ends a document, where the model's configuration names one."""
        token = getattr(self.module.config, "eos_token_id", None)
        return token if isinstance(token, int) else None

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy (nats per token) of predicting each next token.

        windows: int64 [batch, sequence + 1]; the result is a scalar with a gradient.
        """
        windows = windows.to(self.device, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.module(input_ids=windows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    @contextmanager
    def holding(self, weights: torch.Tensor) -> Iterator[None]:
        """Put `weights` [P] in the place of the parameters for a while, in evaluation mode."""
        own = self.flat.clone()
        self.flat.copy_(weights)
        self.module.eval()
        try:
            yield
        finally:
            self.flat.copy_(own)
            self.module.train()
