"""GLM-4.1V-9B at its full size: memory, loading and tokens a second in packed weights, beside transformers' own.

    python benchmarks/family_full_size.py --folder /var/tmp/glm41v          # 21 GB on disk
    python benchmarks/family_full_size.py --folder /var/tmp/glm41v4 --layers 4 --peer

The published shape with random weights, in the published form, written shard by shard; a vocabulary of a few hundred
byte pairs, whose control tokens are all there. Each side is a process of its own, so that memory is told apart. What is
there already is not written again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    PreTrainedTokenizerFast,
)

CONTROL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    *("<|image|>", "<|video|>", "<think>", "</think>", "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>"),
)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
# As published; what transformers takes without it does not fit together.
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
SHARD_BYTES = 2**30
PICTURE, QUESTION = (336, 336), "What is in this picture?"


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(WORDS), behavior="isolated", invert=False)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([QUESTION], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left",
        extra_special_tokens=list(CONTROL),
    )  # fmt: skip


def write(folder: Path, layers: int | None) -> None:
    """The checkpoint; its configuration comes last, and says that it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    of = tokenizer.convert_tokens_to_ids
    config = Glm4vConfig(
        text_config={"rope_parameters": ROPE},
        image_token_id=of("<|image|>"), video_token_id=of("<|video|>"), image_start_token_id=of("<|begin_of_image|>"),
        image_end_token_id=of("<|end_of_image|>"), video_start_token_id=of("<|begin_of_video|>"),
        video_end_token_id=of("<|end_of_video|>"), dtype="bfloat16",
    )  # fmt: skip
    config.text_config.pad_token_id = tokenizer.pad_token_id
    config.text_config.eos_token_id = [of("<|endoftext|>"), of("<|user|>"), of("<|observation|>")]
    if layers is not None:
        config.text_config.num_hidden_layers = layers
    with torch.device("meta"):
        network = Glm4vForConditionalGeneration(config)
    noise = (torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    number = taken = 0

    def put_down() -> None:
        nonlocal number, taken
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()
        number, taken = number + 1, 0

    total = 0
    for name, tensor in network.state_dict().items():
        is_norm = tensor.dim() == 1 and name.endswith("weight")
        filled = torch.ones(tensor.shape) if is_norm else noise.repeat(-(-tensor.numel() // len(noise)))
        shard[name] = filled.flatten()[: tensor.numel()].reshape(tensor.shape).bfloat16().clone()
        taken, total = taken + shard[name].nbytes, total + shard[name].nbytes
        if taken > SHARD_BYTES:
            put_down()
    put_down()
    weight_map = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map), "utf-8")
    tokenizer.save_pretrained(folder)
    Glm4vImageProcessor().save_pretrained(folder)
    config.architectures = ["Glm4vForConditionalGeneration"]
    config.save_pretrained(folder)


def memory(field: str) -> int:
    """MiB of this process: VmHWM is the most there ever was, RssAnon what no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field))


def ours(folder: Path, scheme: str | None, tokens: int) -> dict[str, float]:
    """In this process: what loading and answering take."""
    from visglm import VisGLM

    before, started = memory("VmHWM"), time.perf_counter()
    vlm = VisGLM.from_pretrained(folder, quantize=scheme, device="cpu")
    found: dict[str, float] = {"seconds to load": time.perf_counter() - started}
    found["MiB once loaded"] = memory("VmRSS") - before
    found["MiB at most until then, with Python and torch"] = memory("VmHWM")
    picture = Image.effect_noise(PICTURE, 80).convert("RGB")
    reply = vlm.chat(picture, QUESTION, max_new_tokens=tokens, min_new_tokens=tokens)
    times = reply.timings
    found["seconds of the picture"] = times.encode
    found["seconds to the first token"] = times.first_token
    found["tokens/s"] = (len(reply.ids) - 1) / (times.total - times.first_token)
    found["MiB at most, with Python and torch"] = memory("VmHWM")
    return found


def peer(folder: Path, tokens: int) -> dict[str, float]:
    """The same by transformers in bfloat16."""
    before, started = memory("VmHWM"), time.perf_counter()
    network = Glm4vForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found: dict[str, float] = {"seconds to load": time.perf_counter() - started}
    found["MiB once loaded"] = memory("VmRSS") - before
    ids = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(0))
    stamps: list[float] = []
    hook = network.lm_head.register_forward_hook(lambda *_: stamps.append(time.perf_counter()))
    with torch.inference_mode():
        network.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    hook.remove()
    found["tokens/s"] = (len(stamps) - 1) / (stamps[-1] - stamps[0])
    found["MiB at most, with Python and torch"] = memory("VmHWM")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the checkpoint, which is left there")
    parser.add_argument("--layers", type=int, help="of the text model (default: all 40)")
    parser.add_argument("--quantize", default="int4", help="int8, int4 or nf4")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument(
        "--peer", action="store_true", help="transformers in bfloat16, too: 21 GB of memory for all layers"
    )
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        side = peer(arguments.folder, arguments.tokens) if arguments.only == "peer" else None
        print(json.dumps(side or ours(arguments.folder, arguments.quantize, arguments.tokens)))
        return
    if not (arguments.folder / "config.json").is_file():
        write(arguments.folder, arguments.layers)
    sides = ("ours", "peer") if arguments.peer else ("ours",)
    results = []
    for side in sides:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", side]
        results.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]))
    titles = (f"visglm, {arguments.quantize}", "transformers, bfloat16")[: len(sides)]
    print(f"| | {' | '.join(titles)} |\n|---|{'---|' * len(sides)}")
    for name in results[0]:
        print(f"| {name} | " + " | ".join(f"{side[name]:.1f}" if name in side else "" for side in results) + " |")
    told = subprocess.run(
        [sys.executable, "-m", "visglm", "estimate", str(arguments.folder), "--quantize", arguments.quantize],
        capture_output=True, text=True,
    )  # fmt: skip
    print(f"\nvisglm estimate says:\n{told.stdout or told.stderr}")


if __name__ == "__main__":
    main()
