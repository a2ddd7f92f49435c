"""Fine-tuning beside a plain transformers loop on BLIP-2 of the same shape: rows per second and peak memory.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py --steps 20 --rounds 5 [--cpu-time]

Both learn the same rows: the same pictures, questions and answers, tokenized by the same tokenizer as they are read,
with transformers' Trainer and LoRA of the same rank on every linear layer of the text model. The shape is that of
visglm-tiny, with linear patches as BLIP-2 has them; what its convolutional stem costs is shown on a line of its own.

Each side lives in a process of its own, so that peaks are its own, and they take turns: whatever else the machine does
hits all of them. Rows per second are the median over the rounds, ratios the median of those within a round.

The same few rows over and over, of which a frozen vision encoder looks at each picture once:

    OMP_NUM_THREADS=1 python benchmarks/finetune.py --sides "visglm-tiny with its stem, lora, 12 rows" --steps 120
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = ROOT / "visglm/assets/visglm-tiny"
DATA = ROOT / "finetune/emoji/train.jsonl"
BATCH_SIZE, RANK, ALPHA, DROPOUT = 8, 16, 32, 0.05
IGNORED, IMAGE_TOKEN = -100, 9

Round = Callable[[], float]  # trains for some steps; rows per second


def visglm_rounds(
    steps: int, quantize: str | None = None, with_stem: bool = False, num_rows: int | None = None
) -> Round:
    from visglm import VisGLM, VisGLMConfig, VisGLMForConditionalGeneration, VisGLMProcessor

    made = tempfile.TemporaryDirectory(prefix="visglm-benchmark-")  # gone with the process
    if not with_stem:
        config = VisGLMConfig.from_pretrained(TINY)
        config.vision_config.stem = None
        VisGLMForConditionalGeneration(config).save_pretrained(made.name)
        VisGLMProcessor.from_pretrained(TINY).save_pretrained(made.name)

    data: Any = DATA
    if num_rows is not None:
        data = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()[:num_rows]]
        for row in data:
            row["images"] = [str(DATA.parent / name) for name in row["images"]]

    def one() -> float:
        vlm = VisGLM.from_pretrained(TINY if with_stem else made.name, quantize=quantize)
        with tempfile.TemporaryDirectory() as folder:
            report = vlm.finetune(
                data, method="qlora" if quantize else "lora", output_dir=folder, max_steps=steps, rank=RANK,
                batch_size=BATCH_SIZE, alpha=ALPHA, dropout=DROPOUT, num_workers=0, held_out=0.0, report_to="none",
                every=steps, replay=0.0,
            )  # fmt: skip
        return report.speed["examples_per_second"]

    return one


def blip2_rounds(steps: int) -> Round:
    """The usual way: Blip2ForConditionalGeneration, get_peft_model, a small data set and collator, Trainer."""
    import peft
    import torch
    from PIL import Image
    from torch.nn.utils.rnn import pad_sequence
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

    from visglm import VisGLMConfig, VisGLMProcessor

    shape = VisGLMConfig.from_pretrained(TINY)
    vision, text, qformer = shape.vision_config, shape.text_config, shape.qformer_config
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=vision.hidden_size, intermediate_size=vision.intermediate_size, image_size=vision.image_size,
            num_hidden_layers=vision.num_hidden_layers, num_attention_heads=vision.num_attention_heads,
            patch_size=vision.patch_size,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=qformer.hidden_size, intermediate_size=qformer.intermediate_size,
            num_hidden_layers=qformer.num_hidden_layers, num_attention_heads=qformer.num_attention_heads,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            encoder_hidden_size=vision.hidden_size, vocab_size=1,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=text.vocab_size, hidden_size=text.hidden_size, word_embed_proj_dim=text.hidden_size,
            ffn_dim=text.intermediate_size, num_hidden_layers=text.num_hidden_layers, dropout=0.0,
            num_attention_heads=text.num_attention_heads, max_position_embeddings=text.max_position_embeddings,
            activation_function="gelu_pytorch_tanh",  # ChatGLM's
        ).to_dict(),
        num_query_tokens=shape.num_query_tokens, image_token_index=IMAGE_TOKEN,
    )  # fmt: skip
    processor = VisGLMProcessor.from_pretrained(TINY)
    lines = DATA.read_text("utf-8").splitlines()

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(lines)

        def __getitem__(self, index: int) -> dict[str, Any]:
            row = json.loads(lines[index])
            question, answer = (message["content"].removeprefix("<image>") for message in row["messages"])
            prompt = [IMAGE_TOKEN] * shape.num_query_tokens + processor.tokenizer(f"Q:{question}\nA:").input_ids
            wanted = [*processor.tokenizer(answer, add_special_tokens=False).input_ids, text.eos_token_id]
            picture = Image.open(DATA.parent / row["images"][0]).convert("RGB")
            return {
                "pixel_values": processor.image_processor(picture, return_tensors="pt")["pixel_values"][0],
                "input_ids": torch.tensor(prompt + wanted),
                "labels": torch.tensor([IGNORED] * len(prompt) + wanted),
            }

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [item["input_ids"] for item in items]
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=text.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORED),
        }

    class Clock(TrainerCallback):
        started = ended = 0.0

        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            self.ended = time.perf_counter()

    def one() -> float:
        model = peft.get_peft_model(
            Blip2ForConditionalGeneration(config),
            peft.LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT,
                target_modules=r".*language_model.*layers.*(proj|fc1|fc2)",
            ),
        )  # fmt: skip
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            schedule = TrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=BATCH_SIZE, save_strategy="no", report_to=[],
                disable_tqdm=True, use_cpu=not torch.cuda.is_available(), remove_unused_columns=False,
                logging_steps=1000,
            )  # fmt: skip
            Trainer(model=model, args=schedule, train_dataset=Rows(), data_collator=collate, callbacks=[clock]).train()
        return steps * BATCH_SIZE / (clock.ended - clock.started)

    return one


PLAIN = "transformers, BLIP-2, LoRA"
FEW = "visglm-tiny with its stem, lora, 12 rows"
SIDES: dict[str, Callable[[int], Round]] = {
    PLAIN: blip2_rounds,
    "visglm, lora": visglm_rounds,
    "visglm, qlora (int4)": lambda steps: visglm_rounds(steps, "int4"),
    "visglm-tiny with its stem, lora": lambda steps: visglm_rounds(steps, with_stem=True),
    FEW: lambda steps: visglm_rounds(steps, with_stem=True, num_rows=12),
}


def serve(name: str, steps: int, cpu_time: bool) -> None:
    """One side: a round for every line that comes in."""
    if cpu_time:
        time.perf_counter = time.process_time  # for the clocks of both sides
    one = SIDES[name](steps)
    for _ in sys.stdin:
        speed = one()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rows_per_second": speed, "peak_mib": peak}), flush=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """One round of a side; what others print on its stdout is passed over."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"rows_per_second"'):
            return json.loads(line)
    raise SystemExit(f"a side ended early: {process.args}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a round")
    parser.add_argument("--rounds", type=int, default=5, help="of every side, after one that is not counted")
    parser.add_argument(
        "--cpu-time", action="store_true", help="rows per second of CPU time: for a machine that is busy otherwise"
    )
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=SIDES,
        metavar="SIDE",
        default=[name for name in SIDES if name != FEW],
        help="what to measure; each is shown beside the first",
    )
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.steps, arguments.cpu_time)
        return
    clock = ["--cpu-time"] if arguments.cpu_time else []
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--steps", str(arguments.steps), *clock],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for name in arguments.sides
    }  # fmt: skip
    for process in processes.values():  # warm: imports, first pages, first files
        ask(process)
    rounds = [{name: ask(process) for name, process in processes.items()} for _ in range(arguments.rounds)]
    for process in processes.values():
        process.communicate()
    print("| | rows/s | beside the first | peak MiB | beside the first |\n|---|---|---|---|---|")
    first = arguments.sides[0]
    for name in processes:
        speed = statistics.median(found[name]["rows_per_second"] for found in rounds)
        ratio = statistics.median(found[name]["rows_per_second"] / found[first]["rows_per_second"] for found in rounds)
        peak, plain = rounds[-1][name]["peak_mib"], rounds[-1][first]["peak_mib"]
        print(f"| {name} | {speed:.1f} | {ratio:.2f} × | {peak:.0f} | {peak / plain:.2f} × |", flush=True)


if __name__ == "__main__":
    main()
