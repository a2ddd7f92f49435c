"""The world visglm-tiny is made from: what is drawn, what is asked about it, and how its rows are scored."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "finetune" / "visglm-tiny"
sys.path.insert(0, str(FOLDER))

import common  # noqa: E402 (a folder of scripts, found through the path above)
from common import Rows, Teller, add_questions, as_told, go_back, relate_heads, split, words  # noqa: E402
from concepts import GROUPS, load_concepts  # noqa: E402
from questions import QUESTIONS, Asker, Thing, things_of, with_article  # noqa: E402
from world import AMBIGUOUS, BACKGROUND, COLOURS, SceneStream, World, basic_colour, main_colour  # noqa: E402

from visglm import ChatGLMTokenizer, VisGLMConfig, VisGLMForConditionalGeneration  # noqa: E402
from visglm.checkpoint import EMBEDDED_MODEL  # noqa: E402
from visglm.prompt import IGNORE_INDEX  # noqa: E402
from visglm.text.chatglm import ChatGLMAttention  # noqa: E402


@pytest.fixture(scope="module")
def cache() -> dict:
    """Five sprites, each a disc of one colour."""
    side = np.linspace(-1, 1, 112)
    inside = (side[:, None] ** 2 + side**2 < 0.8).astype(np.uint8) * 255
    paints = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 0), (20, 20, 20)]
    pictures = np.stack([np.stack([*(np.full_like(inside, value) for value in paint), inside]) for paint in paints])
    return {"pictures": pictures, "concept": np.arange(5), "weight": np.ones(5, np.float32)}


@pytest.fixture(scope="module")
def concepts():
    return load_concepts()


def test_a_picture_holds_what_the_scene_says(cache):
    world = World(cache, seed=1, augment=False)
    scenes = world.sample(32, single_share=0.3)
    size = world.image_size
    assert scenes.pictures.shape == (32, 3, size, size)
    assert torch.equal((scenes.concept >= 0).sum(1), scenes.count)
    for picture, count, concept, centre, colour in zip(
        scenes.pictures, scenes.count, scenes.concept, scenes.centre, scenes.colour, strict=True
    ):
        for index in range(count):
            x, y = (centre[index] * size).long().clamp(0, size - 1)
            pixel = (picture[:, y, x] * 255).round().int().tolist()
            assert pixel == pytest.approx(cache["pictures"][concept[index], :3, 56, 56].tolist(), abs=3)
            assert COLOURS[colour[index]] == ("red", "green", "blue", "yellow", "black")[concept[index]]


def test_cells_are_labelled_by_what_covers_them(cache):
    scenes = World(cache, seed=2, augment=False).sample(64)
    labels, shades = scenes.dense_labels(6, scenes.concept, scenes.colour)
    # A disc has the colour of its number: red, green, blue, yellow, black.
    colours = torch.tensor([COLOURS.index(name) for name in ("red", "green", "blue", "yellow", "black")])
    assert torch.equal(shades[labels >= 0], colours[labels[labels >= 0]])
    assert torch.equal(shades < 0, labels < 0)
    for index in range(64):
        present = set(scenes.concept[index, : scenes.count[index]].tolist())
        assert set(labels[index].flatten().tolist()) <= present | {BACKGROUND, AMBIGUOUS}
        assert present & set(labels[index].flatten().tolist())


def test_a_seed_draws_the_same_scenes_in_the_worker_as_here(cache):
    from itertools import islice

    drawn = World(cache, seed=3)
    stream = SceneStream(lambda: drawn.sample(4), drawn.random, grid_size=6)
    world = World(cache, seed=3)
    for scenes in islice(stream.loader(), 2):
        again = world.sample(4)
        assert torch.equal(scenes.pictures, again.pictures)
        for cells, same in zip(
            scenes.dense_labels(6, scenes.concept), again.dense_labels(6, again.concept), strict=True
        ):
            assert torch.equal(cells, same)
    first, second = islice(stream.loader(num_workers=2), 2)
    assert not torch.equal(first.pictures, second.pictures)


def test_things_are_bent_and_some_lack_a_rectangle(cache, monkeypatch):
    world = World(cache, seed=5, deform=True)
    whole = torch.ones(64, 4, 96, 96)
    holes = 1 - world.cut(whole)[:, 0]
    cut = holes.flatten(1).any(1)
    assert 8 < cut.sum() < 32
    for hole in holes[cut]:
        assert torch.equal(hole, hole.amax(0, keepdim=True) * hole.amax(1, keepdim=True))  # a rectangle
        assert hole.mean() < 0.2

    centre, scale = torch.full((64, 2), 0.5), torch.full((64,), 0.5)
    rand = world.rand
    # Halfway between both ends, nothing is turned, mirrored or stretched.
    monkeypatch.setattr(world, "rand", lambda *shape: rand(*shape) if len(shape) == 4 else torch.full(shape, 0.5))
    bent = world.transform(whole, centre, scale, torch.ones(64, 2))[:, 3]
    straight = torch.zeros(96, 96)
    straight[24:72, 24:72] = 1
    away = (bent - straight).abs()
    assert (away.mean((1, 2)) > 0.005).sum() > 32
    # By less than a tenth of the side.
    assert away[:, 32:64, 32:64].max() < 1e-5 and away[:, :14].max() < 1e-5


def test_told_scenes_have_no_pictures_and_hide_what_is_absent(cache):
    scenes = World(cache, seed=4).tell(50)
    assert scenes.pictures is None
    absent = torch.arange(6) >= scenes.count[:, None]
    assert (scenes.concept[absent] == -1).all() and (scenes.colour[absent] == -1).all()
    assert (scenes.concept[~absent] >= 0).all()


@pytest.mark.parametrize(
    "paint, name",
    [((1, 0, 0), "red"), ((1, 0.5, 0), "orange"), ((1, 1, 0), "yellow"), ((0, 0.6, 0.1), "green"),
     ((0.1, 0.3, 0.9), "blue"), ((0.5, 0.1, 0.7), "purple"), ((1, 0.6, 0.75), "pink"), ((0.45, 0.27, 0.1), "brown"),
     ((0, 0, 0), "black"), ((0.26, 0.26, 0.26), "black"), ((1, 1, 1), "white"), ((0.5, 0.5, 0.5), "grey"),
     ((0.86, 0.87, 0.87), "grey"), ((0.65, 0.47, 0.22), "brown"), ((0.65, 0.1, 0.1), "red")],
)  # fmt: skip
def test_colours_have_their_names(paint, name):
    assert COLOURS[basic_colour(torch.tensor(paint, dtype=torch.float32))] == name


def test_ink_around_a_thing_is_not_its_colour():
    sprites = torch.zeros(4, 4, 96, 96)
    sprites[:3, 3, 16:80, 16:80] = 1  # black squares
    sprites[0, :3, 19:77, 19:77] = 1  # white in a black outline, with as much ink inside
    for column in range(22, 76, 6):
        sprites[0, :3, :, column : column + 3] = 0
    sprites[1, 0, 19:77, 19:77] = 0.65  # brown, crossed by lines
    sprites[1, 1, 19:77, 19:77] = 0.45
    sprites[1, :3, :, 24:72:16] = sprites[1, :3, :, 25:72:16] = sprites[1, :3, :, 26:72:16] = 0
    sprites[3, 3, 16:80, 44:47] = 1  # a line
    assert [COLOURS[colour] for colour in main_colour(sprites)] == ["white", "brown", "black", "black"]
    sprites[0, 1:3, 38:, :] = 0  # two thirds red, one third white
    sprites[3] = 0
    assert [COLOURS[colour] if colour >= 0 else "" for colour in main_colour(sprites)] == ["", "brown", "black", ""]


@pytest.mark.parametrize(
    "name, expected",
    [("apple", "an apple"), ("cat", "a cat"), ("scissors", "a pair of scissors"), ("milk", "milk"),
     ("umbrella", "an umbrella"),
     ("unicorn", "a unicorn"), ("euro banknote", "a euro banknote"), ("hourglass", "an hourglass"), ("bus", "a bus"),
     ("nest with eggs", "a nest with eggs"), ("rhinoceros", "a rhinoceros")],
)  # fmt: skip
def test_articles(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", [kind for kind in QUESTIONS])
def test_the_right_answer_is_accepted_and_a_wrong_one_is_not(concepts, kind, language):
    asker = Asker(concepts, seed=5)
    wrong = {"en": "Maybe, who knows.", "zh": "也许吧。"}[language]
    for _ in range(30):
        several = kind in ("position", "where", "side") or (
            kind in ("count", "presence") and asker.random.random() < 0.5
        )
        first, second = asker.random.sample(range(len(concepts)), 2)
        things = [Thing(first, "left", "red"), Thing(second, "right", "blue")] if several else [Thing(first, "", "red")]
        question = asker.ask(things, kind, language)
        assert question.accepts(question.answer), question
        assert not question.accepts(wrong), question


def test_a_description_may_use_any_name_and_article_but_not_another_place(concepts):
    apple, cup = (next(i for i, concept in enumerate(concepts) if name in concept.english) for name in ("apple", "cup"))
    things = [Thing(apple, "left", ""), Thing(cup, "right", "")]
    question = Asker(concepts).ask(things, "describe", "en")
    others = [name for name in concepts[cup].english if name != "cup"]
    for name in (*others, "cup"):
        assert question.accepts(f"There are 2 objects: a apple on the left, the {name} on the right.")
        assert not question.accepts(f"There are 2 objects: a {name} on the left, an apple on the right.")
    assert others and not question.accepts("There are 2 objects: an apple on the left, a cat on the right.")


def test_what_is_asked_for_as_absent_is_absent(concepts):
    asker = Asker(concepts, seed=6)
    for index in range(0, len(concepts), 7):
        shown = concepts[index]
        other = concepts[asker.absent([Thing(index, "", "")])]
        assert not {*shown.english, *shown.chinese} & {*other.english, *other.chinese}


def test_places_follow_the_arrangement():
    things = things_of([1, 2], [[0.27, 0.5], [0.73, 0.5]], [0, -1])
    assert [(thing.place, thing.colour) for thing in things] == [("left", "black"), ("right", "")]
    assert [thing.place for thing in things_of([1, 2], [[0.5, 0.73], [0.5, 0.27]], [0, 0])] == ["bottom", "top"]
    corners = things_of([1, 2, 3], [[0.27, 0.27], [0.73, 0.27], [0.27, 0.73]], [0, 0, 0])
    assert [thing.place for thing in corners] == ["top left", "top right", "bottom left"]


def test_a_told_object_is_the_words_of_its_names_and_its_group(cache, concepts):
    tokenizer = ChatGLMTokenizer.from_pretrained(EMBEDDED_MODEL)
    embeddings = torch.nn.Embedding(len(tokenizer.sp_model), 32)
    teller = Teller(concepts, tokenizer, embeddings)
    torch.nn.init.zeros_(teller.colour.weight)
    for parameter in teller.place.parameters():
        torch.nn.init.zeros_(parameter)
    scenes = World(cache, seed=8).tell(24, single_share=0.2).in_reading_order()
    told = teller(scenes)
    assert told.shape == (24, 12, 32)
    assert torch.equal(told[:, 8:], teller.no_photograph.expand(24, 4, 32))
    assert {True, False} == {count > 4 for count in scenes.count.tolist()}
    for row, concept, count in zip(told, scenes.concept.tolist(), scenes.count.tolist(), strict=True):
        for index in range(4):
            for part, language in enumerate(("en", "zh")):
                expected = teller.nothing
                if concept[index] >= 0:
                    told_of = concepts[concept[index]]
                    mean = embeddings(torch.tensor(words(tokenizer, told_of.names(language)[0]))).mean(0)
                    expected = 2 * as_told(torch.nn.functional.layer_norm(mean, (32,))) + teller.something
                    expected = expected + teller.group.weight[list(GROUPS).index(told_of.group)]
                expected = expected + teller.many * (count > 4)
                torch.testing.assert_close(row[4 * part + index], expected, rtol=1e-4, atol=1e-4)


def test_telling_right_costs_next_to_nothing_and_a_colour_only_where_it_is_clear(cache, concepts, tmp_path):
    torch.manual_seed(0)
    np.savez(tmp_path / "train.npz", **cache)
    tokenizer = ChatGLMTokenizer.from_pretrained(EMBEDDED_MODEL)
    teller = Teller(concepts, tokenizer, torch.nn.Embedding(len(tokenizer.sp_model), 256)).requires_grad_(False)
    pictures = common.Pictures(tmp_path, teller, batch_size=2, image_size=48, seed=0)
    scenes = pictures.world.tell(32)
    told = teller(scenes.in_reading_order())
    told = told[:, :8]  # what the Q-Former tells
    right, wrong = pictures.losses(told, scenes), pictures.losses(told.roll(1, 0), scenes)
    assert right.keys() == wrong.keys() == {"told", "names", "groups", "colours", "many"}
    for name, loss in right.items():
        assert loss < (0.45 if name == "colours" else 0.3) and wrong[name] > 3 * loss, name
    unclear = dataclasses.replace(scenes, colour=torch.where(scenes.colour == 0, -1, scenes.colour))
    assert pictures.losses(told, unclear)["colours"] < 0.45  # black things may be told black where nobody asks

    # A rare colour counts as much as a frequent one.
    black, red = (torch.where(scenes.concept >= 0, COLOURS.index(name), -1) for name in ("black", "red"))
    one_red = torch.cat([red[:1], black[1:]])
    all_black = teller(dataclasses.replace(scenes, colour=black).in_reading_order())[:, :8]
    losses = [pictures.losses(all_black, dataclasses.replace(scenes, colour=of))["colours"] for of in (one_red, red)]
    assert losses[0] > 0.2 * losses[1]


def test_heads_start_out_asking_copying_and_translating():
    torch.manual_seed(0)
    config = VisGLMConfig.from_pretrained(EMBEDDED_MODEL).text_config
    attention = ChatGLMAttention(config, 0)
    torch.nn.init.normal_(attention.query_key_value.weight, std=config.hidden_size**-0.5)
    relate_heads(attention)
    word, other = torch.nn.functional.normalize(torch.randn(2, config.hidden_size), dim=1) * config.hidden_size**0.5
    ask, copy_words, translate, _ = torch.arange(config.hidden_size).chunk(4)
    query, key, value = (part @ torch.stack([word, other, as_told(word)]).T for part in projections(attention))
    found = query[ask, 0] @ key[ask]  # by what was told, not by the word itself
    assert found.argmax() == 2 and found[2] > 3 * found[:2].abs().max()
    assert (query[copy_words, 0] @ key[copy_words]).argmax() == 0
    for heads, column in ((copy_words, 0), (translate, 2)):
        written = attention.dense.weight[:, heads] @ value[heads, column]
        assert torch.nn.functional.cosine_similarity(written, word, dim=0) > 0.4
    torch.testing.assert_close(as_told(as_told(word)), word)


def projections(attention):
    return attention.query_key_value.weight.detach().chunk(3)


def test_going_back_is_part_of_the_way_and_counts_nothing():
    found, model = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(model.weight, 4.0)
    model.num_batches_tracked += 7
    go_back(model, found.state_dict(), 1 / 3)
    assert model.weight.tolist() == [3, 3] and found.weight.tolist() == [1, 1]
    assert model.num_batches_tracked == 7


def test_what_is_black_is_seldom_asked_for_its_colour(concepts):
    asker = Asker(concepts, seed=6)
    asked = {
        colour: sum(asker.ask([Thing(0, "", colour)]).kind == "colour" for _ in range(400))
        for colour in ("black", "red", "")
    }
    assert asked[""] == 0 < asked["black"] < asked["red"] / 3
    asker.ask([Thing(0, "left", "black"), Thing(1, "right", "black")])  # of several nobody asks for it at all


def test_questions_come_as_people_type_them(concepts):
    asker = Asker(concepts, seed=3)
    asked = {asker.loosen("What is this?", "en") for _ in range(300)}
    assert {"What is this?", "What is this", "what is this?", "Please tell me: What is this?"} <= asked
    assert Asker(concepts, seed=3, first_phrasing=True).phrase("name", "en") == "What is this?"


def test_names_are_spelled_without_unknown_words(concepts):
    tokenizer = ChatGLMTokenizer.from_pretrained(EMBEDDED_MODEL)
    for concept in concepts:
        for name in (concept.english[0], concept.chinese[0]):
            ids = words(tokenizer, name)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids).replace(" ", "") == name.replace(" ", "")


def test_reading_order_goes_from_the_top_left(cache):
    scenes = World(cache, seed=9).tell(40).in_reading_order()
    for count, concept, centre in zip(scenes.count, scenes.concept, scenes.centre, strict=True):
        assert (concept[:count] >= 0).all() and (concept[count:] == -1).all() and len(concept) == 4  # the first four
        places = [((y >= 1 / 3) + (y >= 2 / 3), x) for x, y in centre[:count].tolist()]
        assert places == sorted(places)


def test_loss_in_groups_is_the_loss_of_all_rows_together(cache, concepts, monkeypatch):
    monkeypatch.setattr(common, "fast_products", nullcontext)  # bfloat16 would round groups differently
    torch.manual_seed(0)
    tokenizer = ChatGLMTokenizer.from_pretrained(EMBEDDED_MODEL)
    fields = VisGLMConfig.from_pretrained(EMBEDDED_MODEL).to_dict()
    fields["text_config"] |= {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    model = VisGLMForConditionalGeneration(VisGLMConfig(**{k: v for k, v in fields.items() if k != "architectures"}))
    rows = Rows(tokenizer, model.config.num_query_tokens)
    world = World(cache, seed=7)
    add_questions(rows, world.tell(5), Asker(concepts, seed=7), num_questions=2, num_without_picture=2)
    embeds = torch.randn(5, model.config.num_query_tokens, 32)
    together = rows.loss(model, embeds, num_groups=1)
    torch.testing.assert_close(rows.loss(model, embeds, num_groups=4), together, rtol=1e-5, atol=1e-5)
    assert all(
        label in (IGNORE_INDEX, index)
        for row in rows.rendered
        for index, label in zip(row.input_ids, row.labels, strict=True)
    )
    assert split([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
