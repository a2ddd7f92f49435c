"""What the training stages do alike."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from classifier import pixel_values
from concepts import GROUPS, Concept, load_all_concepts, load_photographed
from einops import rearrange
from questions import Asker, things_in
from talks import Guess, Talker
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from tower import NUM_GUESSES, NUM_QUERIES, VIT_SIZE, WHOLE_SIZE, tower_config
from world import COLOURS, MAX_TOLD, Scenes, SceneStream, World

from visglm import ChatGLMTokenizer, VisGLMForConditionalGeneration
from visglm.checkpoint.made import preset_config
from visglm.prompt import IGNORE_INDEX, Turn, detect_language, render
from visglm.text.chatglm import ChatGLMAttention
from visglm.vision import Recogniser, VisionEncoder

KEPT_EVERY = 200  # steps
STRIDE = 32  # of the recogniser's last map
PATCH_SIZE = 16  # of the ViT


def build_tokenizer(data: Path) -> ChatGLMTokenizer:
    return ChatGLMTokenizer.from_pretrained(data / "tokenizer")


def build_model(tokenizer: ChatGLMTokenizer) -> VisGLMForConditionalGeneration:
    """An untrained model of the preset, with the ids of this tokenizer."""
    config = preset_config("visglm-tiny", tokenizer)
    config.text_config.vocab_size = len(tokenizer.sp_model)
    config.vision_config = tower_config()
    config.num_query_tokens = NUM_QUERIES + config.vision_config.num_recogniser_tokens
    model = VisGLMForConditionalGeneration(config)
    # A word is read and written alike at first, so that repeating one is easy to learn.
    model.lm_head.weight.data.copy_(model.get_input_embeddings().weight)
    for layer in model.model.text.layers:
        relate_heads(layer.attention)
    return model.train()


@torch.no_grad()
def relate_heads(attention: ChatGLMAttention) -> None:
    """Start three quarters of the heads as what this world needs, in place of finding it by chance, which takes a text
    model this small tens of thousands of steps: a quarter asks among what was told for what a word means, a quarter
    copies words from words of like meaning, a quarter turns what was told into words. All of it goes on learning."""
    hidden_size = attention.query_key_value.in_features
    query, key, value = attention.query_key_value.weight.chunk(3)
    output = attention.dense.weight
    straight = nn.init.orthogonal_(torch.empty(hidden_size, hidden_size))
    ask, copy_words, translate, _ = torch.arange(hidden_size).chunk(4)
    query[ask] *= 1.3
    key[ask] = as_told(query[ask])
    query[copy_words] = key[copy_words]
    value[copy_words] = straight[copy_words]
    value[translate] = as_told(straight[translate])
    for heads in (copy_words, translate):
        output[:, heads] = 3 * straight[heads].T


def as_told(embeddings: Tensor) -> Tensor:
    """Words `[..., hidden_size]` as the visual tokens say them, each in a place of its own beside the word itself: what
    asks for the one must not find the other. Its own inverse."""
    return embeddings.roll(embeddings.shape[-1] // 2, -1)


class Teller(nn.Module):
    """Scenes to visual tokens `[batch, 12, hidden_size]`: the names of the four objects in English, then in Chinese;
    then what a photograph is taken for, the likeliest first, in English, then in Chinese.

    A token is the embedding of a name's words in the text model itself (see `as_told`), with the object's group, colour
    and place added. To name a thing is then to repeat a word, which a small model learns once for all names instead of
    name by name. The group is told apart from the name because it can be seen of things that have none here.

    Args:
        concepts: what may be told of.
        tokenizer: splits their names.
        embeddings: the text model's.
    """

    def __init__(self, concepts: list[Concept], tokenizer: ChatGLMTokenizer, embeddings: nn.Embedding):
        super().__init__()
        hidden_size = embeddings.embedding_dim
        names = [[words(tokenizer, concept.names(language)[0]) for concept in concepts] for language in ("en", "zh")]
        longest = max(len(ids) for of_language in names for ids in of_language)
        nothing = [[-1] * longest]
        padded = [nothing + [ids + [-1] * (longest - len(ids)) for ids in of_language] for of_language in names]
        self.register_buffer("names", torch.tensor(padded))  # [2, 1 + concepts, longest], -1 behind the last word
        self.register_buffer("groups", torch.tensor([list(GROUPS).index(concept.group) for concept in concepts]))
        self.embeddings = embeddings
        self.group = nn.Embedding(len(GROUPS), hidden_size)
        self.group.weight.data.mul_(0.5)
        self.colour = nn.Embedding(len(COLOURS) + 1, hidden_size)
        self.colour.weight.data.mul_(0.5)
        self.something = nn.Parameter(torch.randn(hidden_size))  # tells objects from words, in whatever looks at both
        self.place = nn.Sequential(nn.Linear(4, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.nothing = nn.Parameter(torch.randn(hidden_size))
        self.many = nn.Parameter(torch.randn(hidden_size))  # there are more things than are told
        self.no_photograph = nn.Parameter(torch.randn(hidden_size))
        self.guessed = nn.Parameter(torch.randn(hidden_size))  # tells guesses from objects
        self.sure = nn.Parameter(torch.randn(2, hidden_size))  # at probability 0, and at 1

    def name(self, concept: Tensor) -> Tensor:
        """What is told of a concept `[...]` by name, in English and in Chinese: `[2, ..., hidden_size]`."""
        ids = self.names[:, concept + 1]
        is_word = (ids >= 0).unsqueeze(-1)
        name = (self.embeddings(ids.clamp(min=0)) * is_word).sum(-2) / is_word.sum(-2).clamp(min=1)
        return 2 * as_told(F.layer_norm(name, name.shape[-1:]))

    def forward(self, scenes: Scenes) -> Tensor:
        told = self.name(scenes.concept) + self.group(self.groups[scenes.concept]) + self.something
        # Where it is, and on which side of the others: to compare places is hard for a text model this small.
        there = torch.cat([scenes.centre, scenes.sides()], -1)
        told = told + self.colour(scenes.colour + 1) + self.place(there)
        told = torch.where((scenes.concept >= 0).unsqueeze(-1), told, self.nothing)
        told = told + self.many * (scenes.count > MAX_TOLD).view(1, -1, 1, 1)
        told = rearrange(told, "language batch object hidden -> batch (language object) hidden")
        return torch.cat([told, self.no_photograph.expand(len(told), 2 * NUM_GUESSES, -1)], 1)

    def guess_name(self, concept: Tensor) -> Tensor:
        """What a guess of a concept `[...]` is told by, but for how sure it is: `[2, ..., hidden_size]`."""
        return self.name(concept) + self.group(self.groups[concept]) + self.guessed

    def guesses(self, concept: Tensor, probability: Tensor, colour: Tensor) -> Tensor:
        """The last visual tokens of photographs `[batch, 4, hidden_size]`.

        Args:
            concept, probability: `[batch, 2]`, the likeliest first. colour: `[batch]`, -1 where it is unclear.
        """
        unsure, sure = self.sure
        told = self.guess_name(concept) + torch.lerp(unsure, sure, probability.unsqueeze(-1))
        told = told + self.colour(colour + 1)[:, None]
        return rearrange(told, "language batch guess hidden -> batch (language guess) hidden")

    def photographs(self, concept: Tensor, probability: Tensor, colour: Tensor) -> Tensor:
        """All visual tokens of photographs of one thing `[batch, 12, hidden_size]`: as an object it has a group, a
        colour and a place, but no name, which is for the guesses to say."""
        something = self.group(self.groups[concept[:, 0]]) + self.something + self.colour(colour + 1)
        something = something + self.place(torch.tensor([0.5, 0.5, 0.0, 0.0]))
        objects = torch.stack([something, *[self.nothing.expand_as(something)] * (MAX_TOLD - 1)], 1)
        return torch.cat([objects, objects, self.guesses(concept, probability, colour)], 1)


def words(tokenizer: ChatGLMTokenizer, name: str) -> list[int]:
    """Ids of a name as they stand inside a sentence, without the space that every text starts with."""
    pieces = tokenizer.tokenize(name)
    if detect_language(name) == "zh":
        pieces = [piece for piece in (piece.removeprefix("▁") for piece in pieces) if piece]
    known = tokenizer.get_vocab()
    return [known[part] for piece in pieces for part in ([piece] if piece in known else piece)]


def load_text(model: VisGLMForConditionalGeneration, tokenizer: ChatGLMTokenizer, output: Path) -> Teller:
    """Give `model` what the third stage taught the text model, and return what it was told with."""
    model.load_state_dict(torch.load(output / "text.pt", weights_only=True), strict=False)
    # With a copy of the embeddings: what is to be told must not move while the text model learns on.
    teller = Teller(load_all_concepts(), tokenizer, copy.deepcopy(model.get_input_embeddings()))
    teller.load_state_dict(torch.load(output / "teller.pt", weights_only=True))
    return teller.requires_grad_(False)


class Pictures:
    """Endless batches of pictures, and how far visual tokens are from what should be told of them."""

    def __init__(
        self,
        data: Path,
        teller: Teller,
        batch_size: int,
        image_size: int,
        seed: int,
        deform: bool = False,
        num_workers: int = 1,
    ):
        self.teller = teller
        self.world = World(data / "train.npz", image_size=image_size, seed=seed)
        self.deform = deform
        stream = SceneStream(lambda: self.draw(batch_size), self.world.random, image_size // PATCH_SIZE)
        self.scenes = iter(stream.loader(num_workers))

    def draw(self, batch_size: int) -> Scenes:
        """Bent things and whole ones by turns: learning from bent ones alone costs what was known of small things."""
        self.world.deform = self.deform and bool(self.world.rand(1) < 0.5)
        return self.world.sample(batch_size, single_share=0.35)

    @cached_property
    def names(self) -> Tensor:
        return self.teller.name(torch.arange(len(self.teller.groups)))

    def next(self, vision: VisionEncoder) -> tuple[Scenes, Tensor]:
        """The scenes, and their features `[batch, 1 + cells, vit hidden size]`."""
        scenes = next(self.scenes).to(torch.get_default_device())
        with fast_products():
            features = vision.vit(pixel_values(scenes.pictures))
        return scenes, features.float()

    def losses(self, image_embeds: Tensor, scenes: Scenes) -> dict[str, Tensor]:
        return telling_losses(self.teller, self.names, image_embeds, scenes)


def telling_losses(teller: Teller, names: Tensor, image_embeds: Tensor, scenes: Scenes) -> dict[str, Tensor]:
    """How far the Q-Former's visual tokens `[batch, 8, hidden_size]` are from what should be told (0 to about 1,
    what is no better than their mean), and the cross entropy of names, groups, colours and of whether there are more
    than can be told: to tell those apart is learnt much faster from that.
    """
    scenes = scenes.in_reading_order()
    told = teller(scenes)[:, :NUM_QUERIES]
    telling = rearrange(image_embeds, "batch (language object) hidden -> language (batch object) hidden", language=2)
    # Scaled so that a name told perfectly is all but certain.
    logits = telling @ names.mT * 20 / names[0, 0].square().sum()
    concept = scenes.concept.flatten().repeat(2)  # in English, then in Chinese
    names = F.cross_entropy(logits.flatten(0, 1), concept, ignore_index=-1)
    telling = telling.flatten(0, 1)
    is_there = concept >= 0
    groups = tell_apart(telling[is_there], teller.group.weight, teller.groups[concept[is_there]])
    colour = scenes.colour.flatten().repeat(2)
    is_clear = colour >= 0  # of the others nobody is asked for a colour
    # Half the drawings are black: counted alike, the others are soon taken for it, too.
    rare = 1 / colour[is_clear].bincount(minlength=len(COLOURS)).clamp(min=1)
    colours = tell_apart(telling[is_clear], teller.colour.weight[1:], colour[is_clear], rare)
    distance = F.mse_loss(image_embeds, told) / told.var()
    losses = {"told": distance, "names": 0.5 * names, "groups": 0.3 * groups, "colours": colours}
    return losses | {"many": 0.5 * many_loss(teller, image_embeds, scenes.count)}


def many_loss(teller: Teller, image_embeds: Tensor, count: Tensor) -> Tensor:
    """Cross entropy of whether there are more things than are told, by how much of `Teller.many` the visual tokens
    `[batch, 8, hidden_size]` hold. Five and six are seldom, and from the distance alone next to none was learnt."""
    share = (image_embeds @ teller.many).mean(1) / teller.many.square().sum()
    return F.binary_cross_entropy_with_logits(10 * (share - 0.5), (count > MAX_TOLD).float())


def write_words(recogniser: Recogniser, teller: Teller) -> None:
    """Let the recogniser tell its guesses in the words that the text model was told photographs in."""
    index = {concept.english[0]: number for number, concept in enumerate(load_all_concepts())}
    rows = torch.tensor([index[concept.english[0]] for concept, _ in load_photographed()])
    with torch.no_grad():
        recogniser.names.weight.copy_(
            rearrange(teller.guess_name(rows), "language row hidden -> row (language hidden)")
        )
        recogniser.sure.copy_(teller.sure)
        recogniser.nothing.copy_(teller.no_photograph)


class Recognised(NamedTuple):
    """What the recogniser makes of photographs: its cells for the Q-Former, its visual tokens, its impression of them,
    and the probability of every name."""

    cells: Tensor
    guesses: Tensor
    impression: Tensor
    probability: Tensor


def recognise(recogniser: Recogniser, pixels: Tensor) -> Recognised:
    """As `Recogniser.forward`, but its network, which stays as it is, takes no memory for a way back."""
    return make_of(recogniser, *network_features(recogniser, pixels))


@torch.no_grad()
def network_features(recogniser: Recogniser, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The last map of the recogniser's network `[num, 1280, rows, columns]`, and that pooled `[num, 1280]`."""
    with fast_products():
        features = recogniser.network.forward_features(pixels)
        pooled = recogniser.network.forward_head(features, pre_logits=True)
    return features.float(), pooled.float()


def make_of(recogniser: Recogniser, features: Tensor, pooled: Tensor) -> Recognised:
    """What follows from the features of its network."""
    impression, probability = recogniser.impression(pooled), recogniser.probabilities(pooled)
    gate = recogniser.gate(pooled).sigmoid()
    cells = recogniser.cells(rearrange(features, "image features row column -> image (row column) features"))
    return Recognised(cells * gate[..., None], recogniser.tell(probability, impression, gate), impression, probability)


def without_photograph(features: Tensor, image_size: int = WHOLE_SIZE) -> Tensor:
    """The ViT's features of drawings as the Q-Former gets them when the recogniser's gate is shut."""
    return F.pad(features, (0, 0, 0, (image_size // STRIDE) ** 2))


def tell_apart(telling: Tensor, words: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy of which of `words [num, hidden_size]`, of these weights, is in each of
    `telling [objects, hidden_size]`."""
    return F.cross_entropy(telling @ words.mT * 10 / words.square().sum(-1).mean(), labels, weight)


class Rows:
    """Rendered rows of a batch, and the scene each one is about."""

    def __init__(self, tokenizer: ChatGLMTokenizer, num_query_tokens: int):
        self.options = {"tokenizer": tokenizer, "style": "visualglm", "num_query_tokens": num_query_tokens}
        self.pad = tokenizer.pad_token_id
        self.rendered: list = []
        self.scenes: list[Sequence[int]] = []

    def add(self, turns: Sequence[tuple[str, str, int]], language: str, *scenes: int) -> None:
        """A conversation about these scenes, of which the last answer is learnt. A turn is a question, its answer, and
        how many of the scenes come with it."""
        told = [Turn(question, answer, num_images=number) for question, answer, number in turns]
        self.rendered.append(render(told, language=language, **self.options))
        self.scenes.append(scenes)

    def loss(self, model: VisGLMForConditionalGeneration, image_embeds: Tensor, num_groups: int = 2) -> Tensor:
        """Mean loss of the answer tokens; `image_embeds [num_scenes, num_query_tokens, hidden_size]`.

        Rows of like length go together, which halves the padding.
        """
        order = sorted(range(len(self.rendered)), key=lambda index: len(self.rendered[index].input_ids))
        num_answer_tokens = [sum(label != IGNORE_INDEX for label in row.labels) for row in self.rendered]
        total = torch.tensor(0.0)
        for group in split(order, num_groups):
            count = sum(num_answer_tokens[index] for index in group)
            total = total + self.group_loss(model, image_embeds, group) * count
        return total / sum(num_answer_tokens)

    def group_loss(self, model: VisGLMForConditionalGeneration, image_embeds: Tensor, group: list[int]) -> Tensor:
        """Padded on the left, so that every answer is among the last tokens and only those get logits."""
        rows = [self.rendered[index] for index in group]
        scenes = [scene for index in group for scene in self.scenes[index]]
        length = max(len(row.input_ids) for row in rows)
        kept = 1 + max(sum(label != IGNORE_INDEX for label in row.labels) for row in rows)

        def padded(values: list[list[int]], padding: int) -> Tensor:
            return torch.tensor([[padding] * (length - len(row)) + row for row in values])

        with fast_products():
            return model(
                input_ids=padded([row.input_ids for row in rows], self.pad),
                attention_mask=padded([[1] * len(row.input_ids) for row in rows], 0),
                labels=padded([row.labels for row in rows], IGNORE_INDEX)[:, -kept:],
                image_embeds=image_embeds[scenes] if scenes else None,
                use_cache=False,
                logits_to_keep=kept,
            ).loss


def split(items: list[int], num_groups: int) -> list[list[int]]:
    """Neighbouring items in at most `num_groups` groups of about the same size."""
    size = -(-len(items) // num_groups)
    return [items[start : start + size] for start in range(0, len(items), size)]


def add_questions(
    rows: Rows,
    scenes: Scenes,
    asker: Asker,
    num_questions: int,
    num_without_picture: int,
) -> None:
    """Questions about each scene, a third of them after an earlier question, and some without a picture."""
    for index, things in enumerate(things_in(scenes)):
        for _ in range(num_questions):
            turns = asker.converse(things) if asker.random.random() < 0.35 else [asker.ask(things)]
            told = [(turn.text, turn.answer, int(number == 0)) for number, turn in enumerate(turns)]
            rows.add(told, turns[-1].language, index)
    for _ in range(num_without_picture):
        question = asker.ask_without_picture()
        rows.add([(question.text, question.answer, 0)], question.language)


def add_talks(rows: Rows, scenes: Scenes, talker: Talker, number: int) -> None:
    """So many conversations about scenes: of names that nobody has, in two languages, about two pictures."""
    things = things_in(scenes)
    for index in range(number):
        first, second = index % len(things), (index + 1) % len(things)
        kind = talker.random.choice(("nothing", "switched", "two", "two"))
        if kind == "two":
            turns, language = talker.two_pictures(things[first], things[second])
        elif kind == "switched":
            turns, language = talker.switched(things[first])
        else:
            turns, language = talker.about_nothing(things[first])
        rows.add(turns, language, *(first, second)[: sum(number for _, _, number in turns)])


def add_echoes(rows: Rows, talker: Talker, number: int) -> None:
    """So many names that nobody has, given and asked for again without any picture: few words, in which all of the
    vocabulary comes round."""
    for _ in range(number):
        language = talker.language()
        turns = talker.called(talker.made_up(language), language)
        rows.add([(question, answer, 0) for question, answer, _ in turns], language)


def make_up_guesses(num: int, talker: Talker, num_concepts: int) -> tuple[list[Guess], tuple[Tensor, Tensor, Tensor]]:
    """Photographs of one thing that nobody took, and what `Teller.photographs` is given of them."""
    draw = talker.random
    guesses = []
    for _ in range(num):
        first, second = draw.sample(range(num_concepts), 2)
        if draw.random() < 0.5:  # things that are taken for each other are mostly of one group
            second = draw.choice([other for other in talker.asker.by_group[group_of(talker, first)] if other != first])
        sure = draw.uniform(0.12, 1.0)
        colour = draw.randrange(-1, len(COLOURS))
        also = draw.uniform(0, min(sure, 1 - sure))
        guesses.append(Guess(first, second, sure, also, COLOURS[colour] if colour >= 0 else ""))
    concept = torch.tensor([[guess.first, guess.second] for guess in guesses])
    probability = torch.tensor([[guess.sure, guess.also] for guess in guesses])
    colour = torch.tensor([COLOURS.index(guess.colour) if guess.colour else -1 for guess in guesses])
    return guesses, (concept, probability, colour)


def group_of(talker: Talker, concept: int) -> str:
    return talker.asker.concepts[concept].group


@contextmanager
def fast_products() -> Iterator[None]:
    """bfloat16 products where the processor has instructions for them, float32 where they would be emulated; and
    attention step by step: through as few tokens as there are here, the fused kernel's way back takes far longer."""
    kind = torch.get_default_device().type
    has_bfloat16 = kind != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    with torch.autocast(kind, torch.bfloat16, enabled=has_bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def parameter_groups(module: nn.Module, weight_decay: float = 0.05, **options: float) -> list[dict]:
    """Trainable parameters for an optimizer: matrices decay, biases and norms do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay, **options},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, **options},
    ]


def bridge_groups(vision: VisionEncoder, rate: float) -> list[dict]:
    """What the bridge learns with, for an optimizer."""
    groups = parameter_groups(nn.ModuleList([vision.qformer, vision.projection]), lr=rate)
    return [*groups, {"params": [vision.query_tokens], "weight_decay": 0.0, "lr": rate}]


def arguments_parser(description: str, steps: int, image_size: int | None = None) -> argparse.ArgumentParser:
    """The arguments all stages take, with their defaults; `image_size` those that see pictures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder written by render.py and train_tokenizer.py")
    parser.add_argument("output", type=Path, help="folder for weights and log")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    if image_size is not None:
        parser.add_argument("--image-size", type=int, default=image_size, help="side of the pictures, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def scenes_parser(description: str, steps: int, image_size: int | None = None) -> argparse.ArgumentParser:
    """The arguments of stages that draw scenes and take photographs beside what is trained."""
    parser = arguments_parser(description, steps, image_size)
    parser.add_argument("folder", type=Path, help="folder of photographs, with photos.tsv")
    parser.add_argument("--device", default="cpu", help="what is trained on; pictures are drawn by the CPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--minutes", type=float, help="end after so many, at most STEPS")
    return parser


def rounds_parser(description: str, steps: int) -> argparse.ArgumentParser:
    """The arguments of the last two stages, which are gone through more than once."""
    parser = scenes_parser(description, steps, image_size=VIT_SIZE)
    parser.add_argument(
        "--round", type=int, default=1, help="after the first, it goes on from what OUTPUT holds, with bent things"
    )
    parser.add_argument("--kept", type=float, default=0.5, help="in later rounds: share of what is learnt that is kept")
    return parser


def log_of(stage: str, number: int) -> str:
    """The name of a stage's log in a round."""
    return f"{stage}.jsonl" if number == 1 else f"{stage}_{number}.jsonl"


def load_found(output: Path) -> VisGLMForConditionalGeneration:
    """The model that a later round finds: what the one before it left."""
    return VisGLMForConditionalGeneration.from_pretrained(output / "model", dtype=torch.float32)


@torch.no_grad()
def go_back(module: nn.Module, found: dict[str, Tensor], share: float) -> None:
    """Take a module this share of the way back to the weights that a later round found."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.lerp_(found[name].to(value.device), share)


def steps_done(log: Path) -> int:
    """How many steps of a stage were kept by a run that was cut off; its seeds go on from there."""
    kept = kept_beside(log)
    return torch.load(kept, weights_only=True)["step"] if kept.is_file() else 0


def kept_beside(log: Path) -> Path:
    return log.with_suffix(".kept.pt")


def train(
    optimizer: torch.optim.Optimizer,
    step_loss: Callable[[], dict[str, Tensor]],
    num_steps: int,
    log: Path,
    every: tuple[int, Callable[[], dict[str, float]]] | None = None,
    most_minutes: float | None = None,
) -> None:
    """Linear warm-up over 3 % of the steps, a cosine to zero, gradients clipped to norm 1.

    What is trained is kept beside the log every `KEPT_EVERY` steps; started again, a run that was cut off goes on.

    Args:
        optimizer: over what is trained.
        step_loss: draws a batch and gives its losses, which are added up.
        log: JSONL file; a line every 50 steps.
        every: after how many steps a function is called, whose figures go into the log.
        most_minutes: as many as are trained for where that is less than all steps take.
    """

    def factor(step: int) -> float:
        progress = step / num_steps
        if most_minutes is not None and step:
            progress = min(max(progress, (time.time() - started) / 60 / most_minutes), 1.0)
        return min(progress / 0.03, 1) * 0.5 * (1 + math.cos(math.pi * progress))

    torch.set_flush_denormal(True)
    log.parent.mkdir(parents=True, exist_ok=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    started = time.time()
    schedule = LambdaLR(optimizer, factor)
    kept = kept_beside(log)
    done, minutes = 0, 0.0
    if kept.is_file():
        found = torch.load(kept, weights_only=True)
        done, minutes = found["step"], found["minutes"]
        optimizer.load_state_dict(found["optimizer"])
        schedule.load_state_dict(found["schedule"])
        with torch.no_grad():
            for parameter, value in zip(parameters, found["parameters"], strict=True):
                parameter.copy_(value)
    # What was logged and not kept comes again.
    lines = log.read_text("utf-8").splitlines(keepends=True) if done and log.is_file() else []
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= done), "utf-8")
    started = time.time() - 60 * minutes
    for step in range(done + 1, num_steps + 1):
        losses = step_loss()
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        row = {"step": step, "minutes": (time.time() - started) / 60}
        is_last = step == num_steps or (most_minutes is not None and row["minutes"] >= most_minutes)
        is_due = every is not None and (step % every[0] == 0 or is_last)
        if is_due or step % 50 == 0:
            row |= {key: loss.item() for key, loss in losses.items()}
        if is_due:
            row |= every[1]()
        if is_due or step % 50 == 0:
            with log.open("a") as file:
                print(json.dumps(row), file=file)
        if step % KEPT_EVERY == 0:
            state = {"step": step, "minutes": row["minutes"], "parameters": [p.detach() for p in parameters]}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)  # whole, or as it was
        if is_last:
            break
    kept.unlink(missing_ok=True)
