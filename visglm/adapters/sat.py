"""What SwissArmyTransformer's fine-tuning left inside its checkpoints, as an adapter of `delta.py`.

LoRA there has an A and a B for each of q, k and v of the fused projection. Side by side they are one LoRA of three
times the rank whose B is block diagonal; the scaling, one over the rank of a part, stays.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .delta import HERE, Delta, Home

MATRIX = re.compile(r"transformer\.(?P<module>layers\.\d+\..+)\.matrix_(?P<side>[AB])\.(?P<part>\d+)")
PREFIX = re.compile(r"mixins\.ptuning\.prefix\.(?P<layer>\d+)")


def is_leftover(name: str) -> bool:
    """Whether fine-tuning added the tensor of that name to a checkpoint."""
    return ".matrix_A." in name or ".matrix_B." in name or name.startswith("mixins.ptuning.")


def read_leftovers(path: Path, found: Mapping[str, Tensor], prefix_name: Callable[[int], str]) -> Delta:
    """The LoRA or the prefix among the tensors that fine-tuning added.

    Args:
        path: of the checkpoint, for errors.
        found: its leftovers, under the names SwissArmyTransformer gave them.
        prefix_name: what the prefix of a layer is called in the network.

    Raises:
        CheckpointError: they are incomplete, or of another kind.
    """
    problems = [f"unexpected: {name}; visglm reads LoRA and P-Tuning" for name in found if not _known(name)]
    parts: dict[str, dict[str, dict[int, Tensor]]] = defaultdict(lambda: {"A": {}, "B": {}})
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if (match := MATRIX.fullmatch(name)) is not None:
            parts["model.text." + match["module"]][match["side"]][int(match["part"])] = tensor
        elif (match := PREFIX.fullmatch(name)) is not None:
            tensors[prefix_name(int(match["layer"]))] = tensor
    alphas = {}
    for module, sides in parts.items():
        if sides["A"].keys() != sides["B"].keys():
            problems.append(f"{module} has {len(sides['A'])} matrices A and {len(sides['B'])} matrices B")
            continue
        pairs = [(sides["A"][part], sides["B"][part]) for part in sorted(sides["A"])]
        if {matrix.ndim for pair in pairs for matrix in pair} != {2} or len({a.shape[0] for a, _ in pairs}) > 1:
            problems.append(f"{module}: its LoRA matrices have several ranks, or are none")
            continue
        tensors[f"{module}.lora_A.weight"] = torch.cat([a for a, _ in pairs])
        tensors[f"{module}.lora_B.weight"] = torch.block_diag(*(b for _, b in pairs))
        alphas[module] = float(len(pairs))  # theirs is 1 for each part
    if problems:
        raise CheckpointError(path, problems, "Nothing was loaded. Copy the checkpoint again, whole.")
    return Delta("lora" if alphas else "ptuning", tensors, Home(HERE), alphas)


def _known(name: str) -> bool:
    return MATRIX.fullmatch(name) is not None or PREFIX.fullmatch(name) is not None
