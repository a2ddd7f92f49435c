"""Small models with random weights, and the golden ones of the reference implementations."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from visglm.checkpoint import assemble, open_source
from visglm.config import VisGLMConfig
from visglm.model import VisGLMForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_HF, GOLDEN_SAT, GOLDEN_CHATGLM2 = GOLDEN / "visualglm-hf", GOLDEN / "visualglm-sat", GOLDEN / "chatglm2-hf"


def golden_config() -> VisGLMConfig:
    return open_source(GOLDEN_HF).config


def golden_model() -> VisGLMForConditionalGeneration:
    return assemble(open_source(GOLDEN_HF), device=torch.device("cpu"), dtype=torch.float32)


def expected(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"expected/{name}.safetensors")


def make_fine_tuned(kind: str, folder: Path) -> Path:
    """What SwissArmyTransformer saved after fine-tuning, from the base and what changed in it (`lora`, `ptuning`).

    The whole files hold the base once more; of the layers that have LoRA it is under `original`.
    """
    shutil.copytree(GOLDEN_SAT, folder)
    shutil.copyfile(GOLDEN / f"visualglm-sat-{kind}/model_config.json", folder / "model_config.json")
    weights = folder / "1/mp_rank_00_model_states.pt"
    base = torch.load(weights, weights_only=True)["module"]
    delta = torch.load(GOLDEN / f"visualglm-sat-{kind}/delta.pt", weights_only=True)
    wrapped = {name.split(".matrix_")[0] for name in delta if ".matrix_" in name}
    module = {}
    for name, tensor in base.items():
        owner, _, kind_of_tensor = name.rpartition(".")
        module[f"{owner}.original.{kind_of_tensor}" if owner in wrapped else name] = tensor
    weights.unlink()
    torch.save({"module": module | delta}, weights)
    return folder
