"""What is remembered of pictures, by content, within bounds."""

from __future__ import annotations

import torch

from visglm.engine.pictures import Looker, content_hash


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Eyes:
    def __init__(self):
        self.sizes = []

    def __call__(self, pictures):
        self.sizes.append(len(pictures))
        return [picture.mean().expand(2, 8).contiguous() for picture in pictures]  # 64 bytes a picture


def look(looker, groups, eyes, source="a"):
    return looker.look(groups, [source] * len(groups), eyes, torch.device("cpu"))


def test_what_is_the_same_is_looked_at_once():
    looker, eyes, some = Looker(), Eyes(), pictures(3)
    first = look(looker, [some[:2], some[1:]], eyes)
    assert eyes.sizes == [3] and [len(group) for group in first] == [2, 2]
    again = look(looker, [some.clone()], eyes)
    assert eyes.sizes == [3]
    assert all(map(torch.equal, again[0][:2], first[0])) and all(map(torch.equal, again[0][1:], first[1]))
    look(looker, [some], eyes, source="b")  # other eyes
    assert eyes.sizes == [3, 3]


def test_what_was_not_asked_for_longest_goes_first():
    looker, eyes, some = Looker(num_bytes=128), Eyes(), pictures(3)
    look(looker, [some[:2]], eyes)
    look(looker, [some[:1]], eyes)
    look(looker, [some[2:]], eyes)  # the second goes
    look(looker, [some[:1], some[2:]], eyes)
    assert eyes.sizes == [2, 1]
    look(looker, [some[1:2]], eyes)
    assert eyes.sizes == [2, 1, 1]
    looker.num_bytes = 0
    look(looker, [some[1:2]], eyes)
    assert eyes.sizes == [2, 1, 1, 1]


def test_every_number_and_the_shape_count():
    some = pictures(1)[0]
    other = some.clone()
    other[2, 3, 3] += 1e-3
    assert (
        len({content_hash(some), content_hash(other), content_hash(some.view(3, 2, 8)), content_hash(some.half())}) == 4
    )


def test_what_is_handed_out_is_a_copy():
    looker, eyes, some = Looker(), Eyes(), pictures(2)
    [first] = look(looker, [some], eyes)
    first[0].zero_()
    assert look(looker, [some], eyes)[0][0].abs().sum() > 0
