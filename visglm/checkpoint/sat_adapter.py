"""What SwissArmyTransformer's fine-tuning left inside its checkpoints, attached as the adapters of `adapter.py`.

LoRA there has an A and a B for each of q, k and v of the fused projection. Side by side they are one LoRA of three
times the rank whose B is block diagonal; the scaling, one over the rank of a part, stays.
"""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import Tensor

from ..errors import CheckpointError, require
from ..model import VisGLMForConditionalGeneration
from ..text.prefix import add_prefix
from .adapter import LORA_START, Attached, activate, attached, fill_lora, inject_lora
from .layouts.legacy import SatSource

ADAPTER_NAME = "default"
MATRIX = re.compile(r"transformer\.(?P<module>layers\.\d+\..+)\.matrix_(?P<side>[AB])\.(?P<part>\d+)")
PREFIX = re.compile(r"mixins\.ptuning\.prefix\.(?P<layer>\d+)")
NEXT_STEP = "Nothing was loaded. Copy the checkpoint again, whole."


def attach_sat_adapter(model: VisGLMForConditionalGeneration, source: SatSource) -> None:
    """Put the LoRA or the prefix that a SAT checkpoint carries into its network, and use it.

    Raises:
        CheckpointError: it does not fit the network.
        MissingDependencyError: peft, which LoRA needs, is not installed.
    """
    found = source.read_adapter()
    unknown = [name for name in found if not MATRIX.fullmatch(name) and not PREFIX.fullmatch(name)]
    if unknown:
        raise CheckpointError(
            source.path, [f"unexpected: {name}" for name in unknown], "visglm reads LoRA and P-Tuning."
        )
    matrices = {name: tensor for name, tensor in found.items() if MATRIX.fullmatch(name)}
    prefixes = {name: tensor for name, tensor in found.items() if PREFIX.fullmatch(name)}
    if matrices:
        _attach_lora(model, source, matrices)
    if prefixes:
        _attach_prefix(model, source, prefixes)
    if found:
        attached(model)[ADAPTER_NAME] = Attached(has_lora=bool(matrices), has_prefix=bool(prefixes), beside_base=True)
        model.requires_grad_(False)
        activate(model, ADAPTER_NAME)


def _attach_lora(model: VisGLMForConditionalGeneration, source: SatSource, matrices: dict[str, Tensor]) -> None:
    parts: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: {"A": [], "B": []})
    for name in sorted(matrices, key=lambda name: int(MATRIX.fullmatch(name)["part"])):  # type: ignore[index]
        match = MATRIX.fullmatch(name)
        parts["model.text." + match["module"]][match["side"]].append(matrices[name])  # type: ignore[index]
    problems = [
        f"{name} has {len(pair['A'])} matrices A and {len(pair['B'])} matrices B"
        for name, pair in parts.items()
        if len(pair["A"]) != len(pair["B"])
    ]
    ranks = {matrix.shape[0] for pair in parts.values() for matrix in pair["A"]}
    if len(ranks) > 1:
        problems.append(f"its LoRA matrices have the ranks {sorted(ranks)}, expected one")
    if problems:
        raise CheckpointError(source.path, problems, NEXT_STEP)
    rank = ranks.pop()
    scaled = {re.escape(name): len(pair["A"]) for name, pair in parts.items()}
    peft = require("finetune", "peft")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=1,  # SwissArmyTransformer's, always
        target_modules="|".join(scaled),
        rank_pattern={name: count * rank for name, count in scaled.items()},
        alpha_pattern=scaled,
        base_model_name_or_path=str(source.path),
    )
    inject_lora(model, config, ADAPTER_NAME)
    low_rank = {}
    for name, pair in parts.items():
        low_rank[f"{LORA_START}{name}.lora_A.weight"] = torch.cat(pair["A"])
        low_rank[f"{LORA_START}{name}.lora_B.weight"] = torch.block_diag(*pair["B"])
    fill_lora(model, low_rank, ADAPTER_NAME, source.path)


def _attach_prefix(model: VisGLMForConditionalGeneration, source: SatSource, prefixes: dict[str, Tensor]) -> None:
    tables = {int(PREFIX.fullmatch(name)["layer"]): tensor for name, tensor in prefixes.items()}  # type: ignore[index]
    text = model.model.text
    add_prefix(text, next(iter(tables.values())).shape[-2])
    problems = [f"missing: mixins.ptuning.prefix.{layer}" for layer in range(len(text.layers)) if layer not in tables]
    for layer, table in tables.items():
        wanted = text.layers[layer].attention.prefix.shape if layer < len(text.layers) else None
        if table.shape != wanted:
            problems.append(
                f"shape: mixins.ptuning.prefix.{layer} is {list(table.shape)}, expected {wanted and list(wanted)}"
            )
    if problems:
        raise CheckpointError(source.path, problems, NEXT_STEP)
    with torch.no_grad():
        for layer, table in tables.items():
            text.layers[layer].attention.prefix.copy_(table)
