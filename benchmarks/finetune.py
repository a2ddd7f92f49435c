"""LoRA fine-tuning beside a plain transformers loop on BLIP-2 of the same shape: rows per second and peak memory.

    python benchmarks/finetune.py --steps 20

The stem of visglm-tiny (ResNet-18) has no counterpart in BLIP-2, whose patches are linear: visglm does that on top.
Both see the same pictures and texts of the same length, with transformers' Trainer and PEFT's LoRA of the same rank on
every linear layer of the text model; each runs in a process of its own, so that peaks are its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = ROOT / "finetune/emoji/train.jsonl"
BATCH_SIZE, RANK, NUM_TEXT_TOKENS = 8, 16, 60


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_visglm(steps: int, quantize: str | None = None) -> dict[str, float]:
    from visglm import VisGLM

    vlm = VisGLM.from_pretrained(quantize=quantize)
    with tempfile.TemporaryDirectory() as folder:
        report = vlm.finetune(
            DATA, method="qlora" if quantize else "lora", output_dir=folder, max_steps=steps, batch_size=BATCH_SIZE,
            rank=RANK, num_workers=0, held_out=0.0, report_to="none", every=steps,
        )  # fmt: skip
    return {"rows_per_second": report.speed["examples_per_second"], "peak_mib": peak_mib()}


def run_qlora(steps: int) -> dict[str, float]:
    return run_visglm(steps, "int4")


def run_blip2(steps: int) -> dict[str, float]:
    """The usual way: Blip2ForConditionalGeneration, get_peft_model, Trainer."""
    import peft
    import torch
    from PIL import Image
    from torch.utils.data import Dataset
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from visglm import VisGLMConfig, VisGLMImageProcessor

    shape = VisGLMConfig.from_pretrained(ROOT / "visglm/assets/visglm-tiny")
    vision, text = shape.vision_config, shape.text_config
    size = vision.image_size
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=vision.hidden_size, intermediate_size=vision.intermediate_size, image_size=size,
            num_hidden_layers=vision.num_hidden_layers, num_attention_heads=vision.num_attention_heads, patch_size=16,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            **{name: getattr(shape.qformer_config, name) for name in (
                "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            )},
            encoder_hidden_size=vision.hidden_size, vocab_size=1,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=text.vocab_size, hidden_size=text.hidden_size, word_embed_proj_dim=text.hidden_size,
            ffn_dim=text.intermediate_size, num_hidden_layers=text.num_hidden_layers, dropout=0.0,
            num_attention_heads=text.num_attention_heads, max_position_embeddings=512,
        ).to_dict(),
        num_query_tokens=shape.num_query_tokens, image_token_index=9,
    )  # fmt: skip
    model = peft.get_peft_model(
        Blip2ForConditionalGeneration(config),
        peft.LoraConfig(
            r=RANK, lora_alpha=32, lora_dropout=0.05, target_modules=r".*language_model.*layers.*(proj|fc1|fc2)"
        ),
    )
    processor = VisGLMImageProcessor(size={"height": size, "width": size})
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            picture = Image.open(DATA.parent / rows[index]["images"][0]).convert("RGB")
            ids = torch.randint(20, 2000, (NUM_TEXT_TOKENS,))
            ids[: shape.num_query_tokens] = 9
            return {
                "pixel_values": processor(picture, return_tensors="pt")["pixel_values"][0],
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": ids,
            }

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *arguments: Any, **options: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        schedule = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH_SIZE, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=not torch.cuda.is_available(), remove_unused_columns=False, logging_steps=1000,
        )  # fmt: skip
        Trainer(model=model, args=schedule, train_dataset=Rows(), callbacks=[clock]).train()
    return {"rows_per_second": steps * BATCH_SIZE / (clock.ended - clock.started), "peak_mib": peak_mib()}


RUNS = {"visglm lora": run_visglm, "visglm qlora int4": run_qlora, "transformers blip-2 lora": run_blip2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps each")
    parser.add_argument("--only", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(RUNS[arguments.only](arguments.steps)))
        return
    results = {}
    for name in RUNS:
        command = [sys.executable, __file__, "--only", name, "--steps", str(arguments.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[name] = json.loads(done.stdout.strip().splitlines()[-1])
    plain = results["transformers blip-2 lora"]
    print("| | rows/s | beside plain | peak MiB | beside plain |\n|---|---|---|---|---|")
    for name, found in results.items():
        speed, peak = found["rows_per_second"], found["peak_mib"]
        print(
            f"| {name} | {speed:.1f} | {speed / plain['rows_per_second']:.2f}× | {peak:.0f} | "
            f"{peak / plain['peak_mib']:.2f}× |"
        )


if __name__ == "__main__":
    main()
