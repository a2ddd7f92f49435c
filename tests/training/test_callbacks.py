"""What is called for DeepSpeed, as far as one process and no GPU can tell."""

from __future__ import annotations

import torch

from visglm.training.callbacks import OneDtype


def test_batch_norm_works_after_deepspeed_has_cast_its_parameters():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    OneDtype().on_train_begin(None, None, None, model=model)
    assert model(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
