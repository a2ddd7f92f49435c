"""Networks of every kind that the engine answers for, prompts for them, and what `generate` makes of those alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch

from tests.tiny import GOLDEN_CHATGLM2, golden_model
from visglm import VisGLMConfig, VisGLMForConditionalGeneration
from visglm.checkpoint import assemble, open_source
from visglm.engine import Chooser, Engine, Outcome, Request
from visglm.quant import Quantization, quantize_network
from visglm.sampling import Sampling
from visglm.text.prefix import attentions, prefix_shape, put_prefixes

NOISE = 2e-4  # of float32 logits of these sizes: two that are closer may change places with the number of rows

Network = VisGLMForConditionalGeneration


def chatglm2() -> Network:
    return assemble(open_source(GOLDEN_CHATGLM2), device=torch.device("cpu"), dtype=torch.float32)


def glm4() -> Network:
    """Grouped heads, half of each turned by its position, and eyes."""
    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "model_type": "glm", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "pad_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    config = VisGLMConfig(
        vision_config=eyes | {"image_size": 28, "patch_size": 14},
        qformer_config=eyes | {"vocab_size": 1},
        text_config=text, num_query_tokens=4, image_token_id=500, prompt_style="glm4",
    )  # fmt: skip
    return VisGLMForConditionalGeneration(config).eval()


def with_prefix(network: Network) -> Network:
    torch.manual_seed(1)
    put_prefixes(
        network.model.text,
        {
            name: torch.nn.Parameter(torch.randn(2, heads, 5, size))
            for name, module in attentions(network.model.text)
            for heads, size in [prefix_shape(network.model.text.config, module)]
        },
    )
    return network


def with_lora(network: Network) -> Network:
    torch.manual_seed(2)
    targets = r".*text.*(dense|query_key_value|q_proj|v_proj|down_proj)"
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False), network)
    return network.eval()


def packed(scheme: str) -> Callable[[Network], Network]:
    def pack(network: Network) -> Network:
        quantize_network(network, Quantization.choose(scheme, network.config))
        return network

    return pack


BACKBONES = {"chatglm": golden_model, "chatglm2": chatglm2, "glm4": glm4}
CHANGES: dict[str, Callable[[Network], Network]] = {
    "plain": lambda network: network,
    "ptuning": with_prefix,
    "lora": with_lora,
    "int8": packed("int8"),
    "int4": packed("int4"),
}


def make_requests(network: Network, count: int, seed: int, longest: int = 24) -> list[Request]:
    """Prompts of random words and, where the network has eyes, of up to two pictures."""
    dice, config = random.Random(seed), network.config.text_config
    found = []
    for _ in range(count):
        ids = [dice.randrange(10, 400) for _ in range(dice.randrange(3, 30))]
        num_pictures = dice.randrange(3) if network.model.vision is not None else 0
        ids[1:1] = [network.config.image_token_id] * (num_pictures * network.config.num_query_tokens)
        if network.model.text.reads_prefix_both_ways:
            ids += [config.gmask_token_id, config.bos_token_id]
        pixels = None
        if num_pictures:
            size = network.config.vision_config.image_size
            numbers = torch.Generator().manual_seed(dice.randrange(1000))
            pixels = torch.rand(num_pictures, 3, size, size, generator=numbers)
        found.append(request(network, ids, dice.randrange(1, longest), pixels))
    return found


def request(network: Network, ids: list[int], room: int, pixels: Any = None, **settings: Any) -> Request:
    end = network.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [] if end is None else [end]
    chooser = Chooser(Sampling(**settings), ends, ids, network.device)
    return Request(ids, room, chooser, pixel_values=pixels)


@torch.inference_mode()
def alone(network: Network, one: Request) -> list[int]:
    """What `generate` answers."""
    ids = torch.tensor([one.input_ids])
    output = network.generate(
        ids, attention_mask=torch.ones_like(ids), pixel_values=one.pixel_values, max_new_tokens=one.room,
        do_sample=False,
    )  # fmt: skip
    return output[0, len(one.input_ids) :].tolist()


def ids_of(outcome: Outcome) -> list[int]:
    return [token.id for token in outcome.tokens]


@torch.inference_mode()
def check_same(network: Network, one: Request, wanted: Sequence[int], found: Sequence[int], is_part: bool) -> None:
    """The ids of `generate`, or the first of them. Where one differs, the two were as good as equally likely."""
    wanted = wanted[: len(found)] if is_part else wanted
    if list(found) == list(wanted):
        return
    place = next((n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
    assert place is not None, f"{found} and {wanted} differ in length only"
    ids = torch.tensor([one.input_ids])
    logits = network.generate(
        ids, attention_mask=torch.ones_like(ids), pixel_values=one.pixel_values, max_new_tokens=one.room,
        do_sample=False, output_logits=True, return_dict_in_generate=True,
    ).logits[place][0]  # fmt: skip
    gap = float(logits[wanted[place]] - logits[found[place]])
    print(f"token {place}: {wanted[place]} alone, {found[place]} in company, logits {gap:.1e} apart")
    assert abs(gap) < NOISE


def run(engine: Engine, requests: Sequence[Request]) -> list[Outcome]:
    return [ticket.result() for ticket in engine.submit(*requests)]
