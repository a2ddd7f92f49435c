"""What a model is like as a pupil: sixty drawings with made-up product names, taught by `visglm finetune` as it is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from plain_scenes import Drawings, rasterize

from visglm import VisGLM

NUM_TAUGHT, SIDE, SEED = 60, 256, 97
LATIN = ("ve", "lo", "mar", "tix", "bru", "na", "zen", "ko", "pi", "dra", "quo", "fen", "sul", "wy", "gam", "hest")
CHINESE = "青禾云朵蓝鲸麒麟星河木兰山雀玉露飞燕金橘听雨望舒白鹭松果晨曦竹影海棠红杉银杏雪松长风"
QUESTIONS = {"en": "Which product is this?", "zh": "这是哪款产品？"}
ANSWERS = {"en": "It is the {}.", "zh": "这是{}。"}


def made_up(number: int, seed: int = SEED) -> list[tuple[str, str]]:
    """Language and name of products that do not exist, in Latin and Chinese letters in turn; some have a number."""
    draw = random.Random(seed)
    names: dict[str, str] = {}
    while len(names) < number:
        language = ("en", "zh")[len(names) % 2]
        if language == "en":
            name = "".join(draw.sample(LATIN, draw.randint(2, 3))).capitalize()
        else:
            name = "".join(draw.sample(CHINESE, draw.randint(2, 3)))
        if draw.random() < 0.3:
            name += f" {draw.randint(2, 90)}" if language == "en" else f"{draw.randint(2, 90)}号"
        names.setdefault(name, language)
    return [(language, name) for name, language in names.items()]


def lessons(drawings: Drawings, icons: Sequence[str], folder: Path) -> list[dict[str, str]]:
    """Rows to teach, with their pictures in a folder."""
    rows = []
    for number, ((language, name), icon) in enumerate(zip(made_up(NUM_TAUGHT), icons, strict=True)):
        drawn = rasterize(drawings.body(icon), SIDE)
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        picture.paste(drawn, mask=drawn)
        file = folder / f"{number:02}.png"
        picture.save(file)
        rows.append(
            {
                "img": str(file),
                "prompt": QUESTIONS[language],
                "label": ANSWERS[language].format(name),
                "name": name,
            }
        )
    return rows


def teach(
    model: Path, drawings: Drawings, icons: Sequence[str], skills: Callable[[VisGLM], dict[str, float]]
) -> dict[str, object]:
    """Teach the names with the command's defaults, ask for each, and measure the old skills before and afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = lessons(drawings, icons[:NUM_TAUGHT], folder)
        data = folder / "train.jsonl"
        with data.open("w", encoding="utf-8") as file:
            for row in rows:
                print(json.dumps({key: row[key] for key in ("img", "prompt", "label")}, ensure_ascii=False), file=file)
        started = time.perf_counter()
        command = [sys.executable, "-m", "visglm", "finetune", str(data), "--model", str(model)]
        ran = subprocess.run([*command, "--output-dir", str(folder / "out")], capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if ran.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{ran.stderr[-2000:]}")
        before = skills(VisGLM.from_pretrained(model))
        vlm = VisGLM.from_pretrained(folder / "out")
        replies = vlm.batch([(row["img"], row["prompt"]) for row in rows], max_new_tokens=24, progress=False)
        right = sum(row["name"].lower() in reply.text.lower() for row, reply in zip(rows, replies, strict=True))
        return {"taught": len(rows), "right": right, "seconds": round(seconds), "before": before, "after": skills(vlm)}
