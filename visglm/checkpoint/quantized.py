"""A source's tensors → a network in 8 or 4 bits, quantized on the way in or as it is stored."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..adapters import Fingerprint
from ..errors import ConfigError
from ..quant import Quantization, Writer, replace_modules, set_output_dtype, store_vision
from .assemble import build, check, fill
from .source import Source


def choose_quantization(source: Source, scheme: str | None, vision: bool) -> Quantization | None:
    """What to quantize to: as asked for, else as the checkpoint is, else as an adapter's base was when it was taught.

    Raises:
        ConfigError: the scheme is unknown, the checkpoint is quantized to another one already, or `vision` comes
            without a scheme.
    """
    config, delta = source.config, source.delta()
    if (
        scheme is None
        and getattr(config, "quantization", None) is None
        and delta is not None
        and delta.quantization is not None
    ):
        # Whose rounding the adapter may have made up for.
        scheme, vision = delta.quantization.get("scheme"), vision or "vision" in delta.quantization.get("parts", ())
    if scheme is not None:
        return Quantization.choose(scheme, config, vision)
    if vision:
        raise ConfigError("quantize_vision=True needs a scheme beside it, such as quantize='int4'.")
    return Quantization.of(config)


def assemble_quantized(
    source: Source,
    quantization: Quantization,
    *,
    device: torch.device,
    dtype: torch.dtype,
    fingerprint: Fingerprint | None = None,
) -> PreTrainedModel:
    """As `assemble`. Each weight is quantized as it comes, so the network never exists whole in 16 bits.

    Args:
        dtype: that the network computes in. fingerprint: as that of `fill`.
    """
    network = build(source.config)
    check(source, network)
    replace_modules(network, quantization, dtype)
    set_output_dtype(network, dtype)
    if dtype == torch.float32:
        store_vision(network)
    with Writer(dtype) as writer:
        fill(network, source, device=device, dtype=None, prepare=writer, fingerprint=fingerprint)
    network.generation_config = source.generation_config()
    return network
