"""A small world drawn on the fly: one to six emoji on a background, with everything a question may ask about them.

All of it is batched torch on the CPU, about as cheap as reading pictures from a disk would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

SPRITE_SIZE = 96  # pixels a side
MAX_OBJECTS = 6  # in a picture
MAX_TOLD = 4  # of which so many have visual tokens; of more it is only told that they are more
AT_A_TIME = 16  # sprites: so few stay in the processor's cache, which makes drawing nearly twice as fast
APART = 0.13  # of the side: middles that are closer are neither left nor right of each other
BACKGROUND, AMBIGUOUS = -2, -1  # dense labels that are no concept
COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
# Where the objects of a picture may stand, as fractions of its side, and how large they are drawn.
PAIRS = (((0.27, 0.5), (0.73, 0.5)), ((0.5, 0.27), (0.5, 0.73)))
CORNERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
SINGLE_SCALE, SEVERAL_SCALE = (0.9, 1.0), (0.38, 0.46)
# While training: things up to the edges and in corners, near each other and far apart, and copies of one thing.
FREE_SCALE, SNAPPED, COPIES, MANY = (0.22, 1.08), 0.3, 0.25, 0.15
CELLS = {2: (2, 1), 3: (2, 2), 4: (2, 2), 5: (3, 2), 6: (3, 2)}  # columns and rows for so many things
FILLED = (0.55, 1.0)  # of a cell
SQUASHED = (1.0, 1.0, 9 / 16, 3 / 4)  # how much narrower a wide picture becomes when it is made square


@dataclass
class Scenes:
    """What is in a batch of pictures.

    Args:
        count: `[batch]`, objects in each.
        concept: `[batch, 6]`, -1 where there is no object.
        centre: `[batch, 6, 2]`, x and y of each object, 0 to 1 from the top left.
        colour: `[batch, 6]`, index into `COLOURS`, -1 where no colour clearly dominates.
        pictures: `[batch, 3, size, size]`, RGB, 0 to 1; None where a scene is only told.
        coverage: `[batch, 6, size, size]`, opacity of each object where it was drawn; None likewise.
    """

    count: Tensor
    concept: Tensor
    centre: Tensor
    colour: Tensor
    pictures: Tensor | None = None
    coverage: Tensor | None = None

    def to(self, device: torch.device) -> Scenes:
        return Scenes(
            *(value if value is None else value.to(device, non_blocking=True) for value in vars(self).values())
        )

    def dense_labels(self, grid_size: int, *of_objects: Tensor) -> list[Tensor]:
        """For each of `of_objects [batch, 6]`, by cell `[batch, grid, grid]`: the label of what covers it,
        `BACKGROUND`, or `AMBIGUOUS`."""
        share = F.adaptive_avg_pool2d(self.coverage, grid_size)
        most, owner = share.max(dim=1)
        batch = torch.arange(len(owner))[:, None, None]
        covered = [torch.where(most > 0.4, labels[batch, owner], AMBIGUOUS) for labels in of_objects]
        return [torch.where(share.sum(1) < 0.05, BACKGROUND, labels) for labels in covered]

    def sides(self) -> Tensor:
        """`[batch, 6, 2]`: whether each object is on the left (-1) or right (1) side of all of them, above or below; 0
        where that cannot be said. As `questions.things_of` has it in words."""
        is_there = (self.concept >= 0).unsqueeze(-1)
        low = self.centre.masked_fill(~is_there, torch.inf).amin(1, keepdim=True)
        high = self.centre.masked_fill(~is_there, -torch.inf).amax(1, keepdim=True)
        side = torch.where(self.centre < (low + high) / 2, -1.0, 1.0)
        return torch.where(is_there & (high - low > APART), side, 0.0)

    def in_reading_order(self) -> Scenes:
        """The same scenes, told object by object from the top left to the bottom right, as far as they are told."""
        row = (self.centre[..., 1] * 3).floor()
        place = torch.where(self.concept >= 0, row * 10 + self.centre[..., 0], torch.inf)
        order = place.argsort(dim=1)[:, :MAX_TOLD]
        return Scenes(
            self.count,
            self.concept.gather(1, order),
            self.centre.gather(1, order.unsqueeze(-1).expand(-1, -1, 2)),
            self.colour.gather(1, order),
        )


class World:
    """Draws pictures of the sprites in a cache written by `render.py`.

    Args:
        cache: the `.npz` file. seed: of everything drawn. image_size: side of the pictures, in pixels.
        augment: restyle sprites and vary backgrounds; off for evaluation.
        deform: bend things, too, and take rectangles out of some.

    Attributes:
        free: things stand anywhere and in any size, not evenly; by default where pictures are augmented.
    """

    def __init__(
        self, cache: Path | dict, image_size: int = 96, seed: int = 0, augment: bool = True, deform: bool = False
    ):
        data = cache if isinstance(cache, dict) else dict(np.load(cache))
        pictures = torch.from_numpy(data["pictures"])
        self.sprites = torch.cat([shrunken(part, close=augment) for part in pictures.split(1024)])
        self.concept = torch.from_numpy(data["concept"])
        # All concepts are met alike often, however many drawings there are of each.
        weight = torch.from_numpy(data["weight"])
        self.weight = weight / torch.zeros(int(self.concept.max()) + 1).index_add(0, self.concept, weight)[self.concept]
        self.image_size = image_size
        self.augment = augment
        self.free = augment
        self.deform = deform
        self.random = torch.Generator().manual_seed(seed)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random)

    def chance(self, probability: float, num: int) -> Tensor:
        """`[num, 1, 1, 1]`: 1 with this probability, else 0."""
        return (self.rand(num, 1, 1, 1) < probability).float()

    def choose(self, batch_size: int, single_share: float) -> tuple[Tensor, Tensor]:
        """How many objects `[batch]`, and which sprites `[batch, 6]`; `single_share` of the scenes hold just one."""
        count = torch.randint(2, MAX_TOLD + 1, (batch_size,), generator=self.random)
        many = torch.randint(MAX_TOLD + 1, MAX_OBJECTS + 1, (batch_size,), generator=self.random)
        count = torch.where(self.rand(batch_size) < MANY, many, count)
        count[self.rand(batch_size) < single_share] = 1
        chosen = torch.multinomial(self.weight, batch_size * MAX_OBJECTS, replacement=True, generator=self.random)
        chosen = chosen.view(batch_size, MAX_OBJECTS)
        copied = self.rand(batch_size, 1) < COPIES
        return count, torch.where(copied, chosen[:, :1], chosen)

    def sample(self, batch_size: int, single_share: float = 0.5) -> Scenes:
        """Draw pictures of random objects."""
        return self.draw(*self.choose(batch_size, single_share))

    def tell(self, batch_size: int, single_share: float = 0.5) -> Scenes:
        """Scenes like `sample`'s without pictures, their colours made up."""
        count, chosen = self.choose(batch_size, single_share)
        present = torch.arange(MAX_OBJECTS) < count[:, None]
        centre, _ = self.place_freely(count)
        colour = torch.randint(-3, len(COLOURS), (batch_size, MAX_OBJECTS), generator=self.random).clamp(min=-1)
        absent = torch.tensor(-1)
        return Scenes(
            count, torch.where(present, self.concept[chosen], absent), centre, torch.where(present, colour, absent)
        )

    def draw(self, count: Tensor, chosen: Tensor) -> Scenes:
        """Draw `count[i]` of the sprites `chosen [batch, 4 or 6]` into picture i."""
        batch_size = len(count)
        chosen = F.pad(chosen, (0, MAX_OBJECTS - chosen.shape[1]))
        present = torch.arange(MAX_OBJECTS) < count[:, None]
        centre, scale = self.place(count)
        colour = torch.full((batch_size, MAX_OBJECTS), -1)
        layers = torch.zeros(batch_size, MAX_OBJECTS, 4, self.image_size, self.image_size)
        squashed = self.squash(batch_size)
        owner, slot = present.nonzero(as_tuple=True)
        for where in zip(owner.split(AT_A_TIME), slot.split(AT_A_TIME), strict=True):
            sprites = self.sprites[chosen[where]].float() / 255
            if self.augment:
                sprites = self.restyle(sprites)
            colour[where] = main_colour(sprites)
            if self.deform:
                sprites = self.cut(sprites)
            layers[where] = self.transform(sprites, centre[where], scale[where], squashed[where[0]])
        pictures = self.backgrounds(batch_size)
        for index in range(int(count.max())):
            pictures = layers[:, index, :3] + pictures * (1 - layers[:, index, 3:])
        concept = torch.where(present, self.concept[chosen], -1)
        pictures = self.filed(pictures.clamp(0, 1)) if self.augment else pictures.clamp(0, 1)
        return Scenes(count, concept, centre, colour, pictures, layers[:, :, 3])

    def squash(self, num: int) -> Tensor:
        """How much narrower and lower `[num, 2]` the things of a wide or tall picture are in a square."""
        squashed = torch.ones(num, 2)
        if self.augment:
            ratio = torch.tensor(SQUASHED)[torch.randint(len(SQUASHED), (num,), generator=self.random)]
            squashed[torch.arange(num), torch.randint(2, (num,), generator=self.random)] = ratio
        return squashed

    def filed(self, pictures: Tensor) -> Tensor:
        """Pictures as they come back from files: a third of them was smaller before, some have few colours or noise."""
        side = int(self.image_size * (0.3 + 0.6 * self.rand(1)))
        small = F.interpolate(pictures, size=side, mode="bilinear", antialias=True)
        small = F.interpolate(small, size=self.image_size, mode="bilinear")
        pictures = torch.lerp(pictures, small, self.chance(0.35, len(pictures)))
        noise = (torch.rand(pictures.shape, generator=self.random) - 0.5) * 0.08 * self.chance(0.2, len(pictures))
        few = (pictures * 12).round() / 12
        return torch.lerp(pictures + noise, few, self.chance(0.1, len(pictures))).clamp(0, 1)

    def place(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Centres `[batch, 6, 2]` and scales `[batch, 6]`; several objects never overlap."""
        if self.free:
            return self.place_freely(count)
        centre, scale = self.place_evenly(count)
        many = (count > MAX_TOLD).nonzero().flatten()
        if len(many):
            centre[many], scale[many] = self.place_freely(count[many])
        return centre, scale

    def place_freely(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """As pictures come: a lone thing anywhere, from a fifth of the side to a little more than all of it; several in
        cells that they fill more or less, with what is left between them or around them."""
        batch_size = len(count)
        lowest, highest = FREE_SCALE
        scale = lowest + (highest - lowest) * self.rand(batch_size, MAX_OBJECTS)
        free = self.rand(batch_size, MAX_OBJECTS, 2)
        snapped = self.rand(batch_size, MAX_OBJECTS, 1) < SNAPPED  # to an edge or into a corner
        free = torch.where(snapped, free.round(), free)
        centre = 0.5 + (free - 0.5) * (1 - scale.unsqueeze(-1)).clamp(min=0)
        filled = FILLED[0] + (FILLED[1] - FILLED[0]) * self.rand(batch_size)
        upright, near = self.rand(batch_size) < 0.5, self.rand(batch_size) < 0.5
        for number, (columns, rows) in CELLS.items():
            of_number = (count == number).nonzero().flatten().tolist()
            for index in of_number:
                across, down = (rows, columns) if upright[index] and columns != rows else (columns, rows)
                cells = torch.cartesian_prod(torch.arange(down), torch.arange(across)).flip(-1)
                cells = cells[torch.randperm(len(cells), generator=self.random)[:number]]
                grid = torch.tensor([across, down])
                side = filled[index] / grid.max()
                spare = 1 / grid - side
                # Near: all cells are moved together; far: each thing has its place in its own cell.
                own = free[index, :number]
                at = (cells + 0.5) / grid + (own - 0.5) * spare
                if near[index]:
                    pitch = side * (1 + 0.08 * self.rand(1))
                    extent = pitch * grid
                    at = (cells + 0.5) * pitch + free[index, 0] * (1 - extent).clamp(min=0)
                centre[index, :number], scale[index, :number] = at, side
        return centre, scale

    def place_evenly(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Lone things in the middle, two side by side or one above the other, three and four in corners."""
        batch_size = len(count)
        corners = torch.tensor(CORNERS)
        order = self.rand(batch_size, MAX_TOLD).argsort(-1)
        centre = corners[order]
        pair = torch.tensor(PAIRS)[torch.randint(2, (batch_size,), generator=self.random)]
        swap = self.rand(batch_size) < 0.5
        pair[swap] = pair[swap].flip(1)
        centre[count == 2, :2] = pair[count == 2]
        centre = centre + (self.rand(batch_size, MAX_TOLD, 2) - 0.5) * 0.06
        low, high = SEVERAL_SCALE
        scale = low + (high - low) * self.rand(batch_size, MAX_TOLD)
        alone = count == 1
        low, high = SINGLE_SCALE
        single = low + (high - low) * self.rand(batch_size)
        scale[alone, 0] = single[alone]
        room = (1 - single)[:, None] / 2
        centre[alone, 0] = (0.5 + (self.rand(batch_size, 2) - 0.5) * 2 * room)[alone]
        further = MAX_OBJECTS - MAX_TOLD
        return F.pad(centre, (0, 0, 0, further)), F.pad(scale, (0, further))

    def transform(self, sprites: Tensor, centre: Tensor, scale: Tensor, squashed: Tensor) -> Tensor:
        """Sprites `[num, 4, …]` turned, mirrored, bent, scaled, squashed and moved to their places on a canvas."""
        num = len(sprites)
        angle = (self.rand(num) - 0.5) * (0.7 if self.augment else 0.0)
        mirror = torch.where(self.rand(num) < (0.5 if self.augment else 0.0), -1.0, 1.0)
        stretch = 1 + (self.rand(num) - 0.5) * (0.3 if self.augment else 0.0)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        matrix = torch.stack([torch.stack([cos * mirror * stretch, sin * mirror], -1), torch.stack([-sin, cos], -1)], 1)
        matrix = matrix / squashed.unsqueeze(1)
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
    """Endless batches of scenes. `loader` draws them in processes of their own, beside the training step.

    Args:
        draw: gives a batch. random: what it draws by.
        grid_size: what the objects cover is kept by cell of such a grid, which is all a ViT learns of it.
    """

    def __init__(self, draw: Callable[[], Scenes], random: torch.Generator, grid_size: int | None = None):
        self.draw, self.random, self.grid_size = draw, random, grid_size

    def __iter__(self) -> Iterator[Scenes]:
        self.random.manual_seed(self.random.initial_seed() + 7919 * get_worker_info().id)
        while True:
            scenes = self.draw()
            if self.grid_size:
                scenes = replace(scenes, coverage=F.adaptive_avg_pool2d(scenes.coverage, self.grid_size))
            yield scenes

    def loader(self, num_workers: int = 1) -> DataLoader:
        """A seed always draws the same scenes with so many workers. They draw on the CPU, wherever is trained."""
        return DataLoader(self, batch_size=None, num_workers=num_workers, prefetch_factor=4)


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


def shrunken(pictures: Tensor, close: bool = False) -> Tensor:
    """RGBA `[num, 4, …]` uint8 at the size of sprites, premultiplied, so that transparent edges do not bleed.

    Args:
        close: without the margins of the drawings, which no two sets have alike: the longer side fills the square.
    """
    pictures = pictures.float() / 255
    pictures[:, :3] *= pictures[:, 3:]
    if not close:
        return F.adaptive_avg_pool2d(pictures, SPRITE_SIZE).mul(255).round().byte()
    opaque = pictures[:, 3] > 0.1
    firsts, lasts = [], []
    for axis in (1, 2):  # columns, then rows
        filled = opaque.any(axis).float()
        firsts.append(filled.argmax(1))
        lasts.append(filled.shape[1] - filled.flip(1).argmax(1))
    first, last = torch.stack(firsts, 1), torch.stack(lasts, 1)
    side = pictures.shape[-1]
    middle, extent = (first + last) / side - 1, (last - first).amax(1).clamp(min=4) / side
    matrix = torch.diag_embed(extent[:, None].expand(-1, 2))
    grid = F.affine_grid(
        torch.cat([matrix, middle.unsqueeze(-1)], -1), [len(pictures), 4, SPRITE_SIZE, SPRITE_SIZE], align_corners=False
    )
    return F.grid_sample(pictures, grid, align_corners=False).mul(255).round().byte()


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
