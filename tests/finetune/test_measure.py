"""The second evaluation of visglm-tiny: its renderer, what it counts as right, and what it writes down."""

from __future__ import annotations

import ast
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

import asked  # noqa: E402 (a folder of scripts, found through the path above)
import calibration  # noqa: E402
import cases  # noqa: E402
import measure  # noqa: E402
import photographs  # noqa: E402
import plain_scenes  # noqa: E402
import pupil  # noqa: E402
import speech  # noqa: E402
from concepts import Concept, load_concepts, load_unseen  # noqa: E402

from visglm import VisGLM  # noqa: E402
from visglm.explain import answer_log_likelihood  # noqa: E402
from visglm.prompt import Turn, render  # noqa: E402

CONCEPTS = [
    Concept(("1",), ("red apple", "fuji"), ("红苹果",), "food"),
    Concept(("2",), ("apple",), ("苹果", "林檎"), "food"),
    Concept(("3",), ("hippopotamus", "hippo"), ("河马",), "animal"),
    Concept(("4",), ("horse",), ("马",), "animal"),
    Concept(("5",), ("sea lion",), ("海狮",), "animal"),
    Concept(("6",), ("lion",), ("狮子",), "animal"),
    Concept(("7",), ("hot dog",), ("热狗",), "food"),
    Concept(("8",), ("dog",), ("狗",), "animal"),
]
# Discs and bars in OpenMoji's colours, in the middle of a square with a wide margin.
ICONS = {
    "red-disc": '<circle cx="36" cy="36" r="18" fill="#ea5a47"/>',
    "blue-bar": '<rect x="10" y="30" width="52" height="10" fill="#92d3f5"/>',
    "ink": '<rect x="20" y="20" width="30" height="30" fill="#000"/>',
    "two-coloured": '<rect x="20" y="20" width="16" height="30" fill="#fcea2b"/>'
    '<rect x="36" y="20" width="16" height="30" fill="#5c9e31"/>',
    "outlined": '<rect x="20" y="20" width="32" height="32" fill="#b1cc33" stroke="#000" stroke-width="4"/>',
}


@pytest.fixture
def drawings(tmp_path) -> plain_scenes.Drawings:
    icons = {name: {"body": body} for name, body in ICONS.items()}
    (tmp_path / "icons.json").write_text(json.dumps({"icons": icons, "width": 72, "height": 72}))
    (tmp_path / "chars.json").write_text(json.dumps({str(number): name for number, name in enumerate(ICONS, 1)}))
    return plain_scenes.Drawings(tmp_path)


@pytest.fixture
def vocabulary() -> asked.Vocabulary:
    return asked.Vocabulary(CONCEPTS)


def imported(name: str, seen: set[str]) -> set[str]:
    """The scripts of the folder that a script is made of."""
    if name in seen:
        return seen
    seen.add(name)
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text("utf-8"))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for module in modules:
            if (FOLDER / f"{module}.py").is_file():
                imported(module, seen)
    return seen


def test_the_second_evaluation_shares_no_code_with_what_teaches():
    assert imported("measure", set()) == {
        "measure", "asked", "calibration", "card", "cases", "concepts", "photographs", "plain_scenes", "pupil", "speech"
    }  # fmt: skip


def test_drawings_are_cut_close_and_have_the_colour_of_their_paint(drawings):
    known = drawings.of([Concept((str(number),), (str(number),), ("",), "tool") for number in range(1, 6)])
    assert known == dict(enumerate(ICONS))
    cut = drawings.cut("red-disc", 100, 60)
    assert cut.size == (60, 60) and cut.getbbox(alpha_only=True) == (0, 0, 60, 60)
    wide = drawings.cut("blue-bar", 100, 100)
    assert wide.width == 100 and 17 <= wide.height <= 22
    colours = {name: drawings.colour(name) for name in ICONS}
    assert colours == {"red-disc": "red", "blue-bar": "blue", "ink": "black", "two-coloured": "", "outlined": "green"}


@pytest.mark.parametrize("number", range(1, 7))
def test_every_thing_is_in_the_picture_and_where_it_is_said_to_be(drawings, number, monkeypatch):
    """Red discs on white, found again as patches of red."""
    import scipy.ndimage

    monkeypatch.setattr(plain_scenes, "ground", lambda draw: (255, 255, 255))
    monkeypatch.setattr(plain_scenes, "SIDES", (384,))
    layouts = set()
    for scene in plain_scenes.plain_scenes(drawings, {7: "red-disc"}, [number] * 30, seed=number):
        layouts.add(scene.layout)
        pixels = np.asarray(scene.picture).astype(int)
        red = (pixels[..., 0] > 180) & (pixels[..., 2] < 140)
        _, found = scipy.ndimage.label(scipy.ndimage.binary_erosion(red, iterations=2))
        assert found == len(scene.things) == number
        assert {(thing.concept, thing.colour) for thing in scene.things} == {(7, "red")}
        if number == 1 and scene.layout == "tight":
            rows, columns = red.any(1).nonzero()[0], red.any(0).nonzero()[0]
            assert max(np.ptp(rows) / red.shape[0], np.ptp(columns) / red.shape[1]) > 0.97
        for quadrant in {thing.place for thing in scene.things} - {""}:
            # Something red is on every side that a thing is said to be on; halves of things do not reach over.
            sides = {"top": red[: red.shape[0] // 2], "bottom": red[red.shape[0] // 2 :]}
            part = next((rows for side, rows in sides.items() if side in quadrant), red)
            middle = part.shape[1] // 2
            if "left" in quadrant or "right" in quadrant:
                part = part[:, :middle] if "left" in quadrant else part[:, middle:]
            assert part.any(), (scene.layout, quadrant)
        if number == 4:
            assert len({thing.place for thing in scene.things}) == 4
    assert layouts == ({"tight", "margin", "corner", "small"} if number == 1 else {"near", "far"})


def test_scenes_are_of_all_sizes_shapes_and_the_same_each_time(drawings):
    known = {0: "red-disc", 1: "blue-bar"}
    scenes = plain_scenes.plain_scenes(drawings, known, [1, 2] * 40, seed=3, copies=0.5)
    sizes = [scene.picture.size for scene in scenes]
    assert min(map(min, sizes)) == 64 and max(min(size) for size in sizes) == 1024
    assert {size[0] > size[1] for size in sizes} == {True, False} and any(size[0] == size[1] for size in sizes)
    pairs = [{thing.concept for thing in scene.things} for scene in scenes[1::2]]
    assert {1, 2} == {len(pair) for pair in pairs}  # copies of one thing, and two things
    again = plain_scenes.plain_scenes(drawings, known, [1, 2] * 40, seed=3, copies=0.5)
    assert all(np.array_equal(one.picture, other.picture) for one, other in zip(scenes, again, strict=True))


def test_pictures_come_back_from_files():
    ramp = Image.linear_gradient("L").convert("RGB")
    assert len(plain_scenes.as_file(ramp, "palette").getcolors(1000)) <= plain_scenes.NUM_COLOURS
    assert np.array_equal(plain_scenes.as_file(ramp, "png"), ramp)
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    assert not np.array_equal(plain_scenes.as_file(noise, "jpeg"), noise)


def test_other_words_and_common_names_are_right_and_longer_ones_are_not(vocabulary):
    assert set(vocabulary.accepted(CONCEPTS[0], "en")) == {"red apple", "fuji", "apple"}
    assert set(vocabulary.accepted(CONCEPTS[0], "zh")) == {"红苹果", "苹果"}
    assert vocabulary.accepted(CONCEPTS[4], "en") == ("sea lion",)  # no lion
    assert vocabulary.accepted(CONCEPTS[6], "en") == ("hot dog",)  # of another group
    horse = asked.names_first(vocabulary, vocabulary.accepted(CONCEPTS[3], "zh"), "zh")
    assert horse("这是马。") and not horse("这是河马。")
    lion = asked.names_first(vocabulary, ("lion",), "en")
    assert lion("It is a lion.") and lion("Two lions!") and not lion("It is a sea lion.") and not lion("")
    apple = asked.names_first(vocabulary, vocabulary.accepted(CONCEPTS[0], "en"), "en")
    assert apple("An apple.") and apple("Perhaps it is a red apple or a dog.") and not apple("A dog or an apple.")


@pytest.mark.parametrize(
    "judge, right, wrong",
    [
        (asked.says_number(2, "en"), ("There are 2 objects.", "Two."), ("12", "three", "more than 2, many")),
        (asked.says_number(2, "zh"), ("两个。", "图中有2个物体。"), ("三个", "图中有四个以上的物体。")),
        (asked.says_number(6, "en"), ("There are more than four objects.", "6"), ("There are 4 objects.", "16")),
        (asked.says_number(5, "zh"), ("图中有四个以上的物体。", "5个"), ("图中有4个物体。",)),
        (asked.says_yes(True, "en"), ("Yes, there is a dog.",), ("No, yes.", "")),
        (asked.says_yes(False, "zh"), ("没有，图中没有狗。", "没有"), ("有，图中有狗。",)),
        (asked.says_yes(True, "zh"), ("有，图中有狗。",), ("没有。",)),
        (asked.says_place("top left", "en"), ("In the top left.", "upper left"), ("at the top", "top right")),
        (asked.says_place("left", "zh"), ("在左边。",), ("在左上角。", "右边")),
        (asked.says_colour("grey", "en"), ("It is gray.",), ("It is a greyhound, black.", "blue and grey")),
        (asked.says_colour("orange", "zh"), ("它是橙色的。", "橘色"), ("它是黄色的。",)),
        (asked.says_group("food", "en"), ("It is food.",), ("It is an animal.",)),
        (asked.says_group("sport or game", "en"), ("It is a game.", "a sport or game"), ("a vehicle",)),
        (asked.says_group("food", "zh"), ("这属于食物。",), ("这属于动物。",)),
        (cases.only("second", "first"), ("The second one.",), ("The first or the second one.", "")),
    ],
)  # fmt: skip
def test_what_is_right(judge, right, wrong):
    assert all(map(judge, right))
    assert not any(map(judge, wrong))


def test_a_description_has_every_thing_at_its_place_and_no_other(vocabulary):
    judge = asked.says_all(vocabulary, [(("dog",), "left"), (("apple", "red apple"), "right")], "en")
    assert judge("There are 2 objects: a dog on the left, a red apple on the right.")
    assert judge("An apple on the right and a dog on the left.")
    assert not judge("There are 2 objects: a dog on the right, an apple on the left.")
    assert not judge("A dog on the left.")
    assert not judge("A dog on the left, an apple on the right, a horse at the top.")
    chinese = asked.says_all(vocabulary, [(("狗",), "top left"), (("狗",), "bottom right")], "zh")
    assert chinese("图中有2个物体：左上角是狗，右下角是狗。") and not chinese("图中有2个物体：左上角是狗，左下角是狗。")


def test_who_is_unsure_says_so():
    for text, language in (("Perhaps it is a cat or a dog.", "en"), ("可能是西葫芦或黄瓜。", "zh")):
        assert asked.is_unsure(text, language)
    assert asked.is_unsure("I cannot tell from this picture.", "en") and asked.is_unsure("这张图片里看不出来。", "zh")
    assert not asked.is_unsure("It is a cat.", "en") and not asked.is_unsure("这是猫。", "zh")


@pytest.mark.parametrize(
    "answer, language, wrong",
    [
        ("It is a在左边.", "en", {"mixed"}),
        ("It is a工具工具.", "en", {"mixed", "doubled"}),
        ("没有，图中没有 pig。", "zh", {"mixed"}),
        ("这是T恤。", "zh", set()),
        ("我是visglm-tiny。", "zh", set()),
        ("There are 4 objects: a cat", "en", {"broken"}),
        ("", "zh", {"mixed", "broken"}),
        ("It is a umbrella.", "en", {"article"}),
        ("It is an ox.", "en", set()),
        ("It is a sunglasses.", "en", {"article"}),
        ("It is a pair of sunglasses.", "en", set()),
        ("It is an unicorn.", "en", {"article"}),
        ("It is an hourglass.", "en", set()),
        ("There are 2 objects: a bee at the top, an anchor at the bottom.", "en", set()),
        ("这是猩猩。", "zh", set()),
    ],
)
def test_faults_of_sentences(answer, language, wrong):
    assert speech.faults(answer, language) == wrong


def test_faults_are_counted_by_language():
    counted = speech.speech_figures([("en", "It is a cat."), ("en", "It is a狗."), ("zh", "这是狗。")])
    assert counted == {"en": {"num": 2, "faults": {"mixed": 1}}, "zh": {"num": 1, "faults": {}}}


def test_a_probability_is_that_of_the_answer_s_tokens():
    vlm = VisGLM.from_pretrained()
    picture = Image.effect_noise((80, 80), 90).convert("RGB")
    embeds = vlm.encode([picture])
    asked_of = [("What is this?", "It is a cat.", "en"), ("图里有几个东西？", "图中有2个物体。", "zh")]
    found = calibration.probabilities(vlm, [(embeds[0], *one) for one in asked_of])
    for probability, (question, answer, language) in zip(found, asked_of, strict=True):
        row = render(
            [Turn(question, answer, num_images=1)], tokenizer=vlm.tokenizer, style="visualglm",
            num_query_tokens=vlm.model.config.num_query_tokens, language=language,
        )  # fmt: skip
        with torch.no_grad():
            expected = answer_log_likelihood(vlm.model, row.input_ids, row.labels, embeds).exp().item()
        assert probability == pytest.approx(expected, rel=1e-3)


def test_the_error_of_calibration():
    sure = [calibration.Sure(0.95, number < 19, False) for number in range(20)]
    assert calibration.expected_calibration_error(sure) == pytest.approx(0.0, abs=1e-6)
    overconfident = [calibration.Sure(0.95, False, False), calibration.Sure(0.15, True, True)]
    assert calibration.expected_calibration_error(overconfident) == pytest.approx(0.9)
    figures = calibration.calibration_figures([*sure, calibration.Sure(0.2, False, True)])
    assert figures["confident"] == pytest.approx(20 / 21, abs=1e-4) and figures["confident_right"] == 0.95


def test_made_up_names_are_of_both_scripts_and_nobody_s():
    names = pupil.made_up(60)
    assert len(set(names)) == 60 and [language for language, _ in names] == ["en", "zh"] * 30
    assert all(name.isascii() == (language == "en") for language, name in names)
    known = {name.lower() for concept in load_concepts() for name in (*concept.english, *concept.chinese)}
    assert not known & {name.lower() for _, name in names}
    assert len(load_unseen()) >= pupil.NUM_TAUGHT  # drawings of things that it knows no names of


COLUMNS = ("file", "set", "licence", "class_en", "class_zh", "split", "group", "colour", "source_label", "source_file")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photographs of two sets, in plain colours."""
    rows = [
        ("a.jpg", "GroceryStore", "red apple", "红苹果|苹果", "food", "red", "Royal-Gala"),
        ("b.jpg", "GroceryStore", "banana", "香蕉", "food", "yellow", "Banana"),
        ("c.png", "Azure samples", "fork|table fork", "叉子", "tool", "", "fork"),
        ("e.png", "Azure samples", "fork|table fork", "叉子", "tool", "", "fork"),
        ("d.jpg", "GroceryStore", "banana", "香蕉", "food", "yellow", "Banana"),
    ]
    for file, *_ in rows:
        Image.new("RGBA" if file.endswith("png") else "RGB", (40, 30)).save(tmp_path / file)
    with (tmp_path / "photos.tsv").open("w", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(
            [
                "file",
                "set",
                "licence",
                "class_en",
                "class_zh",
                "split",
                "group",
                "colour",
                "source_label",
                "source_file",
            ]
        )
        for name, set_name, english, chinese, group, colour, label in rows:
            split = "val" if name == "c.png" else "train"
            writer.writerow([name, set_name, "MIT", english, chinese, split, group, colour, label, "x"])
    return tmp_path


def test_whole_sets_and_labels_are_held_out(folder):
    found = photographs.read_folder(folder)
    assert [photograph.held_out for photograph in found] == [False, True, True, False, True]
    assert found[2].english == ("fork", "table fork") and found[2].set == "Azure"
    assert np.asarray(found[2].open()).min() == 255  # what is cut out stands on white
    kept = photographs.held_out(found, most=1)
    assert [photograph.set for photograph in kept] == ["GroceryStore", "Azure"]
    with pytest.raises(SystemExit, match="PHOTOGRAPHS"):
        photographs.read_folder(folder / "nowhere")


def test_a_collage_says_where_its_photographs_are():
    paints = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue", "yellow")]
    draw = random.Random(1)
    for number in range(2, 5):
        for _ in range(8):
            sheet, places = photographs.collage(paints[:number], draw)
            pixels = np.asarray(sheet).astype(int)
            for paint, place in zip(paints, places, strict=False):
                there = (np.abs(pixels - paint.getpixel((0, 0))).sum(-1) < 9).nonzero()
                row, column = (axis.mean() / sheet.height for axis in there)
                said = {side for side, holds in zip(("left", "right", "top", "bottom"), (
                    column < 0.45, column > 0.55, row < 0.45, row > 0.55), strict=True) if holds}  # fmt: skip
                assert said == set(place.split())


def test_cases_ask_both_languages_about_one_picture_and_alternate_presence(drawings, monkeypatch):
    fewer = {"NUM_NAMES": 24, "NUM_COUNTED": 4, "NUM_SEVERAL": 24, "NUM_PRESENCE": 24, "NUM_TURNS": 12}
    for name, number in fewer.items():
        monkeypatch.setattr(cases, name, number)
    concepts = [
        Concept((str(number),), (name.replace("-", " "),), (f"第{number}样",), "tool")
        for number, name in enumerate(ICONS, 1)
    ]
    vocabulary = asked.Vocabulary(concepts)
    found = cases.scene_cases(concepts, [], vocabulary, drawings)
    by_figure: dict[str, list[asked.Case]] = {}
    for case in found:
        by_figure.setdefault(case.figure, []).append(case)
    assert {figure for figure in measure.WANTED if figure.startswith("plain")} - {"plain: group, unseen"} <= set(
        by_figure
    )
    for figure in ("plain: name", "plain: count", "plain: more than four", "plain: presence", "plain: where"):
        languages = [case.language for case in by_figure[figure]]
        assert languages == ["en", "zh"] * (len(languages) // 2)
        some = by_figure[figure]
        assert all(one.turns[0][0][0] is two.turns[0][0][0] for one, two in zip(some[::2], some[1::2], strict=True))
    answers = [case.is_right("Yes.") for case in by_figure["plain: presence"][::2]]
    assert answers == [True, False] * (len(answers) // 2)
    second = by_figure["turns: the second of two"][0]
    assert len(second.turns) == 1 and len(second.turns[0][0]) == 2
    this_one = by_figure["turns: and this one?"][0]
    assert [len(pictures) for pictures, _ in this_one.turns] == [1, 1]
    switched = by_figure["turns: in the other language"]
    assert {case.language for case in switched} == {"en", "zh"}
    for case in switched:
        assert case.turns[0][1].isascii() == (case.language == "zh") and case.turns[1][0] == ()


def test_answers_are_those_of_a_conversation():
    vlm = VisGLM.from_pretrained()
    eyes = measure.Eyes(vlm.model, vlm.processor)
    one, two = (Image.effect_noise((70, 50), 40 + 40 * number).convert("RGB") for number in range(2))
    looked = []
    hook = vlm.model.model.vision.vit.register_forward_pre_hook(lambda _, given: looked.append(len(given[0])))
    turns = (((one,), "What is this?"), ((two,), "What colour is it?"))
    asked_of = [
        asked.Case("a", "en", "name", turns[:1], bool),
        asked.Case("b", "en", "colour", turns, bool),
        asked.Case("c", "zh", "second", (((one, two), "第二张图里是什么？"),), bool),
    ]
    texts = measure.answer(eyes, asked_of)
    hook.remove()
    assert sum(looked) == 2  # each picture once
    first = vlm.chat(one, "What is this?", max_new_tokens=72)
    assert texts[0] == first.text
    assert texts[1] == vlm.chat(two, "What colour is it?", first.history, max_new_tokens=72).text
    assert texts[2] == vlm.chat([one, two], "第二张图里是什么？", max_new_tokens=72).text
    figures = measure.shares(asked_of, ["yes", "", "yes"])
    assert figures["a"]["en"]["share"] == figures["c"]["zh"]["share"] == 1 and figures["b"]["en"]["share"] == 0


def test_the_card_shows_the_figures_of_the_weights_in_the_package():
    from visglm.checkpoint import EMBEDDED_MODEL

    measured, before = (json.loads((FOLDER / f"{name}.json").read_text("utf-8")) for name in ("measured", "before"))
    card = (FOLDER / "MODEL_CARD.md").read_text("utf-8")
    assert f"<!-- measured -->\n{measure.tables(measured, before)}\n<!-- /measured -->" in card
    assert measured["weights_sha256"] == measure.sha256(Path(EMBEDDED_MODEL) / "model.safetensors")
    assert sum(by["num"] for by in measured["speech"].values()) >= 10_000
    assert card.index("<!-- measured -->") < card.index("<!-- figures -->")  # the second renderer first
