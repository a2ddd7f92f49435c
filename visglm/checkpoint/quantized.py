"""A source's tensors → a network in 8 or 4 bits, quantized on the way in or as it is stored."""

from __future__ import annotations

import torch

from ..config import VisGLMConfig
from ..errors import ConfigError
from ..model import VisGLMForConditionalGeneration
from ..quant import Quantization, Writer, replace_modules, store_vision
from .assemble import build, check, fill, generation_config
from .source import Source


def choose_quantization(config: VisGLMConfig, scheme: str | None, vision: bool) -> Quantization | None:
    """What to quantize to, or what the checkpoint is quantized to, or None.

    Raises:
        ConfigError: the scheme is unknown, the checkpoint is quantized already, or `vision` comes without a scheme.
    """
    if scheme is not None:
        return Quantization.choose(scheme, config, vision)
    if vision:
        raise ConfigError("quantize_vision=True needs a scheme beside it, such as quantize='int4'.")
    return Quantization.of(config)


def skeleton(config: VisGLMConfig) -> VisGLMForConditionalGeneration:
    """The network of a configuration on the meta device, packed modules where it says so, to `check` against."""
    network = build(config)
    if (quantization := Quantization.of(config)) is not None:
        replace_modules(network, quantization, torch.float32)
    return network


def assemble_quantized(
    source: Source, quantization: Quantization, *, device: torch.device, dtype: torch.dtype
) -> VisGLMForConditionalGeneration:
    """As `assemble`. Each weight is quantized as it comes, so the network never exists whole in 16 bits.

    Args:
        dtype: that the network computes in.
    """
    network = build(source.config)
    if source.config.quantization is None:
        check(source, network)
        replace_modules(network, quantization, dtype)
    else:
        replace_modules(network, quantization, dtype)
        check(source, network)
    if dtype == torch.float32:
        store_vision(network)
    fill(network, source, device=device, dtype=None, prepare=Writer(dtype))
    network.generation_config = generation_config(source)
    return network
