"""The language model, causal or masked, and its parameters as one flat vector.

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
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from shoal.training.errors import TrainingError
from shoal.training.masking import NOT_ASKED, mask
from shoal.training.tokenizer import Tokenizer

PARAMETERS_MAX = 500_000_000
LAYERS_MAX = 1024
MASKED_SUFFIX = "ForMaskedLM"
ADAPTER_CONFIG = "adapter_config.json"
# What peft puts before the names of an adapter's tensors in a file, and what it takes out of them.
ADAPTER_PREFIX = "base_model.model."
ADAPTER_PART = re.compile(r"(?<=\.lora_[AB])\.default(?=\.)")
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
    """Return a language model with fresh float32 weights drawn from `seed`.

    It is a masked one where the configuration's architectures say so, else a causal one. The
    caller's random state is left as it was. Raises TrainingError for a configuration that
    transformers does not know, that names foreign code, or that is too large.
    """
    masked = is_masked(config)
    parsed = _parse_config(config, masked)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _construct(parsed, masked).parameters())
    if size > PARAMETERS_MAX:
        raise TrainingError(f"the model has {size} parameters; at most {PARAMETERS_MAX} are meant")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _construct(parsed, masked).float()


def load_model(config: Mapping[str, Any], directory: Path) -> torch.nn.Module:
    """Return the language model of which a directory holds the weights, as float32.

    Raises TrainingError as `build_model`, and where the safetensors files in `directory` are not
    all of the weights of a model with this configuration.
    """
    masked = is_masked(config)
    parsed = _parse_config(config, masked)
    if (directory / ADAPTER_CONFIG).exists():
        raise TrainingError(f"{directory} holds an adapter; name the directory of a whole model")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _construct(parsed, masked).parameters())
    # A value takes a byte at least, so this bounds what a configuration can make us allocate.
    if size > sum(path.stat().st_size for path in directory.glob("*.safetensors")):
        raise TrainingError(
            f"{directory}: its safetensors files hold fewer than the model's {size} parameters"
        )
    from transformers.utils import logging

    transformers_log: Any = logging
    # A bar in a log is a line of rubbish.
    transformers_log.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            module, loading = _factory(masked).from_pretrained(
                directory,
                config=parsed,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise TrainingError(f"{directory}: {_one_line(error)}") from None
    if missing := sorted(loading["missing_keys"]):
        raise TrainingError(f"{directory}: its files do not hold {missing[0]}")
    assert isinstance(module, torch.nn.Module)
    return module


def is_masked(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a masked language model, like BertForMaskedLM."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(MASKED_SUFFIX) for name in names)


def with_mask_token(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the configuration; a masked model's names the mask token, by default the tokenizer's.

    Raises TrainingError where neither has one.
    """
    if not is_masked(config) or "mask_token_id" in config:
        return dict(config)
    if tokenizer.mask_token is None:
        raise TrainingError(
            "the tokenizer has no [MASK] or <mask>; set mask_token_id in the model configuration"
        )
    return {**config, "mask_token_id": tokenizer.mask_token}


def _factory(masked: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return AutoModelForMaskedLM if masked else AutoModelForCausalLM


def _construct(parsed: Any, masked: bool) -> torch.nn.Module:
    try:
        module = _factory(masked).from_config(parsed, attn_implementation="sdpa")
    except Exception as error:  # transformers does not say what it raises.
        raise TrainingError(f"the model configuration does not work: {_one_line(error)}") from None
    assert isinstance(module, torch.nn.Module)
    return module


def _parse_config(config: Mapping[str, Any], masked: bool) -> Any:
    # Weights come from the mesh alone: this keeps transformers from ever asking a network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    if refused := sorted(REFUSED_KEYS & config.keys()):
        raise TrainingError(f"the model configuration may not set {', '.join(refused)}")
    values = dict(config)
    model_type = str(values.pop("model_type", ""))
    masked_names = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    known = masked_names if masked else modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in known:
        kind, some = ("masked", ["bert"]) if masked else ("causal", ["gpt2", "llama"])
        similar = difflib.get_close_matches(model_type, sorted(known), n=3, cutoff=0.5)
        raise TrainingError(
            f'transformers knows no {kind} language model of model_type "{model_type}"; '
            f"{'similar' if similar else 'some'} are {', '.join(similar or some)}"
        )
    try:
        parsed = AutoConfig.for_model(model_type, **values)
    except Exception as error:
        raise TrainingError(f"the model configuration does not work: {_one_line(error)}") from None
    if not 1 <= int(getattr(parsed, "num_hidden_layers", 1)) <= LAYERS_MAX:
        raise TrainingError(f"num_hidden_layers must be from 1 to {LAYERS_MAX}")
    looks_both_ways = masked_names.get(model_type, "").endswith(MASKED_SUFFIX)
    if masked:
        _require_mask_token(config.get("mask_token_id"), int(getattr(parsed, "vocab_size", 0)))
    elif looks_both_ways and not getattr(parsed, "is_decoder", False):
        # It would see the tokens that it is to predict, and learn nothing but to copy them.
        raise TrainingError(
            f'a {model_type} looks both ways: write "architectures": '
            f'["{masked_names[model_type]}"], or "is_decoder": true to make it a causal one'
        )
    return parsed


def _require_mask_token(token: object, vocabulary_size: int) -> None:
    if type(token) is not int or not 0 <= token < vocabulary_size:
        raise TrainingError(
            f"mask_token_id must be a token from 0 to {vocabulary_size - 1}, not {token!r}; a "
            "masked language model needs it"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _name_in_files(name: str) -> str:
    """The name that transformers, or peft for an adapter's, gives a tensor in a file."""
    in_files, adapters = ADAPTER_PART.subn("", name)
    return ADAPTER_PREFIX + in_files if adapters else name


class FlatModel:
    """A module whose trainable parameters are views of one float32 vector of P values."""

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.module = module.to(self.device, torch.float32)
        self.module.train()
        masked = type(module).__name__.endswith(MASKED_SUFFIX)
        config: Any = getattr(self.module, "config", None)
        # None: a causal model.
        self.mask_token: int | None = int(config.mask_token_id) if masked else None
        # named_parameters() gives a tied weight once.
        self._named = [
            (_name_in_files(name), parameter)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]
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

    def trained(self) -> list[torch.nn.Parameter]:
        """Return the parameters that `flat` holds, each a view of it."""
        return [parameter for _, parameter in self._named]

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

    def loss(self, windows: torch.Tensor, masks: np.random.Generator | None = None) -> torch.Tensor:
        """Return the mean cross-entropy in nats per token that is asked for.

        A causal model is asked for each next token, a masked one for those that `masks`, which it
        needs, chooses of all but the last (masking.py). windows: int64 [batch, sequence + 1]; the
        result is a scalar with a gradient.
        """
        return self.share_of_loss(windows, masks, 0, 1)

    def share_of_loss(
        self, windows: torch.Tensor, masks: np.random.Generator | None, rank: int, processes: int
    ) -> torch.Tensor:
        """Return what every `processes`-th sequence from `rank` on gives to the loss of all.

        The mean of all ranks' shares is that loss, also where some have more tokens to ask for.
        """
        if self.mask_token is None:
            shown, asked, further = windows[:, :-1], windows[:, 1:], {"use_cache": False}
        else:
            assert masks is not None, "a masked model is told what to hide"
            shown, asked = mask(
                windows[:, :-1],
                masks,
                mask_token=self.mask_token,
                vocabulary_size=self.vocabulary_size,
            )
            further = {}
        count = (asked != NOT_ASKED).sum()
        shown, asked = shown[rank::processes], asked[rank::processes]
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            shown = shown.to(self.device, non_blocking=True)
            logits = self.module(input_ids=shown, **further).logits
        asked = asked.to(self.device, non_blocking=True).flatten()
        logits = logits.flatten(0, 1).float()
        if processes == 1:
            return functional.cross_entropy(logits, asked, ignore_index=NOT_ASKED)
        total = functional.cross_entropy(logits, asked, ignore_index=NOT_ASKED, reduction="sum")
        return total * processes / count.to(self.device)

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
