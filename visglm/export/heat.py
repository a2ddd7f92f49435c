"""The heat map as a graph: the answer's likelihood and its gradient, which ONNX Runtime has no way to take itself.

torch writes the operations of the gradient down once, and they are exported as any others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from ..config import VisGLMConfig
from ..explain import bridge, heat_of
from .graphs import EXAMPLE_LENGTH, EXAMPLE_PAST, GrowingCache, bare_network, cache_names, cache_shape, trace

EXAMPLE_ANSWER = 3  # tokens
INPUTS = ("features", "inputs_embeds", "slots", "rows", "ids", "position_ids", "reach")


class Heat(nn.Module):
    """`visglm.explain` of one picture, from what the ViT made of it.

    Args:
        network: bare.
        grid: rows and columns of patches.
        has_token_types: as of `Decoder`.
    """

    def __init__(self, network: Any, grid: tuple[int, int], has_token_types: bool):
        super().__init__()
        self.network, self.grid, self.has_token_types = network, grid, has_token_types

    def forward(
        self, features: Tensor, inputs_embeds: Tensor, slots: Tensor, rows: Tensor, ids: Tensor, position_ids: Tensor,
        reach: Tensor, *past: Tensor,
    ) -> Tensor:  # fmt: skip
        """Heat `[rows, columns]`, 0 to 1.

        Args:
            features: `[1, 1 + patches (+ cells), vit hidden size]`.
            inputs_embeds: `[1, length, hidden_size]`, the conversation with its answer.
            slots: where in it the Q-Former's tokens of the picture are.
            rows: where the answer's tokens are foretold: one before each. ids: those tokens.
            reach: `[length]`, how many positions each token sees, those of `past` included.
            past: as of `Decoder`.
        """
        text, vision = self.network.model.text, self.network.model.vision
        tokens, attentions = bridge(vision, features)
        whole = inputs_embeds.index_copy(1, slots, tokens)
        cache = GrowingCache(list(zip(past[::2], past[1::2], strict=True)))
        columns = torch.arange(cache.get_seq_length() + whole.shape[1], device=whole.device)
        hidden = (columns[None] >= reach[:, None]).to(whole.dtype)
        types = torch.ones_like(reach)[None] if self.has_token_types else None
        states = text(
            inputs_embeds=whole, attention_mask=(hidden * torch.finfo(whole.dtype).min)[None, None],
            position_ids=position_ids, token_type_ids=types, past_key_values=cache, use_cache=True,
        ).last_hidden_state  # fmt: skip
        logits = self.network.lm_head(states[0].index_select(0, rows))
        likelihood = logits.float().log_softmax(-1).gather(-1, ids[:, None]).sum()
        gradients = torch.autograd.grad(likelihood, attentions)
        return heat_of([maps[0] for maps in attentions], [gradient[0] for gradient in gradients], *self.grid)


class WrittenDown(nn.Module):
    """Operations on a network's parameters, which have their names here."""

    def __init__(self, network: Any, operations: Any):
        super().__init__()
        self.network, self.operations = network, operations

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.operations(dict(self.network.named_parameters()), *inputs)


def trace_heat(config: VisGLMConfig, size: tuple[int, int]) -> Any:
    """The graph of `Heat`, for pictures `size`, height and width."""
    network, text = bare_network(config), config.text_config
    stride = config.vision_config.stride
    start = text.bos_token_id if isinstance(text.bos_token_id, int) else 0
    derived = network.model.text.prompt_inputs(text, torch.full((1, EXAMPLE_LENGTH), start), None)
    with torch.no_grad():
        seen = network.model.vision.see(torch.empty(1, 3, *size, device="meta")).features
    layers, heads, width = cache_shape(text)
    numbers: Any = {"dtype": torch.long, "device": "meta"}
    positions = torch.empty(derived["position_ids"].shape, **numbers)
    example = (
        torch.empty(seen.shape, device="meta"), torch.empty(1, EXAMPLE_LENGTH, text.hidden_size, device="meta"),
        torch.empty(network.model.vision.query_tokens.shape[1], **numbers), torch.empty(EXAMPLE_ANSWER, **numbers),
        torch.empty(EXAMPLE_ANSWER, **numbers), positions, torch.empty(EXAMPLE_LENGTH, **numbers),
        *(torch.empty(1, heads, EXAMPLE_PAST, width, device="meta") for _ in range(2 * layers)),
    )  # fmt: skip
    heat = Heat(network, (size[0] // stride, size[1] // stride), "token_type_ids" in derived)

    def compute(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        named = {f"network.{name}": parameter for name, parameter in parameters.items()}
        return torch.func.functional_call(heat, named, inputs)

    table: Any = core_aten_decompositions()
    written = make_fx(compute, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    with torch.enable_grad():
        operations = written(dict(network.named_parameters()), *example)
    free = torch.export.Dim.DYNAMIC
    shapes: tuple[Any, ...] = ({}, {1: free}, {}, {0: free}, {0: free}, {positions.dim() - 1: free}, {0: free})
    return trace(
        WrittenDown(network, operations), example, ((*shapes, *({2: free} for _ in range(2 * layers))),),
        [*INPUTS, *(f"past_{name}" for name in cache_names(layers))], ["heat"],
    )  # fmt: skip
