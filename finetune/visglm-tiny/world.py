"""A small world drawn on the fly: one to four emoji on a background, with everything a question may ask about them.

All of it is batched torch on the CPU, about as cheap as reading pictures from a disk would be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

SPRITE_SIZE = 96  # pixels a side
MAX_OBJECTS = 4
AT_A_TIME = 16  # sprites: so few stay in the processor's cache, which makes drawing nearly twice as fast
BACKGROUND, AMBIGUOUS = -2, -1  # dense labels that are no concept
COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
# Where the objects of a picture may stand, as fractions of its side, and how large they are drawn.
PAIRS = (((0.27, 0.5), (0.73, 0.5)), ((0.5, 0.27), (0.5, 0.73)))
CORNERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
SINGLE_SCALE, SEVERAL_SCALE = (0.55, 1.0), (0.38, 0.46)


@dataclass
class Scenes:
    """What is in a batch of pictures.

    Args:
        count: `[batch]`, objects in each.
        concept: `[batch, 4]`, -1 where there is no object.
        centre: `[batch, 4, 2]`, x and y of each object, 0 to 1 from the top left.
        colour: `[batch, 4]`, index into `COLOURS`, -1 where no colour clearly dominates.
        pictures: `[batch, 3, size, size]`, RGB, 0 to 1; None where a scene is only told.
        coverage: `[batch, 4, size, size]`, opacity of each object where it was drawn; None likewise.
    """

    count: Tensor
    concept: Tensor
    centre: Tensor
    colour: Tensor
    pictures: Tensor | None = None
    coverage: Tensor | None = None

    def dense_labels(self, grid_size: int, *of_objects: Tensor) -> list[Tensor]:
        """For each of `of_objects [batch, 4]`, by cell `[batch, grid, grid]`: the label of what covers it,
        `BACKGROUND`, or `AMBIGUOUS`."""
        share = F.adaptive_avg_pool2d(self.coverage, grid_size)
        most, owner = share.max(dim=1)
        batch = torch.arange(len(owner))[:, None, None]
        covered = [torch.where(most > 0.4, labels[batch, owner], AMBIGUOUS) for labels in of_objects]
        return [torch.where(share.sum(1) < 0.05, BACKGROUND, labels) for labels in covered]

    def in_reading_order(self) -> Scenes:
        """The same scenes, told object by object from the top left to the bottom right."""
        row = (self.centre[..., 1] * 3).floor()
        place = torch.where(self.concept >= 0, row * 10 + self.centre[..., 0], torch.inf)
        order = place.argsort(dim=1)
        return Scenes(
            self.count,
            self.concept.gather(1, order),
            self.centre.gather(1, order.unsqueeze(-1).expand_as(self.centre)),
            self.colour.gather(1, order),
        )


class World:
    """Draws pictures of the sprites in a cache written by `render.py`.

    Args:
        cache: the `.npz` file. seed: of everything drawn. image_size: side of the pictures, in pixels.
        augment: restyle sprites and vary backgrounds; off for evaluation.
        deform: bend things, too, and take rectangles out of some.
    """

    def __init__(
        self, cache: Path | dict, image_size: int = 96, seed: int = 0, augment: bool = True, deform: bool = False
    ):
        data = cache if isinstance(cache, dict) else dict(np.load(cache))
        self.sprites = torch.cat([shrunken(part) for part in torch.from_numpy(data["pictures"]).split(1024)])
        self.concept = torch.from_numpy(data["concept"])
        # All concepts are met alike often, however many drawings there are of each.
        weight = torch.from_numpy(data["weight"])
        self.weight = weight / torch.zeros(int(self.concept.max()) + 1).index_add(0, self.concept, weight)[self.concept]
        self.image_size = image_size
        self.augment = augment
        self.deform = deform
        self.random = torch.Generator().manual_seed(seed)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random)

    def chance(self, probability: float, num: int) -> Tensor:
        """`[num, 1, 1, 1]`: 1 with this probability, else 0."""
        return (self.rand(num, 1, 1, 1) < probability).float()

    def choose(self, batch_size: int, single_share: float) -> tuple[Tensor, Tensor]:
        """How many objects `[batch]`, and which sprites `[batch, 4]`; `single_share` of the scenes hold just one."""
        count = torch.randint(2, MAX_OBJECTS + 1, (batch_size,), generator=self.random)
        count[self.rand(batch_size) < single_share] = 1
        chosen = torch.multinomial(self.weight, batch_size * MAX_OBJECTS, replacement=True, generator=self.random)
        return count, chosen.view(batch_size, MAX_OBJECTS)

    def sample(self, batch_size: int, single_share: float = 0.5) -> Scenes:
        """Draw pictures of random objects."""
        return self.draw(*self.choose(batch_size, single_share))

    def tell(self, batch_size: int, single_share: float = 0.5) -> Scenes:
        """Scenes like `sample`'s without pictures, their colours made up."""
        count, chosen = self.choose(batch_size, single_share)
        present = torch.arange(MAX_OBJECTS) < count[:, None]
        centre, _ = self.place(count)
        colour = torch.randint(-3, len(COLOURS), (batch_size, MAX_OBJECTS), generator=self.random).clamp(min=-1)
        absent = torch.tensor(-1)
        return Scenes(
            count, torch.where(present, self.concept[chosen], absent), centre, torch.where(present, colour, absent)
        )

    def draw(self, count: Tensor, chosen: Tensor) -> Scenes:
        """Draw `count[i]` of the sprites `chosen [batch, 4]` into picture i."""
        batch_size = len(count)
        present = torch.arange(MAX_OBJECTS) < count[:, None]
        centre, scale = self.place(count)
        colour = torch.full((batch_size, MAX_OBJECTS), -1)
        layers = torch.zeros(batch_size, MAX_OBJECTS, 4, self.image_size, self.image_size)
        owner, slot = present.nonzero(as_tuple=True)
        for where in zip(owner.split(AT_A_TIME), slot.split(AT_A_TIME), strict=True):
            sprites = self.sprites[chosen[where]].float() / 255
            if self.augment:
                sprites = self.restyle(sprites)
            colour[where] = main_colour(sprites)
            if self.deform:
                sprites = self.cut(sprites)
            layers[where] = self.transform(sprites, centre[where], scale[where])
        pictures = self.backgrounds(batch_size)
        for index in range(int(count.max())):
            pictures = layers[:, index, :3] + pictures * (1 - layers[:, index, 3:])
        concept = torch.where(present, self.concept[chosen], -1)
        return Scenes(count, concept, centre, colour, pictures.clamp(0, 1), layers[:, :, 3])

    def place(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Centres `[batch, 4, 2]` and scales `[batch, 4]`; several objects never overlap."""
        batch_size = len(count)
        corners = torch.tensor(CORNERS)
        order = self.rand(batch_size, MAX_OBJECTS).argsort(-1)
        centre = corners[order]
        pair = torch.tensor(PAIRS)[torch.randint(2, (batch_size,), generator=self.random)]
        swap = self.rand(batch_size) < 0.5
        pair[swap] = pair[swap].flip(1)
        centre[count == 2, :2] = pair[count == 2]
        centre = centre + (self.rand(batch_size, MAX_OBJECTS, 2) - 0.5) * 0.06
        low, high = SEVERAL_SCALE
        scale = low + (high - low) * self.rand(batch_size, MAX_OBJECTS)
        alone = count == 1
        low, high = SINGLE_SCALE if self.augment else (0.9, 1.0)
        single = low + (high - low) * self.rand(batch_size)
        scale[alone, 0] = single[alone]
        room = (1 - single)[:, None] / 2
        centre[alone, 0] = (0.5 + (self.rand(batch_size, 2) - 0.5) * 2 * room)[alone]
        return centre, scale

    def transform(self, sprites: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
        """Sprites `[num, 4, …]` turned, mirrored, bent, scaled and moved to their places on a canvas."""
        num = len(sprites)
        angle = (self.rand(num) - 0.5) * (0.7 if self.augment else 0.0)
        mirror = torch.where(self.rand(num) < (0.5 if self.augment else 0.0), -1.0, 1.0)
        stretch = 1 + (self.rand(num) - 0.5) * (0.3 if self.augment else 0.0)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        matrix = torch.stack([torch.stack([cos * mirror * stretch, sin * mirror], -1), torch.stack([-sin, cos], -1)], 1)
        offset = -(matrix @ (centre * 2 - 1).unsqueeze(-1))
        grid = F.affine_grid(
            torch.cat([matrix, offset], -1), [num, 4, self.image_size, self.image_size], align_corners=False
        )
        if self.deform:  # nobody draws a thing in quite the same proportions
            bends = (self.rand(num, 2, 4, 4) - 0.5) * 0.3 * self.rand(num, 1, 1, 1)
            bent = F.grid_sample(bends, grid, mode="bicubic", padding_mode="border", align_corners=False)
            grid = grid + bent.permute(0, 2, 3, 1)
        return F.grid_sample(sprites, grid, align_corners=False)

    def cut(self, sprites: Tensor) -> Tensor:
        """Sprites `[num, 4, …]`, some without a rectangle of theirs: no single part is all there is to a thing."""
        num, side = len(sprites), torch.linspace(-1, 1, sprites.shape[-1])
        across, down = (
            (side - (self.rand(num, 1) * 2 - 1)).abs() < 0.1 + 0.2 * self.rand(num, 1) for _ in range(2)
        )  # fmt: skip
        hole = (down[:, None, :, None] & across[:, None, None, :]).float()
        return sprites * (1 - hole * self.chance(0.3, num))

    def backgrounds(self, num: int) -> Tensor:
        """White, or (when augmenting) plain, graded or rough backgrounds `[num, 3, size, size]`."""
        size = self.image_size
        pictures = torch.ones(num, 3, size, size)
        if not self.augment:
            return pictures
        first, second = self.rand(num, 3, 1, 1), self.rand(num, 3, 1, 1)
        light = self.chance(0.6, num)
        first, second = (
            first * (1 - light) + (0.75 + first / 4) * light,
            second * (1 - light) + (0.75 + second / 4) * light,
        )
        ramp = torch.linspace(0, 1, size)
        across = torch.where(self.rand(num, 1, 1, 1) < 0.5, ramp.view(1, 1, 1, -1), ramp.view(1, 1, -1, 1))
        graded = self.chance(0.4, num)
        tinted = first + (second - first) * across * graded
        rough = F.interpolate(self.rand(num, 3, 10, 10), size=size, mode="bilinear") - 0.5
        tinted = tinted + rough * 0.5 * self.chance(0.25, num)
        plain = self.chance(0.45, num)
        return (pictures * plain + tinted * (1 - plain)).clamp(0, 1)

    def restyle(self, sprites: Tensor) -> Tensor:
        """Sprites in styles nobody drew: outlined, posterized, recoloured, greyed, emptied, blurred.

        Line art helps most: a style never seen differs in outlines and shading before anything else.
        """
        num = len(sprites)
        alpha = sprites[:, 3:]
        colour = sprites[:, :3] + (1 - alpha)  # over white

        blurred = blur(colour)
        colour = torch.lerp(colour, blurred, self.chance(0.3, num) * self.rand(num, 1, 1, 1))
        levels = 2 + (self.rand(num, 1, 1, 1) * 3).floor()
        posterized = (blur(blurred) * levels).round() / levels
        colour = torch.lerp(colour, posterized, self.chance(0.3, num))

        mixed = torch.einsum("nij,njhw->nihw", self.channel_mix(num), colour - 0.5) + 0.5
        colour = mixed + (self.rand(num, 3, 1, 1) - 0.5) * 0.3
        colour = (colour - 0.5) * (0.6 + 0.9 * self.rand(num, 1, 1, 1)) + 0.5
        grey = colour.mean(1, keepdim=True).expand_as(colour)
        colour = torch.lerp(colour, grey, self.chance(0.1, num)).clamp(0, 1)
        paled = colour + (1 - colour) * (0.5 + 0.5 * self.rand(num, 1, 1, 1))

        # Lines where the drawing itself changes colour, and around it.
        original = sprites[:, :3] + (1 - alpha)
        contrast = (grow(original) - shrink(original)).amax(1, keepdim=True)
        inner = ((contrast - 0.12 - 0.25 * self.rand(num, 1, 1, 1)) * 6).clamp(0, 1)
        grown, shrunk = grow(alpha), shrink(alpha)
        lines = torch.maximum(inner, grown - shrunk)
        thick = grow(lines)
        lines = torch.lerp(lines, thick, self.chance(0.4, num))
        outlined = self.chance(0.55, num)
        ink = lines * outlined * (0.6 + 0.4 * self.rand(num, 1, 1, 1))
        colour = torch.lerp(colour, paled, self.chance(0.3, num) * outlined) * (1 - ink)
        alpha = torch.lerp(alpha, grown, outlined)
        return torch.cat([colour * alpha, alpha], 1)

    def channel_mix(self, num: int) -> Tensor:
        """`[num, 3, 3]`: mostly the identity, for a fifth of the sprites a new palette."""
        strength = torch.where(self.rand(num, 1, 1) < 0.2, 1.0, 0.15)
        mix = self.rand(num, 3, 3)
        return torch.lerp(
            torch.eye(3).expand(num, 3, 3), mix / mix.sum(-1, keepdim=True), strength * self.rand(num, 1, 1)
        )


class SceneStream(IterableDataset):
    """Endless batches of a world's scenes. `loader` draws them in a process of its own, beside the training step."""

    def __init__(self, world: World, batch_size: int, single_share: float = 0.5):
        self.world = world
        self.batch_size = batch_size
        self.single_share = single_share

    def __iter__(self) -> Iterator[Scenes]:
        while True:
            yield self.world.sample(self.batch_size, self.single_share)

    def loader(self) -> DataLoader:
        """One worker, so that a seed always draws the same scenes."""
        return DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4)


# 3×3 filters of `[num, channels, height, width]` in one pass per axis: several times faster here than torch's pooling.


def neighbours(planes: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The planes and their shifts by one pixel either way along an axis, edges repeated."""
    size = planes.shape[axis]
    before = torch.cat([planes.narrow(axis, 0, 1), planes.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([planes.narrow(axis, 1, size - 1), planes.narrow(axis, size - 1, 1)], axis)
    return before, planes, after


def grow(planes: Tensor) -> Tensor:
    """The highest of each pixel and its neighbours."""
    for axis in (-1, -2):
        before, here, after = neighbours(planes, axis)
        planes = torch.maximum(torch.maximum(before, here), after)
    return planes


def shrink(planes: Tensor) -> Tensor:
    """The lowest of each pixel and its neighbours."""
    return -grow(-planes)


def blur(planes: Tensor) -> Tensor:
    """The mean of each pixel and its neighbours."""
    for axis in (-1, -2):
        before, here, after = neighbours(planes, axis)
        planes = (before + here + after) / 3
    return planes


def shrunken(pictures: Tensor) -> Tensor:
    """RGBA `[num, 4, …]` uint8 at the size of sprites, premultiplied, so that transparent edges do not bleed."""
    pictures = pictures.float() / 255
    pictures[:, :3] *= pictures[:, 3:]
    return F.adaptive_avg_pool2d(pictures, SPRITE_SIZE).mul(255).round().byte()


def basic_colour(colour: Tensor) -> Tensor:
    """The basic colour name `[...]`, as an index into `COLOURS`, of RGB values `[..., 3]` from 0 to 1."""
    highest, channel = colour.max(-1)
    lowest = colour.min(-1).values
    chroma = highest - lowest
    red, green, blue = colour.unbind(-1)
    safe = chroma.clamp(min=1e-6)
    sector = torch.stack([((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4], -1)
    hue = sector.gather(-1, channel.unsqueeze(-1)).squeeze(-1) * 60
    edges = torch.tensor([14.0, 40.0, 68.0, 165.0, 258.0, 295.0, 342.0])
    names = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "red")
    named = torch.tensor([COLOURS.index(name) for name in names])[torch.bucketize(hue, edges)]

    def where(condition: Tensor, name: str, otherwise: Tensor) -> Tensor:
        return torch.where(condition, COLOURS.index(name), otherwise)

    warm = (hue < 45) | (hue > 350)
    dark = highest < torch.where(named == COLOURS.index("red"), 0.62, 0.72)
    named = where(warm & dark, "brown", named)
    named = where(((hue > 295) | (hue < 14)) & (highest > 0.85) & (lowest > 0.45), "pink", named)
    pale = chroma < 0.13
    named = where(pale, "grey", named)
    # Far from what sets of drawings have as black (up to 0.26), as light grey (0.82 to 0.88) and as white (from 0.93).
    named = where(pale & (highest > 0.9), "white", named)
    return where(highest < 0.33, "black", named)


def main_colour(sprites: Tensor, share: float = 0.75) -> Tensor:
    """The colour that covers at least `share` of each premultiplied sprite `[num, 4, …]`, else -1.

    Three quarters: of what is half red and half white nobody can say that it is red.
    Dark lines around and inside of it do not count, unless there is little else: a swan drawn in ink is white.
    """
    small = F.avg_pool2d(sprites, 2)
    alpha, over_white = small[:, 3], small[:, :3] + (1 - small[:, 3:])
    opaque = alpha > 0.6
    lines = (shrink(grow(over_white)) - over_white).amax(1) > 0.25
    areas = opaque & ~lines
    only_lines = areas.sum((1, 2)) < 0.2 * opaque.sum((1, 2))
    counted = torch.where(only_lines[:, None, None], opaque, areas)
    colour = (small[:, :3] / small[:, 3:].clamp(min=1e-3)).permute(0, 2, 3, 1)
    most, winner = (F.one_hot(basic_colour(colour), len(COLOURS)) * counted.unsqueeze(-1)).sum((1, 2)).max(-1)
    return torch.where(most >= share * counted.sum((1, 2)).clamp(min=1), winner, -1)
