"""Fourth stage: the bridge learns to tell what the ViT sees, while the ViT goes on learning.

    python pretrain_bridge.py DATA OUTPUT PHOTOGRAPHS

`OUTPUT` holds what the earlier stages wrote. The visual tokens of a picture become what the text model was told in its
place, object by object in reading order. The ViT, which was not to mind places so far, keeps its heads and learns from
both: naming is what the whole model lacks most, and no later stage sees as many pictures in its time.

In a later round the same goes on from the model that the one before left, with things that are bent and cut; what is
left in the end is between before and behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from classifier import Classifier, pixel_values
from common import (
    Pictures,
    Recognised,
    Teller,
    bridge_groups,
    build_model,
    build_tokenizer,
    fast_products,
    go_back,
    load_found,
    load_text,
    log_of,
    parameter_groups,
    recognise,
    rounds_parser,
    steps_done,
    tell_apart,
    train,
    without_photograph,
    write_words,
)
from concepts import load_all_concepts, load_concepts
from pretrain_vision import look, make_trainable, vit_groups
from taught_photographs import TaughtPhotographs
from torch import Tensor, nn
from world import Scenes, SceneStream, World

from visglm.vision import VisionEncoder

PASSED_ON = 4  # how much louder than a query what it looks at is at first
# Where the first, second, ... thing of a picture is on average, in reading order; from -1 to 1.
PLACES_IN_ORDER = ((-0.37, -0.37), (0.46, -0.3), (-0.35, 0.46), (0.46, 0.46))
SHARP = 6  # how much closer cells count more


@dataclass
class Entries:
    """Part of a dictionary.

    Args:
        told_apart: `[entries, hidden_size]`, the weights by which features tell the entries apart.
        words: `[2, entries, hidden_size]`, what each is to be told by, in English and in Chinese.
    """

    told_apart: Tensor
    words: Tensor


@torch.no_grad()
def write_dictionary(vision: VisionEncoder, parts: list[Entries], features: Tensor) -> None:
    """Start the Q-Former as a dictionary: what the ViT's heads for cells tell apart, in the words of either language.

    Left to chance, hundreds of names are learnt only from tens of thousands of pictures. The cross-attention begins by
    passing on the mean of what it looks at; the first feed-forward network has a unit for every entry, which writes its
    English words for the first half of the queries, and the second one its Chinese words for the others. How many
    things there are is left to learn.

    Args:
        parts: such as names and colours; together no more entries than the feed-forward networks have units.
        features: `[num, 1 + cells, hidden_size]` of some pictures, of single things mostly.
    """
    hidden_size = features.shape[-1]
    identity, mean = torch.eye(hidden_size), features.mean((0, 1))
    # Which half a query belongs to, it says where features hardly differ; in the very first direction they cannot.
    gate = torch.linalg.eigh(torch.cov((features - mean).flatten(0, 1).T)).eigenvectors[:, 1]
    queries = F.normalize(torch.randn(vision.query_tokens.shape[1], hidden_size), dim=-1)
    sign = torch.ones(len(queries), 1)
    sign[len(queries) // 2 :] = -1
    vision.query_tokens.copy_(queries - queries @ gate[:, None] * gate + sign * gate)
    first, second = vision.qformer.encoder.layer
    for layer in (first, second):
        layer.attention.output.dense.weight *= 0.3
        layer.output_query.dense.weight.normal_(std=0.01)
    cross = first.crossattention
    cross.attention.value.weight.copy_(identity)
    cross.attention.value.bias.copy_(-mean)
    cross.output.dense.weight.copy_(PASSED_ON * identity)
    look_in_order(vision, features)
    given = inputs_of(first.intermediate_query, lambda: vision.bridge(features))
    shift = (given @ gate).unflatten(1, (2, -1)).mean((0, 2))
    start = 0
    for part in parts:
        told_apart = part.told_apart - part.told_apart.mean(0)
        units = slice(start, start + len(told_apart))
        start = units.stop
        logits = given @ told_apart.T
        middle, high = logits.quantile(0.5), logits.flatten(0, 1).max(-1).values.median()
        gain, threshold = 6 / (high - middle), middle + 0.6 * (high - middle)
        for layer, language, own, other in ((first, 0, 0, 1), (second, 1, 1, 0)):
            away = gate * 8 / (shift[own] - shift[other])
            layer.intermediate_query.dense.weight[units] = gain * told_apart + away
            layer.intermediate_query.dense.bias[units] = -gain * threshold - away @ gate * shift[own]
            layer.output_query.dense.weight[:, units] = part.words[language].T / 2
    vision.projection.weight.copy_(2 * identity)


@torch.no_grad()
def look_in_order(vision: VisionEncoder, features: Tensor) -> None:
    """Start every head of the cross-attention as one that looks at cells near where the query's thing would be."""
    attention = vision.qformer.encoder.layer[0].crossattention.attention
    there = F.pad(places(features.shape[1] - 1), (0, 0, 1, 0))
    there[0, 2] = 2.0  # the class token is nowhere near
    tokens = F.pad(features, (0, 1), value=1.0)
    to_place = torch.linalg.lstsq(tokens.flatten(0, 1), there.repeat(len(features), 1)).solution  # [hidden_size + 1, 3]
    given = inputs_of(attention.query, lambda: vision.bridge(features[:1]))
    towards = F.pad(2 * torch.tensor(PLACES_IN_ORDER), (0, 1), value=-1.0).repeat(2, 1)
    from_query = torch.linalg.lstsq(given[0], towards).solution  # [hidden_size, 3]
    head_dim = attention.attention_head_size
    for start in range(0, attention.all_head_size, head_dim):
        rows = slice(start, start + 3)
        for other in (attention.query, attention.key):
            other.weight[start : start + head_dim] *= 0.3
        attention.key.weight[rows], attention.key.bias[rows] = to_place[:-1].T, to_place[-1]
        attention.query.weight[rows], attention.query.bias[rows] = SHARP * head_dim**0.5 * from_query.T, 0


def places(num_cells: int) -> Tensor:
    """x and y of every cell `[num_cells, 3]`, from -1 to 1, and their squares' sum."""
    side = math.isqrt(num_cells)
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    there = torch.cartesian_prod(line, line).flip(-1)
    return torch.cat([there, there.square().sum(-1, keepdim=True)], 1)


@torch.no_grad()
def say_where(vision: VisionEncoder, pictures: Pictures) -> None:
    """Add to the position embeddings where a cell is, in directions that the ViT makes next to no use of.

    To name things it kept little of where they are, and without that no query finds the one it should tell.
    """
    vit = vision.vit
    tokens = inputs_of(vit.norm, lambda: [pictures.next(vision) for _ in range(4)])
    stream = tokens.flatten(0, 1)
    strength, direction = torch.linalg.eigh(torch.cov((stream - stream.mean(1, keepdim=True)).T))
    there = places(vit.pos_embed.shape[1] - 1)
    vit.pos_embed[0, 1:] += 2 * strength.mean().sqrt() * there / there.std(0) @ direction[:, 1:4].T


def inputs_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What `module` is given while something runs, one batch behind the other."""
    inputs: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    run()
    hook.remove()
    return torch.cat(inputs)


def main() -> None:
    parser = rounds_parser(__doc__, steps=6600)
    parser.add_argument("--batch-size", type=int, default=48, help="pictures per step")
    parser.add_argument("--photographs", type=int, default=8, help="photographs per step, half of them in collages")
    arguments = parser.parse_args()
    again, size, output = arguments.round > 1, arguments.image_size, arguments.output
    log = output / log_of("pretrain_bridge", arguments.round)
    seed = arguments.seed + steps_done(log)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    teller = load_text(model, tokenizer, output)
    classifier = Classifier(len(load_concepts()))
    learnt = output / ("bridged.pt" if again else "classifier.pt")
    classifier.load_state_dict(torch.load(learnt, weights_only=True))
    classifier.to(memory_format=torch.channels_last)
    vision = model.model.vision
    vision.vit = classifier.vit
    vision.recogniser.load_state_dict(torch.load(output / "recogniser.pt", weights_only=True))
    write_words(vision.recogniser, teller)
    taught = TaughtPhotographs(arguments.folder, load_all_concepts(), seed + 500)
    half = arguments.photographs // 2
    photographs = iter(SceneStream(lambda: taught.next(half, half), taught.random).loader(arguments.workers))
    unseen = World(arguments.data / "openmoji.npz", image_size=size, seed=1, augment=False)
    pictures = Pictures(arguments.data, teller, arguments.batch_size, size, seed + 300, again, arguments.workers)
    device = torch.device(arguments.device)
    torch.set_default_device(device)
    for module in (model, teller, classifier):
        module.to(device)
    if again:
        found = load_found(output).model.vision.state_dict()
        vision.load_state_dict(found)
    else:
        start_bridge(vision, classifier, pictures)
    make_trainable(vision.vit.patch_embed.backbone)

    def step_loss() -> dict[str, Tensor]:
        scenes, features = pictures.next(vision)
        drawn = vision.bridge(without_photograph(features))
        losses = classifier.losses(features, scenes) | pictures.losses(drawn, scenes)
        return losses | photograph_losses(vision, teller, next(photographs).to(device), size)

    rate = 0.5 * arguments.learning_rate
    groups = vit_groups(classifier, rate) + bridge_groups(vision, 0.6 * rate)
    recogniser = vision.recogniser.requires_grad_(False)
    learners = nn.ModuleList([recogniser.cells, recogniser.impression]).requires_grad_(True)
    groups += parameter_groups(learners, lr=rate)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    every = (400, lambda: look(vision, classifier.name, unseen, output / "vision.pt"))
    train(optimizer, step_loss, arguments.steps, log, every, arguments.minutes)
    torch.save(classifier.state_dict(), output / "bridged.pt")
    if again:
        go_back(vision, found, 1 - arguments.kept)  # before, it knew small things better, behind it large ones
        torch.save(vision.state_dict(), output / "vision.pt")


def photograph_losses(vision: VisionEncoder, teller: Teller, scenes: Scenes, size: int) -> dict[str, Tensor]:
    """How far visual tokens are from what should be told of photographs, a lone one of which is left unnamed; and the
    cross entropy of the colours in the recogniser's impression."""
    shown = scenes.pictures
    with fast_products():
        features = vision.vit(pixel_values(F.adaptive_avg_pool2d(shown, size)))
    seen = recognise(vision.recogniser, pixel_values(shown))
    telling = vision.bridge(torch.cat([features.float(), seen.cells], 1))
    return told_of_photographs(teller, scenes, telling, seen)


def told_of_photographs(teller: Teller, scenes: Scenes, telling: Tensor, seen: Recognised) -> dict[str, Tensor]:
    """The losses of visual tokens `telling` of photographs and of what the recogniser makes of them."""
    alone = scenes.count == 1
    told = teller(scenes.in_reading_order())
    first = scenes.concept[alone, :1].expand(-1, 2)
    told[alone] = teller.photographs(first, torch.ones(len(first), 2), scenes.colour[alone, 0])
    told = told[:, : telling.shape[1]]
    colours = tell_apart(seen.impression[alone], teller.colour.weight, scenes.colour[alone, 0] + 1)
    return {"photographs": F.mse_loss(telling, told) / told.var(), "seen colours": 0.3 * colours}


@torch.no_grad()
def start_bridge(vision: VisionEncoder, classifier: Classifier, pictures: Pictures) -> None:
    """Start the bridge as a dictionary of what the heads tell apart."""
    teller = pictures.teller
    say_where(vision, pictures)
    seen = [pictures.next(vision) for _ in range(14)]
    alone = torch.cat([features[scenes.count == 1] for scenes, features in seen])
    words = pictures.names + teller.group(teller.groups)
    names = Entries(classifier.cell_head.weight[: classifier.num_concepts], words[:, : classifier.num_concepts])
    colours = Entries(classifier.colour_head.weight, teller.colour.weight[1:].expand(2, -1, -1))
    write_dictionary(vision, [names, colours], alone)
    vision.projection.bias.copy_(teller.something)


if __name__ == "__main__":
    main()
