"""The network as two ONNX graphs: pictures to visual tokens, and tokens to the next one's logits.

The modules are those that torch runs. They are traced on the meta device, where they weigh nothing, so that a graph
names its weights and holds none; `weights` says where those lie.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import build, compute_buffers
from ..config import VisGLMConfig
from ..errors import require

OPSET = 21
NOISY = ("onnx_ir", "onnxscript", "torch.onnx", "torch.export", "torch.__trace")
EXAMPLE_LENGTH, EXAMPLE_PAST = 7, 5  # of the trace; both are free in the graph


class GrowingCache:
    """What an attention takes for its cache: what was there before goes in front, and the sum is kept.

    Args:
        past: per layer keys and values `[1, key heads, positions, head_dim]`; there may be no positions.
    """

    def __init__(self, past: list[tuple[Tensor, Tensor]]):
        self.layers = past

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before = self.layers[layer_idx]
        self.layers[layer_idx] = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        return self.layers[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[0][0].shape[2]


class Vision(nn.Module):
    """`pixel_values [1, 3, height, width]` to `image_embeds [1, num_query_tokens, hidden_size]`.

    Args:
        with_features: also what the Q-Former looked at, `[1, 1 + patches (+ cells), vit hidden size]`.
    """

    def __init__(self, network: Any, with_features: bool):
        super().__init__()
        self.network, self.with_features = network, with_features

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        vision = self.network.model.vision
        seen = vision.see(pixel_values)
        image_embeds = torch.cat([vision.bridge(seen.features), seen.guesses], 1)
        return (image_embeds, seen.features) if self.with_features else image_embeds


class Decoder(nn.Module):
    """Some tokens behind a cache, to the logits of the last one `[1, 1, vocabulary]` and the longer cache.

    It serves a prompt and a single token alike. A prefix-LM reads all tokens that come together both ways, so that its
    prefix goes in at once and everything from `<sop>` on by one token; a causal model is masked.

    Args:
        positions: `position_ids` of a prompt, whose shape says how the backbone counts.
    """

    def __init__(self, network: Any, has_token_types: bool):
        super().__init__()
        self.network = network
        self.has_token_types = has_token_types

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        text = self.network.model.text
        cache = GrowingCache(list(zip(past[::2], past[1::2], strict=True)))
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        if text.reads_prefix_both_ways:
            mask = torch.zeros(1, 1, 1, 1, device=device)
        else:
            columns = torch.arange(cache.get_seq_length() + length, device=device)
            rows = columns[cache.get_seq_length() :]
            hidden = (columns[None] > rows[:, None]).to(inputs_embeds.dtype)
            mask = (hidden * torch.finfo(inputs_embeds.dtype).min)[None, None]
        types = torch.ones(1, length, dtype=torch.long, device=device) if self.has_token_types else None
        hidden_states = text(
            inputs_embeds=inputs_embeds, attention_mask=mask, position_ids=position_ids, token_type_ids=types,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        logits = self.network.lm_head(hidden_states[:, -1:])
        return (logits, *(part for layer in cache.layers for part in layer))


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Layers, key heads and head size of a text model's cache."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_hidden_layers, heads, config.head_dim


def cache_names(num_layers: int) -> list[str]:
    """What the graph calls the cache's parts, in order; without the "past_" or "present_" in front."""
    return [f"{part}_{number}" for number in range(num_layers) for part in ("key", "value")]


def trace_vision(config: VisGLMConfig, size: tuple[int, int], with_features: bool) -> Any:
    """The graph of `Vision`, for pictures `size`, height and width."""
    pixels = torch.empty(1, 3, *size, device="meta")
    ends = ["image_embeds", "features"] if with_features else ["image_embeds"]
    return trace(Vision(bare_network(config), with_features), (pixels,), None, ["pixel_values"], ends)


def trace_decoder(config: VisGLMConfig) -> Any:
    """The graph of `Decoder`."""
    network, text = bare_network(config), config.text_config
    start = text.bos_token_id if isinstance(text.bos_token_id, int) else 0
    ids = torch.full((1, EXAMPLE_LENGTH), start)
    derived = network.model.text.prompt_inputs(text, ids, None)
    positions = torch.empty(derived["position_ids"].shape, dtype=torch.long, device="meta")
    layers, heads, width = cache_shape(text)
    past = [torch.empty(1, heads, EXAMPLE_PAST, width, device="meta") for _ in range(2 * layers)]
    embeds = torch.empty(1, EXAMPLE_LENGTH, text.hidden_size, device="meta")
    free = torch.export.Dim.DYNAMIC
    names = cache_names(layers)
    return trace(
        Decoder(network, "token_type_ids" in derived),
        (embeds, positions, *past),
        ({1: free}, {positions.dim() - 1: free}, tuple({2: free} for _ in past)),
        ["inputs_embeds", "position_ids", *(f"past_{name}" for name in names)],
        ["logits", *(f"present_{name}" for name in names)],
    )


def bare_network(config: VisGLMConfig) -> Any:
    """The network without weights, as if nothing in it were packed; buffers that no file holds are there."""
    plain = copy.deepcopy(config)
    plain.quantization = None
    network = build(plain).eval()
    # Spelt out, attention is a few operations that every runtime has; by its own name it would be one that few know.
    network.model.text.set_attn_implementation("eager")
    if network.model.vision is not None:
        network.model.vision.qformer.set_attn_implementation("eager")
    compute_buffers(network, torch.device("cpu"))
    return network


def trace(module: nn.Module, example: tuple[Any, ...], free: Any, inputs: list[str], outputs: list[str]) -> Any:
    """An `onnx_ir` model, simplified, whose weights have their names in the checkpoint and no values."""
    with quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            module.eval(), example, dynamic_shapes=free, input_names=inputs, output_names=outputs, dynamo=True,
            opset_version=OPSET, optimize=False, verbose=False,
        )  # fmt: skip
    model = program.model
    named = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    initializers = model.graph.initializers
    for name in named & set(initializers):
        value = initializers[name]
        if value.const_value.raw.is_meta:
            value.const_value = None  # the simplifier must not look for it
    with quiet():
        require("export", "onnxscript.optimizer").optimize_ir(model)
    for name in named & set(initializers):
        value = initializers.pop(name)
        value.name = name.removeprefix("network.")
        initializers[value.name] = value
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress report, and no warnings about weights that are not there."""
    loggers = [
        logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx", "torch.export", "torch.__trace")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
