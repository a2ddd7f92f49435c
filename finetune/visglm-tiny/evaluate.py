"""The first evaluation of visglm-tiny: drawings in styles it never saw, in scenes of the renderer that taught it.

    python evaluate.py DATA OUTPUT

Everything is asked in the first phrasing of each kind, with greedy decoding, and scored by `Question.accepts`: the
right word stands in the answer. Beside each figure stand what the same model says to a blank picture, the nearest
training picture by raw pixels, the same questions in words it was never taught, and the model with its weights packed.

Into OUTPUT go predictions.jsonl, evaluation.json and answers.png; into MODEL_CARD.md, between its markers, the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from card import write_between
from concepts import Concept, load_concepts, load_unseen, read_phrasings
from grid import draw_grid
from PIL import Image
from questions import Asker, Question, Thing, things_in, things_of
from torch import Tensor
from tqdm import tqdm
from world import Scenes, World

from visglm import VisGLM
from visglm.checkpoint import EMBEDDED_MODEL

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
SEED = 20_240_601  # of scenes no training run has drawn
BATCH_SIZE = 64
NEW_TOKENS = {"describe": 64}  # longest answer by kind; others need far fewer
SCHEMES = ("int8", "int4")
# Arrangement → fewest and most objects in a picture, and how many pictures (None: one for every drawing).
ARRANGEMENTS = {"alone": (1, 1, None), "any": (1, 4, 400), "several": (2, 4, 400)}
# Kind of question → what it is asked about, of how many pictures (None: all), and the share wanted.
PLAN: dict[str, tuple[str, int | None, float]] = {
    "name": ("alone", None, 0.50),
    "group": ("alone", 400, 0.80),
    "colour": ("alone", None, 0.90),  # of those that have a clear one
    "outside": ("alone", 200, 0.90),
    "count": ("any", 300, 0.95),
    "presence": ("any", 400, 0.90),
    "position": ("several", 400, 0.60),
    "where": ("several", 400, 0.60),
    "describe": ("several", 400, 0.50),
}
# Cache → what is asked of its pictures.
OTHER_PLANS: dict[str, dict[str, tuple[str, int | None, float]]] = {
    "icons": {"name": ("alone", None, 0.50), "describe": ("several", 60, 0.50)},
    "photographs": {"name": ("alone", None, 0.20)},
    "unseen": {"group": ("alone", None, 0.80)},
}
# Multi-turn: what is asked first → what is asked after the model's own answer, and about what.
FOLLOW_UPS = {
    "name, then colour": ("name", "colour", "alone"),
    "count, then where": ("count", "where", "several"),
    "presence, then side": ("presence", "side", "several"),
}
FOLLOW_UP_TARGET, NUM_FOLLOW_UPS = 0.85, 200
NUM_REWORDED = 180  # pictures per kind: each of the 30 phrasings six times
GRID_SIZE = 24  # pictures shown
MEASURED_AGAIN = 3  # every third question is asked of the blank picture and of packed weights


@dataclass(frozen=True)
class Item:
    """A question, and what was said before it.

    Args:
        figure: under which it counts. picture: shown. question: asked. first: asked before it, if any.
        group: of the one object shown, else "".
    """

    figure: str
    picture: Image.Image
    question: Question
    first: Question | None = None
    group: str = ""


class Paraphraser(Asker):
    """Asks in phrasings kept from training, each as often as the others."""

    def __init__(self, concepts: list[Concept], seed: int):
        super().__init__(concepts, seed)
        self.phrasings = read_phrasings("paraphrases.tsv")
        self.asked: dict[tuple[str, str], int] = defaultdict(int)

    def phrase(self, kind: str, language: str, **values: str) -> str:
        phrasings = self.phrasings[kind][language]
        self.asked[kind, language] += 1
        return phrasings[self.asked[kind, language] % len(phrasings)].format(**values)

    def ask_outside(self, things: list, language: str) -> Question:
        return replace(super().ask_outside(things, language), text=self.phrase("outside", language))


def draw(world: World, arrangement: str) -> list[tuple[Image.Image, list]]:
    """Pictures of this arrangement, each with the things in it."""
    low, high, num = ARRANGEMENTS[arrangement]
    order = torch.randperm(len(world.sprites), generator=world.random)
    num = num or len(order)
    chosen = torch.randint(len(world.sprites), (num, 4), generator=world.random)
    if arrangement == "alone":
        chosen[:, 0] = order[:num]
    return list(tell(world.draw(low + torch.arange(num) % (high - low + 1), chosen)))


def tell(scenes: Scenes) -> Iterator[tuple[Image.Image, list]]:
    """Each picture, and the things in it."""
    for picture, things in zip(scenes.pictures, things_in(scenes), strict=True):
        yield Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()), things


def ask(asker: Asker, kind: str, things: list, language: str, number: int) -> Question:
    """A question of this kind; presence alternates between what is there and what is not."""
    if kind == "presence":
        return asker.ask_presence(things, language, present=number % 2 == 0)
    return asker.ask(things, kind, language)


Drawn = dict[str, list[tuple[Image.Image, list]]]  # by arrangement


def collect(drawn: Drawn, asker: Asker, plan: dict[str, tuple[str, int | None, float]], prefix: str = "") -> list[Item]:
    """The items of a plan; both languages are asked about the same pictures."""
    items = []
    for kind, (arrangement, num, _) in plan.items():
        for number, (picture, things) in enumerate(drawn[arrangement][:num]):
            if kind == "colour" and not things[0].colour:
                continue
            group = asker.concepts[things[0].concept].group if len(things) == 1 else ""
            for language in LANGUAGES:
                question = ask(asker, kind, things, language, number)
                items.append(Item(prefix + kind, picture, question, group=group))
    return items


def collect_follow_ups(drawn: Drawn, asker: Asker) -> list[Item]:
    items = []
    for figure, (first, second, arrangement) in FOLLOW_UPS.items():
        scenes = [(picture, things) for picture, things in drawn[arrangement] if can_ask(second, things[0])]
        for picture, things in scenes[:NUM_FOLLOW_UPS]:
            about = things[:1] if second == "side" else things  # "it" is the thing asked for before
            for language in LANGUAGES:
                questions = (ask(asker, kind, about, language, 0) for kind in (second, first))
                items.append(Item(figure, picture, *questions))
    return items


def can_ask(kind: str, thing: Thing) -> bool:
    needed = {"colour": thing.colour, "side": {"left", "right"} & set(thing.place.split())}
    return bool(needed.get(kind, True))


class Remembering(VisGLM):
    """Encodes every picture once, however often it is asked about, and a batch of new ones together."""

    known: dict[bytes, Tensor] = {}  # of all instances: they share their eyes

    def look(self, pictures: list[Image.Image]) -> None:
        new = {picture.tobytes(): picture for picture in pictures if picture.tobytes() not in self.known}
        if new:
            self.known |= zip(new, super().encode(list(new.values())), strict=True)

    def encode(self, images: Any) -> Tensor:
        return torch.stack([self.known[image.tobytes()] for image in images])


def answer(vlm: Remembering, items: list[Item], title: str, blank: bool = False) -> list[str]:
    """Greedy answers, in order. Questions of a kind go together: their answers are of like length."""
    by_kind = defaultdict(list)
    for place, item in enumerate(items):
        by_kind[item.question.kind, item.first is not None].append(place)
    texts = [""] * len(items)
    settings = {"batch_size": BATCH_SIZE, "progress": False}
    with tqdm(total=len(items), unit="answer", desc=title) as bar:
        for (kind, has_first), places in by_kind.items():
            for start in range(0, len(places), BATCH_SIZE):
                some = places[start : start + BATCH_SIZE]
                shown = [blank_of(items[p].picture) if blank else items[p].picture for p in some]
                vlm.look(shown)
                requests: list[Any] = [
                    (picture, items[p].question.text) for picture, p in zip(shown, some, strict=True)
                ]
                if has_first:
                    first = [(picture, items[p].first.text) for picture, p in zip(shown, some, strict=True)]
                    replies = vlm.batch(first, max_new_tokens=24, **settings)
                    requests = [(None, items[p].question.text, r.history) for p, r in zip(some, replies, strict=True)]
                replies = vlm.batch(requests, max_new_tokens=NEW_TOKENS.get(kind, 24), **settings)
                for place, reply in zip(some, replies, strict=True):
                    texts[place] = reply.text
                bar.update(len(some))
    return texts


def blank_of(picture: Image.Image) -> Image.Image:
    return Image.new("RGB", picture.size, "white")


def nearest(training: World, asker: Asker, items: list[Item]) -> list[str]:
    """Answers of the training drawing whose 16×16 pixels are closest, for items that show one object."""
    known, colours = thumbnails(training)
    pictures = torch.stack([torch.frombuffer(bytearray(i.picture.tobytes()), dtype=torch.uint8) for i in items])
    size = items[0].picture.width
    pixels = pictures.view(-1, size, size, 3).permute(0, 3, 1, 2).float() / 255
    closest = torch.cdist(F.adaptive_avg_pool2d(pixels, 16).flatten(1), known).argmin(1).tolist()
    texts = []
    for item, index in zip(items, closest, strict=True):
        things = things_of([int(training.concept[index])], [[0.5, 0.5]], [colours[index]])
        is_answerable = item.question.kind != "colour" or things[0].colour
        texts.append(asker.ask(things, item.question.kind, item.question.language).answer if is_answerable else "")
    return texts


def thumbnails(world: World) -> tuple[Tensor, list[int]]:
    """Every drawing of a world alone, in 16×16 pixels `[num, 768]`, and its colour."""
    small, colours = [], []
    for chosen in torch.arange(len(world.sprites)).split(256):
        scenes = world.draw(torch.ones_like(chosen), chosen[:, None].expand(-1, 4))
        small.append(F.adaptive_avg_pool2d(scenes.pictures, 16).flatten(1))
        colours += scenes.colour[:, 0].tolist()
    return torch.cat(small), colours


def figures(
    items: list[Item], texts: list[str], key=lambda item: item.figure
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of right answers by figure and language, with half the width of its 95 % interval (Wilson)."""
    hits = defaultdict(lambda: defaultdict(list))
    for item, text in zip(items, texts, strict=True):
        hits[key(item)][item.question.language].append(item.question.accepts(text))
    return {
        name: {
            language: {"num": len(right), "share": round(sum(right) / len(right), 4), "plus_minus": half_width(right)}
            for language, right in by_language.items()
        }
        for name, by_language in hits.items()
    }


def half_width(right: list[bool]) -> float:
    num, share = len(right), sum(right) / len(right)
    return round(1.96 / (1 + 1.96**2 / num) * math.sqrt(share * (1 - share) / num + 1.96**2 / (4 * num * num)), 4)


def answer_seconds(vlm: VisGLM, items: list[Item]) -> float:
    """Median time of a single answer to a new picture."""
    times = []
    for item in [item for item in items if item.figure == "name"][:20]:
        started = time.perf_counter()
        vlm.chat(item.picture, item.question.text, max_new_tokens=24)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['share']:.1f}"


def kept(packed: dict[str, Any] | None, plain: dict[str, Any] | None) -> str:
    """The share that packed weights keep of what the same questions score without, in percent, by language."""
    if packed is None or plain is None:
        return "–"
    pairs = ((packed[language]["share"], plain[language]["share"]) for language in LANGUAGES)
    return " / ".join(f"{100 * after / before:.0f}" if before else "–" for after, before in pairs)


def tables(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    answers = result["answers"]
    shares = ("reworded", "blank picture", "nearest picture")
    lines = [
        f"| question | n | wanted | en | zh | {' | '.join((*shares, *(f'{name} keeps' for name in SCHEMES)))} |",
        "|---|--:|--:|--:|--:|" + "--:|" * (len(shares) + len(SCHEMES)),
    ]
    targets = {kind: target for kind, (_, _, target) in PLAN.items()} | dict.fromkeys(FOLLOW_UPS, FOLLOW_UP_TARGET)
    for cache, plan in OTHER_PLANS.items():
        targets |= {f"{cache}: {kind}": target for kind, (_, _, target) in plan.items()}
    for name, by_language in answers["model"].items():
        wanted = f"{100 * targets[name]:.0f}" if name in targets else "–"
        cells = [name, str(by_language["en"]["num"]), wanted]
        cells += [f"{percent(figure)} ±{100 * figure['plus_minus']:.1f}" for figure in by_language.values()]
        for column in shares:
            figure = answers[column].get(name)
            cells.append("–" if figure is None else " / ".join(map(percent, figure.values())))
        cells += [kept(answers[scheme].get(name), answers["asked again"].get(name)) for scheme in SCHEMES]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Naming by group of the object (OpenMoji):", "", "| group | n | en | zh |", "|---|--:|--:|--:|"]
    for group, by_language in sorted(result["name_by_group"].items()):
        cells = " | ".join(percent(by_language[language]) for language in LANGUAGES)
        lines.append(f"| {group} | {by_language['en']['num']} | {cells} |")
    return "\n".join(lines)


def write_card(text: str, facts: str) -> None:
    """Put the tables between the markers of MODEL_CARD.md."""
    for name, new in (("figures", text), ("facts", facts)):
        write_between(HERE / "MODEL_CARD.md", name, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder written by render.py")
    parser.add_argument("output", type=Path, help="folder for predictions, figures and the grid of pictures")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="folder (default: the embedded model)")
    parser.add_argument("--font", default="NotoSansCJK-Regular.ttc", help="for the grid; must hold Chinese characters")
    parser.add_argument("--no-card", action="store_true", help="leave MODEL_CARD.md as it is")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    torch.manual_seed(SEED)

    vlm = Remembering.from_pretrained(arguments.model)
    size = vlm.model.config.vision_config.image_size
    concepts = load_concepts()
    asker = Asker(concepts, seed=SEED, first_phrasing=True)
    world, training, *others = (
        World(arguments.data / f"{name}.npz", image_size=size, seed=SEED, augment=False)
        for name in ("openmoji", "train", *OTHER_PLANS)
    )
    drawn = {name: draw(world, name) for name in ARRANGEMENTS}
    plain = collect(drawn, asker, PLAN)
    items = plain + collect_follow_ups(drawn, asker)
    for other, (name, plan) in zip(others, OTHER_PLANS.items(), strict=True):
        knows = Asker(load_unseen(), seed=SEED, first_phrasing=True) if name == "unseen" else asker
        items += collect({where: draw(other, where) for where, _, _ in plan.values()}, knows, plan, f"{name}: ")
    reworded = collect(
        drawn, Paraphraser(concepts, SEED), {kind: (where, NUM_REWORDED, 0) for kind, (where, _, _) in PLAN.items()}
    )
    again = [place for place in range(len(plain)) if place // 2 % MEASURED_AGAIN == 0]  # both languages of a picture
    asked_again = [plain[place] for place in again]
    alone = [item for item in items if item.question.kind in ("name", "group", "colour") and not item.first]

    texts = answer(vlm, items, "unseen styles")
    answers = {
        "model": figures(items, texts),
        "reworded": figures(reworded, answer(vlm, reworded, "reworded")),
        "blank picture": figures(asked_again, answer(vlm, asked_again, "blank picture", blank=True)),
        "nearest picture": figures(alone, nearest(training, asker, alone)),
        "asked again": figures(asked_again, [texts[place] for place in again]),
    }
    for scheme in SCHEMES:  # the text model is packed; the visual tokens stay the same
        packed = Remembering.from_pretrained(arguments.model, quantize=scheme)
        answers[scheme] = figures(asked_again, answer(packed, asked_again, scheme))

    weights = Path(arguments.model) / "model.safetensors"
    named = [(item, text) for item, text in zip(items, texts, strict=True) if item.figure == "name"]
    result = {
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "megabytes": round(weights.stat().st_size / 1e6, 1),
        "num_parameters": vlm.model.num_parameters(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
        "seconds_per_answer": round(answer_seconds(VisGLM(vlm.model, vlm.processor), items), 3),
        "answers": answers,
        "name_by_group": figures(*map(list, zip(*named, strict=True)), key=lambda item: item.group),
        "seconds": round(time.time() - started),
    }
    (arguments.output / "evaluation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with (arguments.output / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for item, text in zip(items, texts, strict=True):
            question = item.question
            row = {"figure": item.figure, "language": question.language, "question": question.text}
            row |= {"answer": text, "right": question.answer, "accepted": question.accepts(text)}
            print(json.dumps(row, ensure_ascii=False), file=file)
    shown = [(item, text) for item, text in zip(items, texts, strict=True) if item.figure.startswith("icons")]
    step = len(shown) // GRID_SIZE | 1  # an odd step takes both languages
    draw_grid(
        [(i.picture, i.question.text, text, i.question.accepts(text)) for i, text in shown[::step][:GRID_SIZE]],
        arguments.output / "answers.png",
        arguments.font,
    )
    text = tables(result)
    print(text)
    if not arguments.no_card:
        facts = (
            f"{result['num_parameters'] / 1e6:.1f} M parameters, {result['megabytes']} MB, "
            f"sha256 `{result['weights_sha256']}`; {result['seconds_per_answer']:.2f} s for an answer to a new picture "
            f"(median of 20, {torch.get_num_threads()} threads, in the same process as the rest)."
        )
        write_card(text, facts)


if __name__ == "__main__":
    main()
