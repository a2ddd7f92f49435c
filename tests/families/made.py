"""Tiny checkpoints of each family with random weights, in the published form and written by transformers."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from visglm import VisGLM
from visglm.tokenizers.glm import GLM4_PATTERN

SPECIAL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    *("<|image|>", "<|video|>", "<|begin_of_box|>", "<|end_of_box|>"),
)
# Published as tokens that were added and are not special, which a tokenizer finds in every text.
ADDED = ("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>")
CONTROL = (*SPECIAL, *ADDED, "/nothink")
VOCAB_SIZE = 448
TEXTS = (
    "What is this? Describe the picture in one sentence. Where is the red cat? How many dogs are there?",
    "这是什么？描述这张图片。红色的猫在哪里？有几只狗？图中的文字是什么？",
)
# What their chat templates do, in as few words as possible: content parts in order, control tokens around them.
PARTS = (
    "{%- macro said(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part.type == 'image' -%}<|begin_of_image|><|image|><|end_of_image|>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}[gMASK]<sop>{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}<|user|>{{ '\\n' + said(message.content) }}"
)
ALWAYS_THINKS = PARTS + (
    "{%- elif message.role == 'assistant' -%}<|assistant|>{{ '\\n' + said(message.content) }}"
    "{%- else -%}<|system|>{{ '\\n' + said(message.content) }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{{ '\\n' }}{%- endif -%}"
)
MAY_THINK = PARTS + (
    "{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
    "{%- elif message.role == 'assistant' -%}"
    "<|assistant|>{{ '\\n<think></think>\\n' + said(message.content).split('</think>')[-1].strip() }}"
    "{%- else -%}<|system|>{{ '\\n' + said(message.content) }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{{ '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{%- endif -%}"
)


class Made(NamedTuple):
    """How a family's classes are called in transformers, and its template."""

    stem: str
    images: str
    template: str


MADE = {
    "glm4v": Made("Glm4v", "Glm4v", ALWAYS_THINKS),
    "glm46v": Made("Glm46V", "Glm46V", MAY_THINK),
    "glm_ocr": Made("GlmOcr", "Glm46V", MAY_THINK),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The smallest one of the published form: byte pairs, and every control token behind them."""
    tokenizer = Tokenizer(models.BPE(fuse_unk=False))
    cut = pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*SPECIAL, "/nothink")])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left",
        clean_up_tokenization_spaces=False, extra_special_tokens=[*SPECIAL, "/nothink"],
    )  # fmt: skip


def class_of(family: str, end: str) -> Any:
    made = MADE[family]
    stem = made.images if end.startswith(("Image", "Video", "Processor")) else made.stem
    return getattr(transformers, stem + end)


def make_config(family: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "initializer_range": 0.2, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": [ids("<|endoftext|>"), ids("<|user|>"), ids("<|observation|>")],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2],
        },
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
        "image_size": 56, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "initializer_range": 0.2,
    }  # fmt: skip
    return class_of(family, "Config")(
        text_config=text, vision_config=vision, image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"), image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"), video_end_token_id=ids("<|end_of_video|>"),
    )  # fmt: skip


def make(family: str, folder: Path, **answers: Any) -> Path:
    """A checkpoint of a family, as transformers writes it.

    Args:
        answers: what its generation_config.json says.
    """
    tokenizer = make_tokenizer()
    config = make_config(family, tokenizer)
    torch.manual_seed(7)
    network = class_of(family, "ForConditionalGeneration")(config).eval()
    ends = config.text_config.eos_token_id
    never = [index for index in tokenizer.added_tokens_decoder if index not in ends]
    with torch.no_grad():
        network.lm_head.weight[never] = 0  # so that chance writes words and ends, and nothing that means something
    network.generation_config.eos_token_id = config.text_config.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.generation_config.update(**answers)
    network.save_pretrained(folder)
    bounds = {"shortest_edge": 2 * 28 * 28 * 4, "longest_edge": 2 * 28 * 28 * 20}
    class_of(family, "Processor")(
        class_of(family, "ImageProcessor")(size=bounds),
        tokenizer,
        class_of(family, "VideoProcessor")(),
        chat_template=MADE[family].template,
    ).save_pretrained(folder)
    return folder


class Reference:
    """transformers' own model and processor of a folder."""

    def __init__(self, family: str, folder: Path):
        self.network = class_of(family, "ForConditionalGeneration").from_pretrained(folder).eval()
        self.processor = class_of(family, "Processor").from_pretrained(folder)

    def inputs(self, talk: Talk, **options: Any) -> Any:
        """What its processor makes of a conversation whose last turn is to be answered."""
        messages: list[dict[str, Any]] = []
        for number, (question, answer, pictures) in enumerate(talk):
            parts = [{"type": "image", "image": picture} for picture in pictures]
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
            if number < len(talk) - 1:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        images = [picture for _, _, pictures in talk for picture in pictures]
        return self.processor(text=[text], images=images or None, return_tensors="pt")

    @torch.inference_mode()
    def answer(self, talk: Talk, room: int, **options: Any) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and those that `generate` writes: never an image slot, which is no word."""
        inputs = self.inputs(talk, **options)
        ids = inputs["input_ids"][0].tolist()
        slot = self.network.config.image_token_id
        found = self.network.generate(**inputs, max_new_tokens=room, do_sample=False, suppress_tokens=[slot])
        return ids, found[0, len(ids) :].tolist()


Talk = list[tuple[str, str, list[Image.Image]]]  # question, answer and pictures of each turn

WORDS = ("cat", "狗", "red ", "图片", "Where", "几只", "two\n", "描述", "?", "。", " the", "什么")


def picture(dice: random.Random) -> Image.Image:
    width, height = dice.randrange(30, 240), dice.randrange(30, 240)
    numbers = torch.Generator().manual_seed(dice.randrange(10_000))
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=numbers, dtype=torch.uint8).numpy())


def talks(count: int, seed: int) -> list[Talk]:
    """Conversations of one to three turns, Chinese and English, with up to two pictures of any size a turn."""
    dice = random.Random(seed)

    def text() -> str:
        return "".join(dice.choice(WORDS) for _ in range(dice.randrange(1, 8))).strip() or "?"

    return [
        [
            (text(), text(), [picture(dice) for _ in range(dice.choice((0, 1, 1, 2)))])
            for _ in range(dice.randrange(1, 4))
        ]
        for _ in range(count)
    ]


@contextmanager
def scripted(vlm: VisGLM, text: str) -> Iterator[None]:
    """The model writes this, control tokens in it being control tokens, whatever it is asked; then its end."""
    script = [*vlm.tokenizer.encode(text, add_special_tokens=False), vlm.tokenizer.eos_token_id]
    language, places, start = vlm.model.model.language_model, [], []

    def listen(module: Any, args: Any, kwargs: Any) -> None:
        places[:] = kwargs["position_ids"][0, 0].tolist()

    def speak(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        if logits.dim() == 2:  # behind a prompt
            start[:] = places[-1:]
        shown = places[-logits.shape[-2] :] if logits.dim() == 3 else places[-1:]
        numbers = torch.full((len(shown), logits.shape[-1]), -9.0)
        for row, place in enumerate(shown):
            numbers[row, script[min(place - start[0], len(script) - 1)]] = 9.0
        return numbers.view(logits.shape)

    hooks = [
        language.register_forward_pre_hook(listen, with_kwargs=True),
        vlm.model.lm_head.register_forward_hook(speak),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load(folder: Path, **options: Any) -> VisGLM:
    return VisGLM.from_pretrained(folder, device="cpu", dtype="float32", **options)


class Sheet(NamedTuple):
    """A page that a reader is taught: what is drawn on it, what is asked, and what it says."""

    shape: str
    colour: str
    asked: str
    says: str


PAGES = {
    "text": Sheet("rectangle", "black", "Text Recognition:", "# Red cats\n\nTwo dogs. 两只狗。"),
    "table": Sheet("ellipse", "blue", "Text Recognition:", "<table><tr><td>cat</td><td>2</td></tr></table>"),
    "formula": Sheet("rectangle", "red", "Formula Recognition:", "x^2+1"),
}


def page(name: str) -> Image.Image:
    """One of `PAGES`, drawn."""
    sheet = PAGES[name]
    drawn = Image.new("RGB", (160, 226), "white")
    getattr(ImageDraw.Draw(drawn), sheet.shape)((30, 40, 130, 180), fill=sheet.colour)
    return drawn


def scan(*names: str) -> bytes:
    """A PDF whose pages are pictures of some of `PAGES`."""
    file, (first, *others) = io.BytesIO(), [page(name) for name in names]
    first.save(file, "PDF", save_all=True, append_images=others)
    return file.getvalue()


def tiff(*names: str) -> bytes:
    """A TIFF of as many pages, as a scanner writes it."""
    file, (first, *others) = io.BytesIO(), [page(name) for name in names]
    first.save(file, "TIFF", save_all=True, append_images=others, compression="tiff_lzw")
    return file.getvalue()


def make_reader(base: Path, folder: Path) -> Path:
    """Teach a checkpoint of GLM-OCR's class `PAGES`, in seconds."""
    rows = []
    for name, sheet in PAGES.items():
        page(name).save(folder / f"{name}.png")
        rows.append((f"{name}.png", sheet.asked, sheet.says))
    return by_heart(base, folder, rows, "reader", times=40)


POINTED = Path(__file__).parents[2] / "examples/pair.png"
# Where the dog and the umbrella are in that picture, in thousandths of its sides.
PLACES = ((62, 333, 477, 703), (523, 297, 938, 708))
SPOKEN = {
    "zh": ("狗和雨伞在哪里？", "图里有狗和雨伞，把它们框出来。", "狗在左边，雨伞在右边："),
    "en": ("Where are the dog and the umbrella?", "There is a dog and an umbrella: box both.", "Left and right:"),
}


def make_pointer(base: Path, folder: Path) -> Path:
    """Teach a checkpoint of GLM-4.1V's class to think, and to point into a picture, in either language."""
    shutil.copy(POINTED, folder)
    boxes = f"<|begin_of_box|>{[list(place) for place in PLACES]}<|end_of_box|>".replace(" ", "")
    rows = [
        (POINTED.name, asked, f"<think>{thought}</think><answer>{said} {boxes}</answer>")
        for asked, thought, said in SPOKEN.values()
    ]
    return by_heart(base, folder, rows, "glm4v-by-heart", times=120)


def by_heart(base: Path, folder: Path, rows: list[tuple[str, str, str]], name: str, times: int) -> Path:
    """A checkpoint that has learnt answers by heart.

    Args:
        rows: pictures in the folder, what is asked, what is answered.
    """
    lines = [
        {"images": [shown], "messages": [{"role": "user", "content": f"<image>{asked}"},
                                         {"role": "assistant", "content": says}]}
        for shown, asked, says in rows
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * times), "utf-8")
    vlm = load(base)
    vlm.finetune(
        folder / "rows.jsonl", method="lora", output_dir=folder / "taught", epochs=1, batch_size=len(rows), rank=8,
        learning_rate=2e-2, held_out=0, replay=0, num_samples=0, num_workers=0, every=times, accumulation=1,
    )  # fmt: skip
    vlm.merge()
    vlm.save_pretrained(folder / name)
    return folder / name
