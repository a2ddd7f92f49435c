"""The second evaluation of visglm-tiny: plain scenes, photographs, conversations, speech, belief, a lesson, sizes.

    python measure.py NODE_MODULES DEBIAN OUTPUT --photographs FOLDER

Nothing here shares code with what draws the training pictures. Answers are greedy. Into OUTPUT go measured.json and
answers.jsonl; into MODEL_CARD.md, between its markers, the figures beside those of `before.json`: the weights before,
under the same questions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from asked import LANGUAGES, Case, Vocabulary, is_unsure
from calibration import Sure, calibration_figures, probabilities
from card import write_between
from cases import photograph_cases, scene_cases
from concepts import load_concepts, load_unseen
from photographs import held_out, read_folder, read_stamps
from plain_scenes import Drawings
from pupil import teach
from speech import faults, speech_figures
from torch import Tensor
from tqdm import tqdm

from visglm import VisGLM
from visglm.checkpoint import EMBEDDED_MODEL

HERE = Path(__file__).parent
BATCH_SIZE, MOST_OF_A_SET, NEW_TOKENS = 32, 240, 72
# Figure → the share wanted, in percent.
WANTED = {
    "plain: name": 70, "plain: group, unseen": 60, "plain: colour": 90, "plain: count": 98, "plain: more than four": 98,
    "plain: presence": 90, "plain: position": 80, "plain: where": 80, "plain: describe": 50, "plain: outside": 95,
    "plain: name, then colour": 90, "plain: count, then where": 90, "plain: presence, then side": 90,
    "GroceryStore: name": 75, "Azure: name": 75, "stamps: name": 55, "GroceryStore: group": 85, "Azure: group": 85,
    "stamps: group": 85, "GroceryStore: colour": 80, "GroceryStore: presence": 80, "Azure: presence": 80,
    "stamps: presence": 80, "collages: count": 85, "collages: where": 70, "collages: presence": 80,
}  # fmt: skip
SKILLS = ("plain: name", "plain: count", "plain: presence", "plain: where", "plain: colour")
NUM_OF_A_SKILL = 60


class Eyes(VisGLM):
    """Encodes a picture once, however often it is asked about."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.known: dict[bytes, Tensor] = {}

    def encode(self, images: Any) -> Tensor:
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()) for image in images]
        digests = [key.digest() for key in keys]
        new = {key: image for key, image in zip(digests, images, strict=True) if key not in self.known}
        if new:
            self.known |= zip(new, super().encode(list(new.values())), strict=True)
        return torch.stack([self.known[key] for key in digests])


def answer(vlm: VisGLM, cases: Sequence[Case]) -> list[str]:
    """The answers to the last questions, in order; what is asked before is answered by the model, too."""
    texts = [""] * len(cases)
    alike: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, case in enumerate(cases):
        alike[len(case.turns), case.kind].append(place)
    with tqdm(total=len(cases), unit="answer") as bar:
        for (num_turns, _), places in alike.items():
            for start in range(0, len(places), BATCH_SIZE):
                some = places[start : start + BATCH_SIZE]
                history: list[Any] = [None] * len(some)
                for turn in range(num_turns):
                    requests = [
                        (list(pictures) or None, text, past)
                        for (pictures, text), past in zip((cases[p].turns[turn] for p in some), history, strict=True)
                    ]
                    replies = vlm.batch(requests, batch_size=BATCH_SIZE, progress=False, max_new_tokens=NEW_TOKENS)
                    history = [reply.history for reply in replies]
                for place, reply in zip(some, replies, strict=True):
                    texts[place] = reply.text
                bar.update(len(some))
    return texts


def shares(cases: Sequence[Case], texts: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Share of right answers by figure and language, with half the width of its 95 % interval (Wilson)."""
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case, text in zip(cases, texts, strict=True):
        hits[case.figure][case.language].append(case.is_right(text))
    return {
        figure: {language: share_of(by_language[language]) for language in LANGUAGES if by_language[language]}
        for figure, by_language in hits.items()
    }


def share_of(right: Sequence[bool]) -> dict[str, float]:
    number, share = len(right), sum(right) / len(right)
    squared = 1.96**2
    half = 1.96 / (1 + squared / number) * math.sqrt(share * (1 - share) / number + squared / (4 * number * number))
    return {"num": number, "share": round(share, 4), "plus_minus": round(half, 4)}


def belief(vlm: VisGLM, cases: Sequence[Case], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Calibration of the names, of drawings and of photographs."""
    asked = [(case, text) for case, text in zip(cases, texts, strict=True) if case.kind == "name" and one_turn(case)]
    pictures = [case.turns[0][0][0] for case, _ in asked]
    embeds = [vlm.encode([picture])[0] for picture in pictures]
    rows = [
        (seen, case.turns[0][1], text, case.language) for seen, (case, text) in zip(embeds, asked, strict=True) if text
    ]
    found = iter(probabilities(vlm, rows))
    by_part: dict[str, list[Sure]] = defaultdict(list)
    for case, text in asked:
        part = "drawings" if case.figure.startswith("plain") else "photographs"
        probability = next(found) if text else 0.0
        by_part[part].append(Sure(probability, case.is_right(text), is_unsure(text, case.language)))
    return {part: calibration_figures(answers) for part, answers in by_part.items()}


def one_turn(case: Case) -> bool:
    return len(case.turns) == 1 and len(case.turns[0][0]) == 1


def sizes_and_times(model: Path) -> dict[str, float]:
    """Megabytes, seconds to load beyond third-party imports, and seconds of an answer to a new picture, one process."""
    measured = (
        "import json, statistics, sys, time, torch, transformers, timm, PIL.Image\n"
        "from transformers import Blip2QFormerModel, PreTrainedModel\n"
        "from timm.models.vision_transformer import VisionTransformer\n"
        "torch.set_num_threads(2)\n"
        "started = time.perf_counter()\n"
        "from visglm import VisGLM\n"
        f"vlm = VisGLM.from_pretrained({str(model)!r})\n"
        "loaded = time.perf_counter() - started\n"
        "noise = [PIL.Image.effect_noise((224, 224), 60 + n).convert('RGB') for n in range(20)]\n"
        "vlm.chat(noise[0], 'What is this?', max_new_tokens=24)\n"
        "times = [vlm.chat(one, 'What is this?', max_new_tokens=24).timings.total for one in noise]\n"
        "parameters = vlm.model.num_parameters()\n"
        "print(json.dumps([loaded, statistics.median(times), parameters]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    folder = sum(file.stat().st_size for file in Path(model).iterdir())
    return {
        "megabytes": round((Path(model) / "model.safetensors").stat().st_size / 1e6, 1),
        "megabytes_with_tokenizer": round(folder / 1e6, 1),
        "num_parameters": runs[0][2],
        "seconds_to_load": round(statistics.median(run[0] for run in runs), 2),
        "seconds_per_answer": round(statistics.median(run[1] for run in runs), 3),
    }


def skills_of(cases: Sequence[Case]):
    """A function from a model to its shares in some old skills, on few questions."""
    chosen = [case for figure in SKILLS for case in [c for c in cases if c.figure == figure][: 2 * NUM_OF_A_SKILL]]

    def skills(vlm: VisGLM) -> dict[str, float]:
        found = shares(chosen, answer(vlm, chosen))
        return {figure: round(sum(by[lang]["share"] for lang in LANGUAGES) / 2, 4) for figure, by in found.items()}

    return skills


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures; the answers they are counted from go into OUTPUT."""
    concepts = load_concepts()
    drawings = Drawings(arguments.node_modules / "@iconify-json" / "openmoji")
    photographs = read_stamps(arguments.debian, concepts)
    if arguments.photographs is not None:
        photographs += read_folder(arguments.photographs)
    shown = held_out(photographs, MOST_OF_A_SET)
    further = {
        "en": [name for photograph in photographs for name in photograph.english],
        "zh": [name for photograph in photographs for name in photograph.chinese],
    }
    vocabulary = Vocabulary(concepts, further)
    unseen = load_unseen()
    cases = scene_cases(concepts, unseen, vocabulary, drawings) + photograph_cases(shown, vocabulary)
    vlm = Eyes.from_pretrained(arguments.model)
    texts = answer(vlm, cases)
    with (arguments.output / "answers.jsonl").open("w", encoding="utf-8") as file:
        for case, text in zip(cases, texts, strict=True):
            row = {"figure": case.figure, "language": case.language, "question": case.turns[-1][1], "answer": text}
            row |= {"right": case.is_right(text), "faults": sorted(faults(text, case.language))}
            print(json.dumps(row | {"accepted": case.accepted}, ensure_ascii=False), file=file)
    return {
        "weights_sha256": sha256(Path(arguments.model) / "model.safetensors"),
        "answers": shares(cases, texts),
        "speech": speech_figures((case.language, text) for case, text in zip(cases, texts, strict=True)),
        "belief": belief(vlm, cases, texts),
        "sizes": sizes_and_times(arguments.model),
        "lesson": teach(arguments.model, drawings, [thing.english[0] for thing in unseen], skills_of(cases)),
    }


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def percent(figure: dict[str, float] | None) -> str:
    return "–" if figure is None else f"{100 * figure['share']:.1f}"


def pair(by_language: dict[str, dict[str, float]] | None) -> str:
    if by_language is None:
        return "–"
    return " / ".join(percent(by_language.get(language)) for language in LANGUAGES)


def tables(now: dict[str, Any], before: dict[str, Any]) -> str:
    """The figures as Markdown, beside those of the weights before."""
    lines = ["| second renderer and photographs | n | wanted | en / zh | before |", "|---|--:|--:|--:|--:|"]
    for figure, by_language in now["answers"].items():
        number = next(iter(by_language.values()))["num"]
        wanted = WANTED.get(figure, "–")
        lines.append(
            f"| {figure} | {number} | {wanted} | {pair(by_language)} | {pair(before['answers'].get(figure))} |"
        )
    lines += ["", "| | now | before |", "|---|--:|--:|"]
    for name, read in SUMMARY.items():
        lines.append(f"| {name} | {read(now)} | {read(before)} |")
    return "\n".join(lines)


def told_faults(result: dict[str, Any], *kinds: str) -> str:
    faulty = sum(by["faults"].get(kind, 0) for by in result["speech"].values() for kind in kinds)
    return f"{faulty} of {sum(by['num'] for by in result['speech'].values())}"


def lost(result: dict[str, Any]) -> str:
    lesson = result["lesson"]
    return f"{100 * max(before - lesson['after'][name] for name, before in lesson['before'].items()):.1f}"


# What the second table tells → how it is read from a result.
SUMMARY = {
    "answers that mix languages": lambda result: told_faults(result, "mixed"),
    "answers that break off or repeat themselves": lambda result: told_faults(result, "broken", "doubled"),
    "answers with a wrong article": lambda result: told_faults(result, "article"),
    "expected calibration error, drawings": lambda result: percent_of(result["belief"]["drawings"], ERROR),
    "expected calibration error, photographs": lambda result: percent_of(result["belief"]["photographs"], ERROR),
    "sure names that are right, drawings": lambda result: percent_of(result["belief"]["drawings"], SURE),
    "sure names that are right, photographs": lambda result: percent_of(result["belief"]["photographs"], SURE),
    "made-up names learnt, of 60": lambda result: str(result["lesson"]["right"]),
    "seconds of that lesson": lambda result: str(result["lesson"]["seconds"]),
    "points of an old skill it costs, at most": lost,
    "megabytes": lambda result: str(result["sizes"]["megabytes"]),
    "seconds to load": lambda result: str(result["sizes"]["seconds_to_load"]),
    "seconds of an answer": lambda result: str(result["sizes"]["seconds_per_answer"]),
}
ERROR, SURE = "expected_calibration_error", "confident_right"


def percent_of(figures: dict[str, float], key: str) -> str:
    return f"{100 * figures[key]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("node_modules", type=Path, help="npm's folder, with the drawings")
    parser.add_argument("debian", type=Path, help="where Debian's packages were unpacked")
    parser.add_argument("output", type=Path, help="folder for answers and figures")
    parser.add_argument("--photographs", type=Path, help="folder with photos.tsv; without, only Tux Paint's are shown")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="folder (default: the embedded model)")
    parser.add_argument("--no-card", action="store_true", help="leave MODEL_CARD.md as it is")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    result = measure(arguments)
    result["seconds"] = round(time.time() - started)
    (arguments.output / "measured.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    before_file = HERE / "before.json"
    before = json.loads(before_file.read_text("utf-8")) if before_file.is_file() else result
    text = tables(result, before)
    print(text)
    if not arguments.no_card:
        write_between(HERE / "MODEL_CARD.md", "measured", text)


if __name__ == "__main__":
    main()
