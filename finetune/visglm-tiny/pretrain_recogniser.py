"""The stage of photographs: the network that ImageNet taught learns names it lacks, and what is no photograph.

    python pretrain_recogniser.py DATA PHOTOGRAPHS OUTPUT

The network itself and the rows of its head stay as their authors left them. What is added comes from features that are
computed once, in closed form: a row for every name that ImageNet has no class for (a linear discriminant), the gate
between photographs and drawings (a regression with a strong prior: a gate that is learnt to the end opens for groceries
and for little else), and a temperature under which the names of kinds it was not shown are as likely as it says.

Nothing held out (see `photographs.py`) is learnt from.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from classifier import pixel_values
from common import fast_products
from concepts import load_photographed
from photographs import Photograph, read_folder
from PIL import Image
from pretrain_stem import adapt_to_our_pictures, imagenet_weights
from talks import SURE
from torch import Tensor
from tower import WHOLE_SIZE, known_classes, tower_config
from tqdm import tqdm
from world import World

from visglm.vision import Recogniser

NUM_DRAWINGS, NUM_CUT_OUTS = 2400, 600  # for the gate
# Chosen on labels that were left out in turn: how much of its mean is added to the covariance's diagonal, how much
# sharper than the discriminant a row is, and how much likelier than all old classes, in nats, a name is beforehand.
SHRINKAGE, SHARPNESS, ADVANTAGE, NUM_FOLDS = 0.3, 0.05, 0.0, 3
PRIOR, SHUT_FOR, STEEP = 1.0, 0.95, 30.0  # of the gate: for this share of drawings it is to be shut
HIDDEN_SIZE = 256  # of the text model; what speaks to it is written later


@dataclass
class Features:
    """Pooled features `[num, 1280]`, the name of each as a row of `photo_names.tsv`, and what its source calls it."""

    pooled: Tensor
    name: Tensor
    labels: list[str]

    def of(self, chosen: Tensor) -> Features:
        labels = [label for label, is_chosen in zip(self.labels, chosen.tolist(), strict=True) if is_chosen]
        return Features(self.pooled[chosen], self.name[chosen], labels)


def build_recogniser() -> Recogniser:
    """The recogniser with ImageNet's weights; rows of the head for what ImageNet lacks are small and random."""
    weights = imagenet_weights()
    recogniser = Recogniser(tower_config(), HIDDEN_SIZE)
    classes = known_classes()
    kept = torch.tensor([number for number, _ in classes if number >= 0])
    head = {name: weights.pop(f"classifier.{name}")[kept] for name in ("weight", "bias")}
    with torch.no_grad():
        recogniser.network.load_state_dict(weights, strict=False)
        adapt_to_our_pictures(recogniser.network)
        for name, value in head.items():
            getattr(recogniser.network.classifier, name)[: len(kept)] = value
        # A name that ImageNet lacks begins as likely as the others.
        recogniser.network.classifier.weight[len(kept) :] *= 0.1
        recogniser.network.classifier.bias[len(kept) :] = head["bias"].mean()
        recogniser.name_of_class.copy_(torch.tensor([index for _, index in classes]))
    return recogniser.eval()


def num_old_classes() -> int:
    return sum(number >= 0 for number, _ in known_classes())


@torch.no_grad()
def pooled_features(recogniser: Recogniser, pictures: Sequence[Image.Image], title: str = "") -> Tensor:
    """`[num, 1280]` of RGB pictures, squashed to the square that the recogniser looks at."""
    side = WHOLE_SIZE
    found = []
    for start in tqdm(range(0, len(pictures), 16), desc=title):
        some = [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures[start : start + 16]]
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in some])).permute(0, 3, 1, 2).float() / 255
        with fast_products():
            features = recogniser.network.forward_features(pixel_values(pixels))
            found.append(recogniser.network.forward_head(features, pre_logits=True).float())
    return torch.cat(found)


def photograph_features(recogniser: Recogniser, photographs: Sequence[Photograph], title: str) -> Features:
    rows = {concept.english[0]: index for index, (concept, _) in enumerate(load_photographed())}
    pooled = pooled_features(recogniser, [photograph.open() for photograph in photographs], title)
    names = torch.tensor([rows[photograph.english[0]] for photograph in photographs])
    return Features(pooled, names, [photograph.label for photograph in photographs])


def cut_out(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """The middle of a photograph on white, as shops show things: that is no drawing."""
    side = WHOLE_SIZE
    shown = np.asarray(picture.resize((side, side))).astype(float)
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2)
    width, height = random.uniform(0.45, 0.95, 2)
    shape = (np.abs(x / width) ** random.uniform(1.6, 6) + np.abs(y / height) ** random.uniform(1.6, 6)) < 1
    shown[~shape] = 255
    return Image.fromarray(shown.astype(np.uint8))


def drawing_features(recogniser: Recogniser, data: Path) -> Tensor:
    """Of scenes as they are drawn to train on, restyled and not."""
    pictures = []
    world = World(data / "train.npz", image_size=WHOLE_SIZE, seed=77, deform=False)
    for number in range(0, NUM_DRAWINGS, 48):
        world.free = world.augment = number % 96 == 0
        count, chosen = world.choose(48, single_share=0.6)
        scenes = world.draw(count.clamp(max=4), chosen)
        shown = (scenes.pictures.permute(0, 2, 3, 1) * 255).byte().numpy()
        pictures += [Image.fromarray(one) for one in shown]
    return pooled_features(recogniser, pictures, "drawings")


@torch.no_grad()
def add_names(recogniser: Recogniser, seen: Features) -> None:
    """Rows for what ImageNet lacks, by linear discriminant analysis; a name without any photograph stays unlikely."""
    head, known = recogniser.network.classifier, num_old_classes()
    mean = seen.pooled.mean(0)
    of_name = {int(name): seen.pooled[seen.name == name] for name in seen.name.unique()}
    within = torch.cat([pooled - pooled.mean(0) for pooled in of_name.values()])
    covariance = within.T @ within / len(within)
    covariance += SHRINKAGE * covariance.diag().mean() * torch.eye(len(covariance))
    precision = torch.linalg.inv(covariance)
    level = F.linear(seen.pooled, head.weight[:known], head.bias[:known]).logsumexp(-1).mean()
    for row in range(known, len(head.weight)):
        pooled = of_name.get(int(recogniser.name_of_class[row]))
        head.weight[row], head.bias[row] = 0, -20
        if pooled is not None:
            middle = pooled.mean(0)
            head.weight[row] = SHARPNESS * precision @ (middle - mean)
            head.bias[row] = level + ADVANTAGE - head.weight[row] @ (middle + mean) / 2


@torch.no_grad()
def add_gate(recogniser: Recogniser, photographs: Tensor, drawings: Tensor) -> None:
    """A ridge regression of the two on standardized features, both of equal weight."""
    pooled = torch.cat([photographs, drawings])
    side = torch.cat([torch.ones(len(photographs)), -torch.ones(len(drawings))])
    weight = torch.cat([torch.full((len(part),), 0.5 / len(part)) for part in (photographs, drawings)])
    mean, spread = weight @ pooled, pooled.std(0) + 1e-3
    standard = (pooled - mean) / spread
    weighted = standard.T * weight
    line = torch.linalg.solve(weighted @ standard + PRIOR * torch.eye(len(mean)), weighted @ side) / spread
    scores = (drawings - mean) @ line
    threshold = scores.quantile(SHUT_FOR)
    steep = STEEP / (((photographs - mean) @ line).median() - threshold)
    recogniser.gate.weight.copy_(steep * line)
    recogniser.gate.bias.copy_(-steep * (mean @ line + threshold))


@torch.no_grad()
def choose_temperature(recogniser: Recogniser, seen: Features) -> None:
    """The temperature under which the names of photographs of labels that were left out are the least surprising.

    Left out in turn are labels whose name has another label, or a class of ImageNet's.
    """
    old = set(recogniser.name_of_class[: num_old_classes()].tolist())
    labels_of: dict[int, set[str]] = {}
    for name, label in zip(seen.name.tolist(), seen.labels, strict=True):
        labels_of.setdefault(name, set()).add(label)
    fold = torch.tensor(
        [
            zlib.crc32(label.encode()) % NUM_FOLDS if name in old or len(labels_of[name]) > 1 else -1
            for name, label in zip(seen.name.tolist(), seen.labels, strict=True)
        ]
    )
    recogniser.temperature.fill_(1.0)
    found, names = [], []
    for number in range(NUM_FOLDS):
        add_names(recogniser, seen.of(fold != number))
        left_out = seen.of(fold == number)
        found.append(recogniser.probabilities(left_out.pooled).log())
        names.append(left_out.name)
    at_one, right = torch.cat(found), torch.cat(names)

    def surprise(temperature: float) -> float:
        return float(F.cross_entropy(at_one / temperature, right))

    recogniser.temperature.fill_(min((0.5 + 0.1 * step for step in range(40)), key=surprise))
    add_names(recogniser, seen)


@torch.no_grad()
def look_at(recogniser: Recogniser, photographs: Sequence[Photograph], title: str) -> dict[str, float]:
    """Of photographs, the shares whose likeliest name is right, that are named surely, of those the right ones, and for
    which the gate opens."""
    names = [set(concept.english) | set(concept.chinese) for concept, _ in load_photographed()]
    pooled = pooled_features(recogniser, [photograph.open() for photograph in photographs], title)
    probability, likeliest = recogniser.probabilities(pooled).max(-1)
    right = torch.tensor(
        [
            bool(names[index] & {*photograph.english, *photograph.chinese})
            for index, photograph in zip(likeliest.tolist(), photographs, strict=True)
        ]
    ).float()
    sure, opened = probability >= SURE, recogniser.gate(pooled).squeeze(-1) > 0
    shares = {"named": right, "sure": sure.float(), "right of those": right[sure], "gate": opened.float()}
    return {f"{title}: {name}": round(share.mean().item(), 3) for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("photographs", type=Path, help="folder with photos.tsv")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    recogniser = build_recogniser().requires_grad_(False)
    photographs = read_folder(arguments.photographs)
    taught = [photograph for photograph in photographs if not photograph.held_out]
    seen = photograph_features(recogniser, taught, "photographs")
    random = np.random.default_rng(arguments.seed)
    some = [taught[index] for index in random.choice(len(taught), NUM_CUT_OUTS)]
    cut = pooled_features(recogniser, [cut_out(one.open(), random) for one in some], "cut out")
    choose_temperature(recogniser, seen)
    add_gate(recogniser, torch.cat([seen.pooled, cut]), drawing_features(recogniser, arguments.data))
    row: dict[str, float] = {"temperature": float(recogniser.temperature)}
    for name in sorted({photograph.set for photograph in photographs}):
        held = [photograph for photograph in photographs if photograph.held_out and photograph.set == name]
        row |= look_at(recogniser, held, name) if held else {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "pretrain_recogniser.jsonl").write_text(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))
    torch.save(recogniser.state_dict(), arguments.output / "recogniser.pt")


if __name__ == "__main__":
    main()
