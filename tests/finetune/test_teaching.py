"""What visglm-tiny is taught beyond single questions: free layouts, photographs, talks; and that its stages resume."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parents[2] / "finetune" / "visglm-tiny"
sys.path.insert(0, str(FOLDER))

import common  # noqa: E402 (a folder of scripts, found through the path above)
import inherit  # noqa: E402
import learn  # noqa: E402
import pretrain_recogniser as stage  # noqa: E402
import talks  # noqa: E402
from concepts import GROUPS, Concept, load_all_concepts, load_concepts, load_photographed  # noqa: E402
from pretrain_text import name_pieces  # noqa: E402
from questions import Asker, Thing, single_out, things_of, with_article  # noqa: E402
from taught_photographs import TaughtPhotographs  # noqa: E402
from tower import known_classes, tower_config  # noqa: E402
from train_tokenizer import add_words  # noqa: E402
from world import MAX_OBJECTS, MAX_TOLD, World, shrunken  # noqa: E402

from visglm import ChatGLMTokenizer, VisGLMForConditionalGeneration  # noqa: E402
from visglm.checkpoint import EMBEDDED_MODEL  # noqa: E402
from visglm.vision import Recogniser  # noqa: E402


@pytest.fixture(scope="module")
def world() -> World:
    """Red discs in the middle of a wide margin."""
    side = np.linspace(-1, 1, 112)
    inside = (side[:, None] ** 2 + side**2 < 0.2).astype(np.uint8) * 255
    picture = np.stack([inside, np.zeros_like(inside), np.zeros_like(inside), inside])
    cache = {"pictures": np.stack([picture] * 3), "concept": np.arange(3), "weight": np.ones(3, np.float32)}
    return World(cache, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer.from_pretrained(EMBEDDED_MODEL)


@pytest.fixture
def talker(tokenizer) -> talks.Talker:
    return talks.Talker(Asker(load_all_concepts(), seed=3), name_pieces(tokenizer))


def test_all_names_are_of_both_languages_and_of_a_group():
    concepts = load_all_concepts()
    assert len(concepts) >= 900 and concepts[: len(load_concepts())] == load_concepts()
    firsts = [concept.english[0] for concept in concepts]
    assert len(set(firsts)) == len(firsts)
    assert {concept.group for concept in concepts} <= GROUPS.keys()
    assert all(name.isascii() for concept in concepts[len(load_concepts()) :] for name in concept.english)


def test_every_class_has_a_name_and_every_name_a_class():
    classes = known_classes()
    numbers = [number for number, _ in classes if number >= 0]
    assert len(set(numbers)) == len(numbers) > 700 and max(numbers) < 1000
    assert {index for _, index in classes} == set(range(len(load_photographed())))
    named = {number: load_photographed()[index][0].english[0] for number, index in classes}
    assert named[1] == "goldfish" and named[954] == "banana" and named[207] == "dog"  # of ImageNet's own order
    assert tower_config().num_classes == len(classes)


def test_sprites_lose_their_margins():
    picture = torch.zeros(1, 4, 112, 112, dtype=torch.uint8)
    picture[0, :, 50:60, 20:80] = 255  # ten high, sixty wide
    close = shrunken(picture.clone(), close=True)[0, 3] > 128
    rows, columns = close.any(1).nonzero().flatten(), close.any(0).nonzero().flatten()
    assert columns.min() <= 1 and columns.max() >= 94 and 13 <= len(rows) <= 19
    assert abs(rows.float().mean() - 47.5) < 1.5


def test_things_stand_anywhere_and_never_on_each_other(world):
    count = torch.arange(1, 7).repeat(40)
    centre, scale = world.place(count)
    alone = count == 1
    low, high = (centre - scale[..., None] / 2)[alone, 0], (centre + scale[..., None] / 2)[alone, 0]
    fits = scale[alone, 0] <= 1
    assert (low[fits] > -0.01).all() and (high[fits] < 1.01).all()
    assert (low[fits] < 0.01).any() and scale[alone, 0].min() < 0.4 and scale[alone, 0].max() > 0.95
    gaps = []
    for row, number in enumerate(count.tolist()):
        assert (centre[row, :number] > 0).all() and (centre[row, :number] < 1).all()
        for one in range(number):
            for other in range(one):
                away = (centre[row, one] - centre[row, other]).abs().max() - scale[row, one]
                gaps.append(away.item())
    assert min(gaps) > -1e-4 and min(gaps) < 0.01 and max(gaps) > 0.4  # near and far


def test_restyled_things_may_stand_evenly_too(world):
    count = torch.full((40,), 4)
    try:
        world.free = False
        evenly, sizes = world.place(count)
        world.free = True
        freely, _ = world.place(count)
    finally:
        world.free = world.augment
    corners = torch.tensor([[0.27, 0.27], [0.73, 0.27], [0.27, 0.73], [0.73, 0.73]])
    assert torch.cdist(evenly[:, :4], corners[None]).min(-1).values.max() < 0.05 and sizes[:, :4].min() >= 0.38
    assert torch.cdist(freely[:, :4], corners[None]).min(-1).values.max() > 0.1


def test_some_scenes_show_copies_and_some_more_than_are_told(world):
    count, chosen = world.choose(400, single_share=0.2)
    assert {1, 2, 3, 4, 5, 6} == set(count.tolist())
    alike = (chosen == chosen[:, :1]).all(1)
    assert 0.2 < alike.float().mean() < 0.4
    scenes = world.draw(torch.tensor([6, 2]), torch.zeros(2, MAX_OBJECTS, dtype=torch.long))
    assert (scenes.concept >= 0).sum(1).tolist() == [6, 2]
    assert scenes.in_reading_order().concept.shape == (2, MAX_TOLD)


def test_one_of_things_that_stand_together_at_an_edge_is_left_of_the_others():
    things = things_of([1, 2], [[0.7, 0.5], [0.9, 0.52]], [0, 0])
    assert [thing.place for thing in things] == ["left", "right"]


def test_sides_are_those_that_are_said(world):
    scenes = world.tell(60, single_share=0.2)
    sides = scenes.sides()
    for row, count in enumerate(scenes.count.tolist()):
        if 1 < count <= MAX_TOLD:  # of more than four, no place is asked for
            said = things_of(*(part[row, :count].tolist() for part in (scenes.concept, scenes.centre, scenes.colour)))
            for slot, thing in enumerate(said):
                across, down = ({-1: first, 0: "", 1: last}[int(side)] for side, first, last in zip(
                    sides[row, slot].tolist(), ("left", "top"), ("right", "bottom"), strict=True))  # fmt: skip
                assert thing.place.split() == [part for part in (down, across) if part]
        assert not sides[row, count:].any() and (count > 1 or not sides[row].any())


def test_names_are_repeated_without_a_picture(talker, tokenizer):
    rows = common.Rows(tokenizer, 12)
    common.add_echoes(rows, talker, 5)
    assert rows.scenes == [()] * 5
    assert all(tokenizer.image_token_id not in row.input_ids for row in rows.rendered)


def test_more_than_four_are_not_counted_out_and_copies_not_asked_for(talker):
    asker = talker.asker
    six = [Thing(index, "", "") for index in range(6)]
    for language, words in (("en", "more than four"), ("zh", "四个以上")):
        for kind in ("count", "describe"):
            question = asker.ask(six, kind, language)
            assert words in question.answer and question.accepts(question.answer)
    assert {asker.ask(six).kind for _ in range(60)} == {"count", "describe", "outside"}
    twins = [Thing(1, "left", ""), Thing(1, "right", "")]
    assert single_out(twins) == [] and "where" not in {asker.ask(twins).kind for _ in range(80)}


@pytest.mark.parametrize("name, said", [("glasses", "a pair of glasses"), ("ox", "an ox"), ("fries", "fries")])
def test_pairs_are_counted_as_such(name, said):
    assert with_article(name) == said


def test_made_up_names_use_the_whole_vocabulary(talker, tokenizer):
    used = set()
    for _ in range(30_000):
        language = talker.language()
        used.update(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(talker.made_up(language))))
    names = {tokenizer.convert_tokens_to_ids(piece) for piece in name_pieces(tokenizer)}
    assert len(used & names) > 0.95 * len(names)
    assert sum(tokenizer.convert_ids_to_tokens(index).startswith("<0x") for index in used) > 60  # spelled by bytes


def test_a_name_nobody_has_is_not_there_and_is_repeated(talker):
    heard = set()
    for _ in range(60):
        turns, language = talker.about_nothing([Thing(0, "", "")])
        question, answer, _ = turns[-1]
        assert answer.startswith({"en": ("No, there is no ", "It is called "), "zh": ("没有，", "它叫")}[language])
        heard.add(len(turns))
        if len(turns) == 2:
            name = answer.removeprefix("It is called ").removeprefix("它叫").rstrip(".。")
            assert name in turns[0][0]
    assert heard == {1, 2}


def test_the_second_question_is_answered_in_its_own_language(talker):
    for _ in range(20):
        (first, _, pictures), (then, answer, none) = talker.switched([Thing(5, "", "red")])[0]
        assert (pictures, none) == (1, 0)
        assert any("㐀" <= c <= "鿿" for c in first) != any("㐀" <= c <= "鿿" for c in then)
        assert any("㐀" <= c <= "鿿" for c in then) == any("㐀" <= c <= "鿿" for c in answer)


def test_two_pictures_are_told_apart(talker):
    one, two = [Thing(3, "", "")], [Thing(7, "", "")]
    seen = set()
    for _ in range(120):
        turns, language = talker.two_pictures(one, two)
        question, answer, _ = turns[-1]
        names = [talker.asker.name(things[0], language) for things in (one, two)]
        if answer in talks.ORDINAL[language]:
            assert names[talks.ORDINAL[language].index(answer)] in question
            seen.add("which")
        elif len(turns) == 2:
            assert names[1] in answer and [pictures for *_, pictures in turns] == [1, 1]
            seen.add("this one")
        else:
            seen.add("second" if names[1] in answer else "first")
            assert turns[0][2] == 2
    assert seen == {"which", "this one", "second", "first"}


def test_a_doubtful_photograph_is_said_to_be(talker):
    sure, unsure = (talks.Guess(3, 7, probability, 0.1, "red") for probability in (0.9, 0.3))
    for guess, opening in ((sure, ("It is", "这是", "The picture", "图中")), (unsure, ("Perhaps", "可能"))):
        named = [question for question in (talker.guess(guess) for _ in range(200)) if question.kind == "name"]
        assert named and all(question.answer.startswith(opening) for question in named)
        for question in named:
            assert talker.asker.name(Thing(3, "", ""), question.language) in question.answer
    asked = [talker.guess(talks.Guess(3, 7, 0.4, 0.35, "")) for _ in range(300)]
    present = {q.text: q.answer for q in asked if q.kind == "presence" and q.answer.startswith(("Yes", "有"))}
    shown = {talker.asker.name(Thing(index, "", ""), language) for index in (3, 7) for language in ("en", "zh")}
    assert present and all(any(name in text for name in shown) for text in present)


def test_guesses_are_the_last_tokens_of_a_photograph_and_its_objects_have_no_name(tokenizer):
    torch.manual_seed(0)
    concepts = load_all_concepts()
    teller = common.Teller(concepts, tokenizer, torch.nn.Embedding(len(tokenizer.sp_model), 16))
    concept, probability = torch.tensor([[3, 7]]), torch.tensor([[0.8, 0.1]])
    told = teller.photographs(concept, probability, torch.tensor([2]))
    other = teller.photographs(torch.tensor([[4, 7]]), probability, torch.tensor([2]))
    assert told.shape == (1, 12, 16)
    same_group = concepts[3].group == concepts[4].group
    assert torch.equal(told[:, :8], other[:, :8]) == same_group and not torch.equal(told[:, 8], other[:, 8])
    torch.testing.assert_close(told[:, 9], other[:, 9])  # the second guess, in English
    # A recogniser says the same.
    recogniser = Recogniser(tower_config(), 16)
    common.write_words(recogniser, teller)
    rows = {c.english[0]: index for index, (c, _) in enumerate(load_photographed())}
    names = [index for index, concept in enumerate(concepts) if concept.english[0] in rows][:2]
    scattered = torch.zeros(1, recogniser.names.num_embeddings)
    scattered[0, [rows[concepts[index].english[0]] for index in names]] = probability[0]
    said = recogniser.tell(scattered, teller.colour.weight[3][None], torch.ones(1, 1))
    torch.testing.assert_close(said, teller.guesses(torch.tensor([names]), probability, torch.tensor([2])))
    silent = recogniser.tell(scattered, teller.colour.weight[3][None], torch.zeros(1, 1))
    torch.testing.assert_close(silent, teller.no_photograph.expand(1, 4, 16))


@pytest.fixture
def folder(tmp_path) -> Path:
    shop, only = "GroceryStore", "Azure samples"
    rows = [
        (shop, "banana", "Cavendish", "yellow", "val"), (shop, "lemon", "Amalfi", "yellow", "train"),
        (shop, "carrot", "Carrots", "orange", "train"), (shop, "lemon", "Lemon", "yellow", "train"),
        (only, "fork", "fork", "grey", "train"), (only, "scissors", "scissors", "red", "val"),
    ]  # fmt: skip
    with (tmp_path / "photos.tsv").open("w", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["file", "set", "class_en", "class_zh", "group", "colour", "source_label", "split"])
        for number, (of, name, label, colour, split) in enumerate(rows):
            Image.new("RGB", (30, 20), colour).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", of, name, "某", "food", colour if of == shop else "", label, split])
    return tmp_path


def test_photographs_are_taught_alone_and_in_collages_but_for_what_is_held_out(folder):
    concepts = load_all_concepts()
    taught = TaughtPhotographs(folder, concepts, seed=1)
    assert {concepts[index].english[0] for index in taught.concept.tolist()} == {"banana", "lemon", "carrot", "fork"}
    assert len(taught.concept) == 4  # without the label, and the split of a kind's only source, that are held out
    scenes = taught.next(4, 12)
    assert scenes.count[:4].tolist() == [1] * 4 and set(scenes.count[4:].tolist()) <= {2, 3, 4}
    assert scenes.pictures.shape == (16, 3, 256, 256) and scenes.pictures.min() >= 0 and scenes.pictures.max() <= 1
    for row in range(16):
        for slot in range(int(scenes.count[row])):
            x, y = (scenes.centre[row, slot] * 256).long().tolist()
            seen, name = scenes.pictures[row, :, y, x], concepts[scenes.concept[row, slot]].english[0]
            red, green, blue = seen.tolist()
            if name == "fork":  # grey
                assert max(seen) - min(seen) < 0.02
                continue
            assert red > 0.7 and blue < 0.1  # something yellow or orange stands there
            is_carrot = name == "carrot"
            assert (green / red < 0.8) == is_carrot


@pytest.fixture(scope="module")
def clusters() -> tuple[Recogniser, stage.Features]:
    """A recogniser, and features of three names that ImageNet lacks, far from each other."""
    torch.manual_seed(0)
    recogniser = Recogniser(tower_config(), 16).requires_grad_(False)
    recogniser.name_of_class.copy_(torch.tensor([index for _, index in known_classes()]))
    new = [index for number, index in known_classes() if number < 0][:3]
    middles = torch.randn(3, 1280) * 2
    names = torch.tensor(new).repeat(40)
    pooled = middles.repeat(40, 1) + torch.randn(120, 1280)
    return recogniser, stage.Features(pooled, names, [str(number % 6) for number in range(120)])


def test_new_names_are_told_apart_and_a_name_never_seen_stays_unlikely(clusters):
    recogniser, seen = clusters
    stage.add_names(recogniser, seen)
    found = recogniser.probabilities(seen.pooled)
    assert (found.argmax(-1) == seen.name).float().mean() > 0.95
    never = [index for number, index in known_classes() if number < 0][3:]
    assert found[:, never].max() < 1e-3
    stage.choose_temperature(recogniser, seen)
    assert 0.5 <= recogniser.temperature.item() < 4.5


def test_the_gate_opens_for_photographs_and_is_shut_for_drawings(clusters):
    recogniser, seen = clusters
    drawings = torch.randn(100, 1280) - 0.4
    stage.add_gate(recogniser, seen.pooled, drawings)
    opened, shut = (recogniser.gate(pooled).sigmoid() for pooled in (seen.pooled, drawings))
    assert (opened > 0.9).float().mean() > 0.95 and (shut < 0.5).float().mean() >= 0.94


def test_a_cut_out_stands_on_white():
    shown = np.asarray(stage.cut_out(Image.new("RGB", (50, 80), "red"), np.random.default_rng(1)))
    assert shown[0, 0].tolist() == [255] * 3 and shown[112, 112].tolist() == [255, 0, 0]


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "KEPT_EVERY", 4)

    def run(name: str, stop_after: int | None) -> torch.Tensor:
        """Ten steps towards numbers drawn from the step's own seed."""
        weight = torch.nn.Parameter(torch.zeros(3))
        log = tmp_path / name / "stage.jsonl"
        step = common.steps_done(log)

        def step_loss() -> dict[str, torch.Tensor]:
            nonlocal step
            step += 1
            if step == stop_after:
                raise KeyboardInterrupt
            target = torch.randn(3, generator=torch.Generator().manual_seed(step))
            return {"loss": (weight - target).square().sum()}

        common.train(torch.optim.AdamW([weight], lr=0.1), step_loss, 10, log, every=(5, dict))
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [5, 10]
        assert common.steps_done(log) == 0  # done: made again, it begins anew
        return weight.detach()

    whole = run("whole", None)
    with pytest.raises(KeyboardInterrupt):
        run("cut", 7)
    assert common.steps_done(tmp_path / "cut" / "stage.jsonl") == 4
    torch.testing.assert_close(run("cut", None), whole)


def test_common_characters_are_chinese():
    draw = random.Random(1)
    assert all("一" <= talks.common_character(draw) <= "鿿" for _ in range(200))


def test_new_names_become_pieces_and_all_else_is_spelled_as_before(tokenizer, tmp_path):
    new = [Concept((), ("quux widget",), ("鑫鑫器",), "tool")]
    (tmp_path / "ice_text.model").write_bytes(add_words(tokenizer, new))
    longer = ChatGLMTokenizer(str(tmp_path / "ice_text.model"))
    assert longer.get_vocab() | tokenizer.get_vocab() == longer.get_vocab()
    assert longer.tokenize("It is a quux widget.")[-3:] == ["▁quux", "▁widget", "."]
    assert longer.tokenize("这是鑫鑫器。")[-2:] == ["鑫鑫器", "。"] and "鑫" in longer.get_vocab()
    for text in ("Q:Is there a cat in the picture?\nA:", "图中有3个物体：左上角是猫", "zebra 𠮷"):
        assert longer.tokenize(text) == tokenizer.tokenize(text)


def test_rows_of_pieces_that_were_never_said_are_all_alike():
    torch.manual_seed(0)
    rows = torch.randn(100, 256)
    rows[40:] = torch.randn(256) + 0.05 * torch.randn(60, 256)
    assert inherit.rows_said(rows).tolist() == [True] * 40 + [False] * 60
    assert inherit.rows_said(rows[:40]).all()  # all of a vocabulary that was taught whole


def test_a_later_version_inherits_what_the_one_before_knows(tokenizer):
    old = VisGLMForConditionalGeneration.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    model = common.build_model(tokenizer)
    fresh = model.lm_head.weight.detach().clone()
    said = inherit.rows_said(old.lm_head.weight)
    assert inherit.take_over(model, tokenizer, old, tokenizer) == int(said.sum()) > 1000
    torch.testing.assert_close(model.lm_head.weight[said], old.lm_head.weight[said])
    torch.testing.assert_close(model.lm_head.weight[~said], fresh[~said])
    vision = model.model.vision.state_dict()
    assert all(torch.equal(vision[name], value) for name, value in old.model.vision.state_dict().items())


def test_what_sees_goes_a_little_back_and_nothing_else_does(tokenizer):
    vision = common.build_model(tokenizer).model.vision
    inherited = {f"model.vision.{name}": value + 5 for name, value in vision.state_dict().items()}
    before = {name: value.clone() for name, value in vision.state_dict().items() if value.is_floating_point()}
    learn.go_back_a_little(vision, inherited, 0.2)
    moved = {name: vision.state_dict()[name] - value for name, value in before.items()}
    gone = {name for name, by in moved.items() if by.abs().max() > 0}
    assert gone == {name for name in moved if not name.startswith("recogniser.")}
    assert all(torch.allclose(moved[name], torch.ones(()), atol=1e-4) for name in gone)


@pytest.fixture
def lessons(folder, tmp_path) -> learn.Lessons:
    picture = np.zeros((4, 96, 96), np.uint8)
    picture[[0, 3], 30:60, 30:60] = 255
    np.savez(
        tmp_path / "train.npz", pictures=np.stack([picture] * 3), concept=np.arange(3), weight=np.ones(3, np.float32)
    )
    return learn.Lessons(tmp_path, folder, numbers=(20, 3, 4), seed=0)


def test_a_step_looks_at_drawings_small_and_whole_and_at_photographs(lessons):
    drawn, whole, photographs = next(iter(lessons.stream().loader(num_workers=1)))
    assert drawn.pictures.shape == (20, 3, 128, 128) and whole.pictures.shape == (3, 3, 256, 256)
    assert photographs.pictures.shape == (4, 3, 256, 256) and (photographs.count == 1).sum() == 2
    assert {part.pictures.dtype for part in (drawn, whole, photographs)} == {torch.uint8}
    together = learn.joined([whole, drawn], learn.TOLD)
    assert len(together.count) == 23 and together.pictures is None
    assert torch.equal(learn.first_of(together, 3).concept, whole.concept)


def test_every_process_draws_its_own_scenes(lessons):
    stream = iter(lessons.stream().loader(num_workers=2))
    first, second = next(stream)[0], next(stream)[0]
    assert not torch.equal(first.pictures, second.pictures)


def test_drawings_of_all_manners_come_by_turns(lessons):
    manners = set()
    for _ in range(60):
        lessons.draw(1, 32)
        manners.add((lessons.world.free, lessons.world.augment, lessons.world.deform))
    assert manners == {(free, *style) for free in (True, False) for style in ((0, 0), (1, 0), (1, 1))}


def test_more_than_can_be_told_is_a_loss_of_its_own(tokenizer):
    teller = common.Teller(load_concepts()[:5], tokenizer, torch.nn.Embedding(len(tokenizer), 256))
    tokens = torch.zeros(2, 8, 256)
    tokens[0] = teller.many.detach()
    right, wrong = (common.many_loss(teller, tokens, torch.tensor(count)) for count in ([5, 4], [3, 6]))
    assert right < 0.01 and wrong > 4
