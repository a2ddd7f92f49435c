"""The tensors of a network under the names they have without any adapter."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

PREFIX_END = ".prefix"  # of the names of P-Tuning's tables


def base_tensors(network: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers that a checkpoint of the base holds, live, as if no adapter had wrapped anything.

    Those that are tied to another tensor are left out, as they are from files.
    """
    tied = getattr(network, "all_tied_weights_keys", {}) if network.config.tie_word_embeddings else {}
    return {
        plain: tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
        if ".lora_" not in name and not name.endswith(PREFIX_END) and (plain := base_name(name)) not in tied
    }


def base_name(name: str) -> str:
    """A name as the base has it: PEFT puts the layer it wraps one step deeper."""
    return name.replace(".base_layer.", ".")


def lora_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Modules that PEFT has wrapped, by name."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}
