"""The evaluation of visglm-tiny: what it asks, what it counts, and what it writes down."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parents[2] / "finetune" / "visglm-tiny"
sys.path.insert(0, str(FOLDER))

import evaluate  # noqa: E402 (a folder of scripts, found through the path above)
from concepts import GROUPS, load_concepts, load_unseen, read_phrasings, read_rows  # noqa: E402
from curves import draw_curves  # noqa: E402
from grid import draw_grid  # noqa: E402
from questions import QUESTIONS, Asker, Question, Thing, with_article  # noqa: E402
from world import World  # noqa: E402

from visglm import VisGLM  # noqa: E402


@pytest.fixture(scope="module")
def world() -> World:
    """Five drawings, each a disc of one colour."""
    side = np.linspace(-1, 1, 112)
    inside = (side[:, None] ** 2 + side**2 < 0.8).astype(np.uint8) * 255
    paints = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 255, 0), (20, 20, 20)]
    pictures = np.stack([np.stack([*(np.full_like(inside, value) for value in paint), inside]) for paint in paints])
    return World({"pictures": pictures, "concept": np.arange(5), "weight": np.ones(5, np.float32)}, augment=False)


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker(load_concepts(), seed=1, first_phrasing=True)


def test_the_curves_are_those_of_the_logs():
    drawn = (FOLDER / "curves.svg").read_text("utf-8")
    assert drawn == draw_curves()
    assert drawn.count("<path") > drawn.count("<svg") == 12  # the file, and a chart each


def test_paraphrases_are_thirty_a_kind_and_none_was_taught():
    paraphrases = read_phrasings("paraphrases.tsv")
    assert paraphrases.keys() == QUESTIONS.keys() - {"side"}  # a second question only
    for kind, language in product(paraphrases, evaluate.LANGUAGES):
        phrasings = paraphrases[kind][language]
        assert len(set(phrasings)) == len(phrasings) == 30
        assert not set(phrasings) & set(QUESTIONS[kind][language])
        fields = {"presence": {"{a}", "{name}"}, "where": {"{name}"}, "position": {"{place}"}}.get(kind, {""})
        assert all(any(field in phrasing for field in fields) for phrasing in phrasings)


def test_what_only_evaluates_is_what_it_says():
    concepts = load_concepts()
    known = {name.lower().replace(" ", "-") for concept in concepts for name in concept.english}
    assert not known & {concept.english[0] for concept in load_unseen()}
    assert {concept.group for concept in load_unseen()} <= GROUPS.keys()
    assert {row["english"] for row in read_rows("photographs.tsv")} <= {
        concept.english[0] for concept in load_concepts()
    }


def test_a_second_question_about_a_side_follows_one_about_a_thing_at_a_side(asker):
    things = [Thing(0, "top", ""), Thing(1, "bottom left", "")]
    assert [evaluate.can_ask("side", thing) for thing in things] == [False, True]
    (item, _) = evaluate.collect_follow_ups({"several": [("picture", things[::-1])], "alone": []}, asker)[-2:]
    assert item.first.text == f"Is there {with_article(asker.concepts[1].english[0])} in the picture?"
    assert item.question.accepts("It is on the left.") and not item.question.accepts("It is on the right.")


def test_every_drawing_is_shown_once_alone_and_counts_are_balanced(world):
    alone = evaluate.draw(world, "alone")
    assert sorted(things[0].concept for _, things in alone) == list(range(5))
    counts = [len(things) for _, things in evaluate.draw(world, "any")]
    assert [counts.count(number) for number in range(1, 5)] == [100] * 4
    assert {len(things) for _, things in evaluate.draw(world, "several")} == {2, 3, 4}


def test_questions_of_a_plan_come_in_both_languages_about_one_picture(world, asker):
    drawn = {name: evaluate.draw(world, name) for name in evaluate.ARRANGEMENTS}
    items = evaluate.collect(drawn, asker, {"presence": ("any", 10, 0.9), "colour": ("alone", None, 0.9)}, "x: ")
    assert [item.question.language for item in items] == ["en", "zh"] * 15
    assert all(first.picture is second.picture for first, second in zip(items[::2], items[1::2], strict=True))
    answers = [item.question.answer[:2] for item in items[:20:2]]
    assert answers == ["Ye", "No"] * 5  # there, and not there, in turn
    assert {item.figure for item in items} == {"x: presence", "x: colour"}


def test_rewording_leaves_everything_but_the_words(world, asker):
    drawn = {"alone": evaluate.draw(world, "alone")}
    paraphraser = evaluate.Paraphraser(load_concepts(), seed=1)
    items = evaluate.collect(drawn, paraphraser, {"name": ("alone", None, 0), "outside": ("alone", None, 0)})
    paraphrases = read_phrasings("paraphrases.tsv")
    for item in items:
        question = item.question
        assert question.text in paraphrases[question.kind][question.language]
        assert question.accepts(question.answer)
    assert len({item.question.text for item in items}) == len(items)


def test_the_nearest_picture_of_a_training_picture_is_itself(world, asker):
    items = evaluate.collect(
        {"alone": evaluate.draw(world, "alone")}, asker, {"name": ("alone", None, 0), "colour": ("alone", None, 0)}
    )
    texts = evaluate.nearest(world, asker, items)
    assert texts == [item.question.answer for item in items]


def test_shares_and_intervals():
    question = Question("name", "en", "What?", "It is a cat.", ("cat",))
    items = [evaluate.Item("name", Image.new("RGB", (4, 4)), question)] * 100
    figure = evaluate.figures(items, ["a cat"] * 50 + ["a dog"] * 50)["name"]["en"]
    assert figure == {"num": 100, "share": 0.5, "plus_minus": 0.0962}  # Wilson: 1.96·√(n/4 + 1.96²/4)/(n + 1.96²)


def test_what_packed_weights_keep():
    plain = {"en": {"share": 0.5}, "zh": {"share": 0.0}}
    packed = {"en": {"share": 0.45}, "zh": {"share": 0.0}}
    assert evaluate.kept(packed, plain) == "90 / –"
    assert evaluate.kept(None, plain) == "–"


def test_answers_are_those_of_plain_calls_and_blank_pictures_hide_everything(world, asker):
    vlm = VisGLM.from_pretrained()
    size = vlm.model.config.vision_config.image_size
    remembering = evaluate.Remembering(vlm.model, vlm.processor)
    remembering.known = {}
    items = evaluate.collect({"alone": evaluate.draw(world, "alone")}, asker, {"group": ("alone", 2, 0)})
    follow_up = evaluate.Item("then", items[0].picture, items[0].question, first=items[2].question)
    texts = evaluate.answer(remembering, [*items, follow_up], "test")
    assert texts[:4] == [vlm.chat(i.picture, i.question.text, max_new_tokens=24).text for i in items]
    first = vlm.chat(items[0].picture, items[2].question.text, max_new_tokens=24)
    assert texts[4] == vlm.chat(None, items[0].question.text, first.history, max_new_tokens=24).text
    blank = vlm.chat(Image.new("RGB", (size, size), "white"), items[0].question.text, max_new_tokens=24).text
    assert evaluate.answer(remembering, items[:1], "test", blank=True) == [blank]


def test_pictures_are_encoded_once_and_together(world):
    vlm = VisGLM.from_pretrained()
    remembering = evaluate.Remembering(vlm.model, vlm.processor)
    remembering.known = {}
    pictures = [picture for picture, _ in evaluate.draw(world, "alone")]
    sizes = []
    hook = vlm.model.model.vision.vit.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    remembering.look([*pictures[:3], pictures[0]])
    remembering.look(pictures)
    hook.remove()
    assert sizes == [3, 2]
    torch.testing.assert_close(remembering.encode([pictures[4]]), vlm.encode([pictures[4]]), rtol=1e-4, atol=1e-4)


def test_the_card_takes_the_figures_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    text = "a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n<!-- facts -->\n<!-- /facts -->\nc\n"
    (tmp_path / "MODEL_CARD.md").write_text(text)
    evaluate.write_card("| 1\\2 |", "few")
    written = (tmp_path / "MODEL_CARD.md").read_text()
    assert written == ("a\n<!-- figures -->\n| 1\\2 |\n<!-- /figures -->\nb\n<!-- facts -->\nfew\n<!-- /facts -->\nc\n")


def test_the_grid_holds_every_picture(tmp_path, monkeypatch):
    from PIL import ImageFont

    font = ImageFont.load_default(13)
    monkeypatch.setattr(ImageFont, "truetype", lambda name, size: font)
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    draw_grid(
        [(red, "What is it?", "red", True), (blue, "What is it?", "I really do not know", False)] * 4,
        tmp_path / "g.png",
        "any",
    )
    grid = Image.open(tmp_path / "g.png").convert("RGB")
    counts = {colour: count for count, colour in grid.getcolors(1 << 20)}
    assert counts[255, 0, 0] == counts[0, 0, 255] == 4 * 120 * 120
