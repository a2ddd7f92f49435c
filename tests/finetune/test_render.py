"""How visglm-tiny's drawings are read from what is no vector graphics."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[2] / "finetune" / "visglm-tiny"))

from concepts import Concept  # noqa: E402 (a folder of scripts, found through the path above)
from render import (  # noqa: E402
    PICTURE_SIZE,
    colour_in,
    draw_glyphs,
    draw_pictures,
    drawings,
    files_of,
    is_line_art,
    render,
    source,
)

LETTERS = [Concept((f"{ord(letter):04X}",), (letter,), (letter,), "tool") for letter in "LO"]
NOTHING = Concept(("1F9FF", "004C-200D-004F"), ("amulet",), ("护身符",), "tool")  # not in the font; two letters in one


@pytest.fixture
def font(tmp_path) -> Path:
    """The font inside Pillow."""
    file = tmp_path / "font.ttf"
    file.write_bytes(ImageFont.load_default(size=20).font_bytes)
    return file


def test_glyphs_fill_the_square_and_are_line_art(font):
    drawn = list(draw_glyphs([font], [*LETTERS, NOTHING]))
    assert [index for index, _ in drawn] == [0, 1]
    for (_, picture), letter in zip(drawn, LETTERS, strict=True):
        assert picture.shape == (4, PICTURE_SIZE, PICTURE_SIZE) and picture.dtype == np.uint8
        rows, columns = picture[3].any(1).nonzero()[0], picture[3].any(0).nonzero()[0]
        assert 0.9 * PICTURE_SIZE <= max(np.ptp(rows), np.ptp(columns)) <= PICTURE_SIZE - 2, letter
        # In the middle.
        assert rows.min() + rows.max() == pytest.approx(PICTURE_SIZE, abs=3)
        assert columns.min() + columns.max() == pytest.approx(PICTURE_SIZE, abs=3)
        assert is_line_art(picture)
    # An L has ink at the bottom left only, an O none in the middle.
    assert drawn[0][1][3, -12, 70] > drawn[0][1][3, 12, 70] and not drawn[1][1][3, 56, 56]


def test_pictures_are_found_by_code_point_and_keep_their_shape(tmp_path):
    picture = Image.new("RGBA", (256, 128))
    ImageDraw.Draw(picture).rectangle((0, 0, 255, 127), fill="red")
    picture.save(tmp_path / "2604-fe0f.webp", lossless=True)
    Image.new("RGBA", (8, 8)).save(tmp_path / "1f600.webp")
    concepts = [*LETTERS, Concept(("2604",), ("comet",), ("彗星",), "weather")]
    ((index, drawn),) = draw_pictures(sorted(tmp_path.iterdir()), concepts)
    assert index == 2
    assert drawn[:, 56, 5].tolist() == [255, 0, 0, 255]
    opaque = drawn[3].any(1).nonzero()[0]
    assert (opaque.min(), opaque.max()) == (28, 83)  # half as high as wide


def ring() -> np.ndarray:
    """A square drawn in ink, halved by a line."""
    picture = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((16, 16, 95, 95), outline="black", width=5)
    draw.line((56, 16, 56, 95), fill="black", width=5)
    return np.asarray(picture).transpose(2, 0, 1)


def test_closed_areas_are_painted_at_random_or_like_another_drawing():
    drawn = ring()
    left, right, outside = (slice(None), 56, 30), (slice(None), 56, 80), (slice(None), 5, 5)
    painted = colour_in(drawn, np.random.default_rng(0))
    assert painted[3][left[1:]] == painted[3][right[1:]] == 255 and painted[3][outside[1:]] == 0
    assert painted[:3, 56, 18].max() == 0 and not is_line_art(painted)  # the ink stays

    # The other is smaller and elsewhere; half of it is red, half is blue.
    other = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE))
    ImageDraw.Draw(other).rectangle((60, 50, 69, 69), fill="red")
    ImageDraw.Draw(other).rectangle((70, 50, 79, 69), fill="blue")
    like = colour_in(drawn, np.random.default_rng(0), like=np.asarray(other).transpose(2, 0, 1))
    assert like[left].tolist() == pytest.approx([255, 0, 0, 255], abs=20)
    assert like[right].tolist() == pytest.approx([0, 0, 255, 255], abs=20)
    assert like[3][outside[1:]] == 0 and like[:3, 56, 18].max() == 0
    # Where the other has nothing, colours stay as they were.
    empty = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE))
    ImageDraw.Draw(empty).line((0, 0, 0, 111), fill="red", width=3)
    ImageDraw.Draw(empty).line((111, 0, 111, 111), fill="red", width=3)
    unlike = colour_in(drawn, np.random.default_rng(0), like=np.asarray(empty).transpose(2, 0, 1))
    assert np.array_equal(unlike, painted)


def test_paint_at_random_is_often_black_grey_or_white():
    drawn, random = ring(), np.random.default_rng(0)
    painted = np.stack([colour_in(drawn, random) for _ in range(200)]).astype(int)
    left, right = painted[:, :3, 56, 30], painted[:, :3, 56, 80]
    assert 0.3 < (np.ptp(left, axis=1) == 0).mean() < 0.5
    assert (left.min(1) == 255).sum() > 4 and (left.max(1) < 80).sum() > 4
    assert 0.4 < (left == right).all(1).mean() < 0.8  # not always two colours


def test_line_art_is_painted_to_train_on_and_left_as_it_is_to_evaluate(font, monkeypatch):
    """Two styles: the letters of a font, an O of which is the only thing in colour."""
    coloured = np.zeros((4, PICTURE_SIZE, PICTURE_SIZE), np.uint8)
    coloured[[0, 3]] = 255
    coloured[1, :20] = 255
    drawn = {"one": [(1, coloured)], "two": list(draw_glyphs([font], LETTERS))}
    monkeypatch.setattr("render.files_of", lambda style, *_: [style])
    monkeypatch.setattr("render.slugs_by_hexcode", lambda icons: {})
    monkeypatch.setattr("render.draw_icons", lambda icons, style, *_: drawn[style])
    cache = render(font.parent, font.parent, ("one", "two"), LETTERS, paint=True)
    assert cache["concept"].tolist() == [1, 0, 0, 1, 1, 1]  # no drawing in colour of the L
    assert cache["style"].tolist() == [0, 1, 1, 1, 1, 1]
    # Every style of a thing weighs the same.
    assert cache["weight"].tolist() == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    assert cache["pictures"][5, :, 56, 56].tolist() == pytest.approx([255, 0, 0, 255], abs=20)
    plain = render(font.parent, font.parent, ("one", "two"), LETTERS, paint=False)
    assert plain["concept"].tolist() == [1, 0, 1]


def test_a_source_has_its_version_and_one_that_is_missing_is_named(tmp_path):
    node_modules, debian = tmp_path / "node_modules", tmp_path / "debian"
    package = node_modules / "@lobehub" / "fluent-emoji-3d"
    (package / "assets").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.1.0"}')
    (package / "assets" / "2604.webp").write_bytes(b"a")
    (package / "assets" / "2605.webp").write_bytes(b"b")
    sha256 = "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"  # of "ab"
    assert source("fluent-emoji-3d", node_modules, debian) == {"version": "1.1.0", "sha256": sha256}
    font = debian / "usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf"
    font.parent.mkdir(parents=True)
    font.write_bytes(b"ab")
    (tmp_path / "package.json").write_text('{"version": "0"}')  # npm's, of no package
    assert source("symbola", node_modules, debian) == {"sha256": sha256}
    with pytest.raises(SystemExit, match="noto-emoji"):
        files_of("noto-emoji", node_modules, debian)


def test_an_icon_shows_what_its_name_stands_for_first_or_alone():
    names = [
        ("dog", "pup"),
        ("poodle", "dog"),
        ("daisy", "flower"),
        ("hibiscus", "flower"),
        ("guide dog", "Dog", "harness"),
    ]
    concepts = [Concept((f"1F4{number:02}",), english, ("狗",), "animal") for number, english in enumerate(names)]
    icon_set = {"icons": {"dog": {}, "dog-outline": {}, "flower": {}, "pup": {}, "harness": {}, "poodle": {}}}
    assert drawings(icon_set, "mdi", concepts, {}) == [["dog", "dog-outline", "pup"], ["poodle"], [], [], ["harness"]]
    # A set that lists code points, but not all: what has none goes by its name.
    found = drawings(icon_set, "streamline-emojis", concepts, {"1F401": {"poodle"}})
    assert found == [["dog"], ["poodle"], [], [], ["harness"]]
