"""What transformers' own processors and networks make of a conversation is what comes of it here: ids, pixels,
positions, logits and answers, however many are given at a time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.families.made import CONTROL, Reference, Talk, load, picture, talks
from visglm import VisGLM
from visglm.errors import PromptError
from visglm.families import family_of, manner_of
from visglm.prompt import Turn
from visglm.request import Prompt, lay_out

NOISE = 2e-4  # of float32 logits of these sizes: two that are closer may change places with the number of rows


def compose(vlm: VisGLM, talk: Talk, thinks: bool = True) -> Prompt:
    """The prompt of a whole conversation."""
    pictures = [one for _, _, some in talk for one in some]
    shapes = tuple(vlm.processor.shapes(pictures))
    turns = [Turn(question, answer, len(some)) for question, answer, some in talk]
    turns[-1] = Turn(turns[-1].question, None, turns[-1].num_images)
    rendered = lay_out(
        turns, max_new_tokens=1, config=manner_of(vlm.model.config), tokenizer=vlm.tokenizer, shapes=shapes,
        thinks=thinks,
    )  # fmt: skip
    pixels = vlm.processor.pixels(pictures) if pictures else None
    return Prompt(tuple(turns), rendered, pixel_values=pixels, shapes=shapes)


def test_ids_and_pixels_are_those_of_their_own_processor(vlm, reference):
    for talk in talks(20, seed=1):
        own, theirs = compose(vlm, talk), reference.inputs(talk)
        assert own.rendered.input_ids == theirs["input_ids"][0].tolist()
        if own.pixel_values is None:
            assert "pixel_values" not in theirs
            continue
        assert torch.equal(torch.cat([one.flatten(0, 2) for one in own.pixel_values]), theirs["pixel_values"])
        assert [list(one.shape[:3]) for one in own.pixel_values] == theirs["image_grid_thw"].tolist()


def test_positions_and_logits_are_those_of_their_own_network(vlm, reference):
    for talk in talks(8, seed=2):
        own, theirs = compose(vlm, talk), reference.inputs(talk)
        family, ids = family_of(vlm.model.config), theirs["input_ids"]
        derived = family.prompt_inputs(vlm.model, ids, torch.ones_like(ids), own.shapes)
        positions, _ = reference.network.model.get_rope_index(**theirs)
        assert torch.equal(derived["position_ids"], positions)
        with torch.inference_mode():
            seen = family.look(vlm.model, own.pixel_values or []) if own.pixel_values else []
            logits = family.read(vlm.model, ids, torch.ones_like(ids), seen, None, derived)
            wanted = reference.network(**theirs, logits_to_keep=1).logits[:, -1]
        assert (logits - wanted).abs().max() < 1e-5


def answer_all(vlm: VisGLM, reference: Reference, conversations: list[Talk], slots: int, room: int = 12) -> int:
    """Every conversation turn by turn, all at a time; how many answers were compared with those of `generate`."""
    vlm.engine.slots, vlm.engine.shelf.num_bytes = slots, 2**28
    told: list[Talk] = [[] for _ in conversations]
    histories: list[object] = [None] * len(conversations)
    count = 0
    for turn in range(max(map(len, conversations))):
        going = [number for number, talk in enumerate(conversations) if turn < len(talk)]
        asked = [
            (conversations[number][turn][2], conversations[number][turn][0], histories[number]) for number in going
        ]
        replies = vlm.batch(asked, batch_size=max(slots, 2), progress=False, max_new_tokens=room)
        for number, reply in zip(going, replies, strict=True):
            question, _, pictures = conversations[number][turn]
            told[number].append((question, "", pictures))
            prompt, ids = reference.answer(told[number], room)
            assert reply.usage.prompt_tokens == len(prompt)
            assert list(reply.ids) == ids or is_tie(reference, told[number], room, list(reply.ids), ids)
            told[number][-1] = (question, reply.text, pictures)
            histories[number] = reply.history
            count += 1
    return count


def is_tie(reference: Reference, talk: Talk, room: int, found: list[int], wanted: list[int]) -> bool:
    """Whether two answers part where two tokens were as good as equally likely."""
    place = next(n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
    inputs = reference.inputs(talk)
    logits = reference.network.generate(
        **inputs, max_new_tokens=room, do_sample=False, output_logits=True, return_dict_in_generate=True,
        suppress_tokens=[reference.network.config.image_token_id],
    ).logits[place][0]  # fmt: skip
    gap = float(logits[wanted[place]] - logits[found[place]])
    print(f"token {place}: {wanted[place]} alone, {found[place]} in company, logits {gap:.1e} apart")
    return abs(gap) < NOISE


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_answers_are_those_of_generate(vlm, reference, slots):
    assert answer_all(vlm, reference, talks(6, seed=slots), slots) >= 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_two_hundred_conversations_are_answered_as_by_generate(vlm, reference, slots, family):
    count = answer_all(vlm, reference, talks(200, seed=100), slots, room=8)
    print(f"{family}, {slots} slots: {count} answers")
    assert count >= 200


def test_pictures_that_are_looked_at_in_several_goes_are_the_same(vlm, monkeypatch):
    family, shown = family_of(vlm.model.config), vlm.processor.pixels([picture_of(seed) for seed in (11, 12, 13, 14)])
    with torch.inference_mode():
        wanted = family.look(vlm.model, shown)
    monkeypatch.setattr("visglm.families.glm4v.PATCHES_AT_ONCE", 60)
    looked = []
    hook = vlm.model.model.visual.register_forward_hook(lambda *args: looked.append(1))
    try:
        with torch.inference_mode():
            found = family.look(vlm.model, shown)
    finally:
        hook.remove()
    assert len(looked) > 1 and len(found) == len(wanted) == 4
    assert all(torch.allclose(own, other, atol=1e-5) for own, other in zip(found, wanted, strict=True))


def test_answers_that_lie_in_the_past_stand_as_in_their_template(vlm, reference):
    past, question = ("What?", " \n a red cat \n\n"), "Where?"
    ids = reference.inputs([(*past, []), (question, "", [])])["input_ids"]
    assert vlm.chat(None, question, [past], max_new_tokens=1).usage.prompt_tokens == ids.shape[1]
    assert compose(vlm, [(*past, []), (question, "", [])]).rendered.input_ids == ids[0].tolist()


def test_slots_and_pictures_that_do_not_match_are_told(vlm):
    slot = vlm.model.config.image_token_id
    ids = torch.tensor([[5, slot, slot, 6]])
    family, derived = family_of(vlm.model.config), {"position_ids": torch.arange(4).expand(3, 1, 4)}
    for seen in ([], [torch.zeros(3, 64)]):
        with pytest.raises(PromptError, match="has 2 image slots, and .* visual tokens"):
            family.read(vlm.model, ids, torch.ones_like(ids), seen, None, derived)


def test_what_a_user_types_becomes_no_control_token(vlm):
    typed = "".join(CONTROL) + " ".join(CONTROL) + "<|image|>" * 3 + "<think>描述</think>"
    tokenizer, control = vlm.tokenizer, set(vlm.tokenizer.added_tokens_decoder)
    talk: Talk = [("x", "y", [picture_of(3)]), ("z", "", [])]
    plain = compose(vlm, talk).rendered.input_ids
    ids = compose(vlm, [(typed, typed, [picture_of(3)]), (typed, "", [])]).rendered.input_ids
    assert [index for index in ids if index in control] == [index for index in plain if index in control]
    assert typed in tokenizer.decode([index for index in ids if index not in control])


def picture_of(seed: int):
    return picture(random.Random(seed))


def test_what_was_read_is_not_read_again(folder):
    """Of a conversation that goes on, the text model is given what is new, and no picture is looked at twice."""
    vlm = load(folder)  # which has read nothing: what another test asked of a shared model is on its shelf
    vlm.engine.shelf.num_bytes = 2**28
    lengths, looked = [], []
    text = family_of(vlm.model.config).text(vlm.model)
    hooks = [
        text.register_forward_pre_hook(lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]),
                                       with_kwargs=True),
        vlm.model.model.visual.register_forward_hook(lambda *args: looked.append(1)),
    ]  # fmt: skip
    try:
        first = vlm.chat([picture_of(1), picture_of(2)], "What is this?", max_new_tokens=4)
        before = first.usage.prompt_tokens
        assert lengths[0] == before and len(looked) == 1
        lengths.clear()
        second = vlm.chat(picture_of(4), "And that?", first.history, max_new_tokens=4)
        assert len(looked) == 2 and lengths[0] <= second.usage.prompt_tokens - before + 2
        alone = vlm.chat(picture_of(4), "And that?", first.history, max_new_tokens=4)
        assert alone.ids == second.ids
    finally:
        for hook in hooks:
            hook.remove()


def test_a_history_says_where_its_pictures_stand(vlm):
    history = vlm.chat(picture_of(1), "What is this?", max_new_tokens=2).history
    assert [len(one) for one in history.image_embeds] == [one.num_tokens for one in history.shapes]
    with pytest.raises(PromptError, match="rows and columns"):
        vlm.chat(None, "Where?", replace(history, shapes=()))


def test_turns_from_elsewhere_are_gone_on_with(vlm):
    """As the page does where another model was picked: the pictures are looked at, and nothing else is asked."""
    shown = [picture_of(1), picture_of(2)]
    first = vlm.chat(shown, "What is this?", max_new_tokens=3)
    recalled = vlm.recall(first.history.turns, shown)
    assert recalled.shapes == first.history.shapes
    wanted = vlm.chat(None, "Why?", first.history, max_new_tokens=4).ids
    assert vlm.chat(None, "Why?", recalled, max_new_tokens=4).ids == wanted
    with pytest.raises(PromptError, match="2 pictures, and 1 came"):
        vlm.recall(first.history.turns, shown[:1])
