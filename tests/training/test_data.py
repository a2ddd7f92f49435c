"""Rows of every format and container become the same conversations; splits, cuts, batches."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visglm import VisGLM, VisGLMProcessor, checkpoint
from visglm.errors import DataError
from visglm.prompt import IGNORE_INDEX, Turn, render
from visglm.training.collator import Collator
from visglm.training.containers import LINE_BLOCK, is_stream, open_rows
from visglm.training.data import StreamData, TrainingData
from visglm.training.formats import (
    CALLED,
    CAPTION_QUESTIONS,
    COLUMNS,
    FORMATS,
    KNOWN_KEYS,
    format_of,
    read_extras,
    read_row,
    spelling,
    to_common,
    unused_keys,
)
from visglm.training.index import MAX_HELD_OUT, Index, build_index, check_bad_share, split_held_out
from visglm.training.renderer import Renderer

from .samples import captions, picture, write_lines, write_pictures


@pytest.fixture(scope="module")
def processor() -> VisGLMProcessor:
    return VisGLMProcessor.from_pretrained(checkpoint.EMBEDDED_MODEL)


def dataset(source: Any, processor: VisGLMProcessor, max_length: int = 200) -> TrainingData:
    rows = open_rows(source)
    index = build_index(rows)
    return TrainingData(rows, index, np.arange(len(index.rows)), Renderer(processor, max_length))


# ---- formats ------------------------------------------------------------------------------------------------------

ROWS = {
    "common": {
        "images": ["a.png"],
        "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
    },
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}],
            },
            {"role": "assistant", "content": "A cat."},
        ]
    },
    "llava": {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
    },
    "visualglm": {"img": "a.png", "prompt": "What?", "label": "A cat."},
    "question": {"image": "a.png", "question": "What?", "answer": "A cat."},
    "caption": {"image": "a.png", "caption": "A cat."},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_becomes_the_common_row(name):
    assert format_of(ROWS[name]) == name
    common = to_common(ROWS[name], "What?")
    assert to_common(common) == common
    conversation = read_row(ROWS[name], "What?")
    assert conversation.turns == (Turn("What?", "A cat.", 1),)
    assert conversation.images == ("a.png",)


@pytest.mark.parametrize(
    "row, name",
    [
        ({"图片": "a.png", "问题": "What?", "回答": "A cat."}, "question"),
        ({"图像路径": "a.png", "提问": "What?", "答案": "A cat."}, "question"),
        ({"圖片": "a.png", "問題": "What?", "回答": "A cat."}, "question"),
        ({"Image": "a.png", "Question": "What?", "Answer": "A cat."}, "question"),
        ({"image": "a.png", "prompt": "What?", "label": "A cat."}, "question"),
        ({"IMG": "a.png", "Prompt": "What?", "Label": "A cat."}, "visualglm"),
        ({"图片": "a.png", "描述": "A cat."}, "caption"),
        ({"照片": "a.png", "文本": "A cat."}, "caption"),
        ({"文件名": "a.png", "图片说明": "A cat."}, "caption"),
        ({"Image": "a.png", "Caption": "A cat."}, "caption"),
        ({"IMAGE": "a.png", "TEXT": "A cat."}, "caption"),
        ({"File Name": "a.png", " Text": "A cat."}, "caption"),
        ({"filename": "a.png", "Caption": "A cat.", "ID": 5, "Type": "cats"}, "caption"),
        ({"Image": None, "图片": "a.png", "描述": "A cat.", "caption": None}, "caption"),
        ({"Images": ["a.png"], "Messages": ROWS["common"]["messages"]}, "common"),
        ({"Image": "a.png", "Conversations": ROWS["llava"]["conversations"]}, "llava"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_columns_in_chinese_or_in_capitals_are_the_same_columns(row, name):
    assert format_of(row) == name
    conversation = read_row(row, "What?")
    assert conversation.turns == (Turn("What?", "A cat.", 1),)
    assert conversation.images == ("a.png",)
    assert list(unused_keys(row)) == []
    assert read_extras(row) == ((), row.get("Type"))


def test_of_columns_that_mean_the_same_the_plainest_counts_and_the_others_are_told():
    row = {"说明": "A dog.", "图片": "b.png", "描述": "A cat.", "Image": "a.png", "备注": "old"}
    conversation = read_row(row)
    assert (conversation.images, conversation.turns[0].answer) == (("a.png",), "A cat.")
    assert set(unused_keys(row)) == {"说明", "图片", "备注"}
    row = {"Caption": "A dog.", "caption": "A cat.", "image": "a.png"}
    assert read_row(row).turns[0].answer == "A cat."
    assert list(unused_keys(row)) == ["Caption"]


def test_a_question_with_its_answer_counts_before_a_caption():
    row = {"图片": "a.png", "问题": "What?", "回答": "A cat.", "描述": "A cat in the sun."}
    assert read_row(row).turns == (Turn("What?", "A cat.", 1),)
    assert list(unused_keys(row)) == ["描述"]


@pytest.mark.parametrize("caption", ["描述", "text"])
def test_beside_a_question_a_caption_is_its_answer(caption):
    """The question was left out, and another one asked in its place."""
    row = {"图片": "a.png", "问题": "坏了吗？", caption: "没有坏。"}
    assert read_row(row).turns == (Turn("坏了吗？", "没有坏。", 1),)
    assert format_of(row) == "question" and list(unused_keys(row)) == []


def test_a_prompt_beside_a_caption_is_none_of_a_person():
    row = {"image": "a.png", "prompt": "cat, 4k, masterpiece", "caption": "A cat."}
    assert read_row(row).turns == (Turn(CAPTION_QUESTIONS["en"][0], "A cat.", 1),)
    assert list(unused_keys(row)) == ["prompt"]


def test_a_table_may_hold_captions_and_questions(tmp_path):
    path = tmp_path / "rows.csv"
    lines = ("image,caption,question,answer", "a.png,A cat.,,", "b.png,,What?,A dog.", "c.png,A cow.,What?,")
    path.write_text("\n".join(lines), "utf-8")
    rows = open_rows(path)
    assert read_row(rows[0]).turns == (Turn(CAPTION_QUESTIONS["en"][0], "A cat.", 1),)
    assert read_row(rows[1]).turns == (Turn("What?", "A dog.", 1),)
    with pytest.raises(DataError, match="the answer of turn 1 is empty"):  # which of the two was meant?
        read_row(rows[2])


@pytest.mark.parametrize("row", [{"question": "", "answer": ""}, {"question": "", "answer": "", "caption": ""}])
def test_a_row_of_empty_cells_has_an_empty_answer(row):
    with pytest.raises(DataError, match="the answer of turn 1 is empty"):
        read_row({"image": "a.png"} | row)


def test_no_name_stands_for_two_columns():
    names = [*KNOWN_KEYS, *(name for names in CALLED.values() for name in names)]
    assert len(names) == len(set(names)) == len(COLUMNS) and all(spelling(name) == name for name in names)
    assert set(CALLED) <= set(KNOWN_KEYS)


def test_names_of_columns_are_told_as_they_were_written():
    with pytest.raises(DataError, match=r"keys 图片, 备注\. Expected"):
        read_row({"图片": "a.png", "备注": "A cat."})
    with pytest.raises(DataError, match="keys 问题, 回答"):  # without a picture it would teach words alone
        read_row({"问题": "What?", "回答": "A cat."})


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"picture": "a.png"}, "keys picture"),
        ([1], "list"),
        ({**ROWS["visualglm"], "label": " "}, "empty"),
        ({**ROWS["visualglm"], "label": None}, "NoneType"),
        ({**ROWS["common"], "images": ["a.png", "b.png"]}, "2 images, but 1 <image>"),
        ({**ROWS["common"], "images": []}, "0 images, but 1 <image>"),
        ({**ROWS["common"], "images": "a.png"}, "str"),
        ({"images": [], "messages": [{"role": "user", "content": "What?"}]}, "no answer"),
        ({"images": [], "messages": [{"role": "robot", "content": "What?"}]}, "robot"),
        ({"conversations": [{"from": "robot", "value": "What?"}]}, "robot"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "without a picture"),
        ({"image": "a.png", "caption": 5}, "int"),
    ],
)
def test_a_broken_row_says_what_is_wrong(row, problem):
    with pytest.raises(DataError, match=problem):
        read_row(row)


def test_pictures_without_marker_stand_before_the_first_question():
    row = {"images": ["a", "b"], "messages": [*ROWS["common"]["messages"]]}
    row["messages"][0] = {"role": "user", "content": "What?"}
    assert read_row(row).turns[0].num_images == 2


@pytest.mark.parametrize("language, caption", [("en", "A cat."), ("zh", "一只猫。")])
def test_captions_are_asked_for_in_their_own_language_always_the_same_way(language, caption):
    row = {"image": "a.png", "caption": caption}
    assert read_row(row).turns[0].question in CAPTION_QUESTIONS[language]
    assert read_row(row) == read_row(dict(row))
    assert read_row(row, "Name it.").turns[0].question == "Name it."


def test_questions_of_captions_vary():
    """By their number, and not by the caption, which they would tell."""
    row = {"image": "a", "caption": "A cat."}
    assert [read_row(row, number=number).turns[0].question for number in range(6)] == list(CAPTION_QUESTIONS["en"])
    assert read_row(row, number=6) == read_row(row)
    assert len({read_row({"image": "a", "caption": f"A cat {number}."}).turns[0].question for number in range(50)}) == 1


# ---- containers -----------------------------------------------------------------------------------------------------

CAPTIONS = [("a.png", "A cat."), ("b.png", 'Says "hi",\nthen leaves.'), ("c.png", "一只狗 {[ ]}。")]


def make_jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"image": image, "caption": text}, ensure_ascii=False) for image, text in CAPTIONS]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    return path


def make_json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps([{"image": image, "caption": text} for image, text in CAPTIONS], indent=1))
    return path


def make_csv(folder: Path) -> Path:
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("image", "caption"), *CAPTIONS])
    return folder / "rows.csv"


def make_imagefolder(folder: Path) -> Path:
    write_lines(folder / "metadata.jsonl", [{"file_name": image, "text": text} for image, text in CAPTIONS])
    return folder


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_shards(folder: Path) -> Path:
    for number, part in enumerate((CAPTIONS[:2], CAPTIONS[2:])):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as archive:
            for image, text in part:
                add_member(archive, f"data/{image}", (folder / image).read_bytes())
                add_member(archive, f"data/{Path(image).stem}.txt", text.encode())
    return folder


def make_dataset(folder: Path) -> Any:
    import datasets

    table = {"image": [str(folder / image) for image, _ in CAPTIONS], "caption": [text for _, text in CAPTIONS]}
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


@pytest.mark.parametrize(
    "make",
    [make_jsonl, make_json, make_csv, make_imagefolder, make_shards, make_dataset],
    ids=lambda make: make.__name__,
)
def test_every_container_gives_the_same_rows_and_pictures(make, tmp_path, processor):
    for number, (image, _) in enumerate(CAPTIONS):
        picture(number).save(tmp_path / image)
    source = make(tmp_path)
    data = dataset(source, processor)
    assert [data.conversation(number).turns[0].answer for number in range(len(data))] == [text for _, text in CAPTIONS]
    for number in range(3):
        assert np.array_equal(np.asarray(data.example(number).images[0]), np.asarray(picture(number)))
    assert len({data.where(number) for number in range(3)}) == 3
    again = pickle.loads(pickle.dumps(data))  # workers on some systems are sent it
    assert torch.equal(again[2]["input_ids"], data[2]["input_ids"])


def test_lines_are_numbered_as_editors_do(tmp_path):
    rows = open_rows(make_jsonl(tmp_path))
    assert [rows.where(number).rsplit(":", 1)[1] for number in range(3)] == ["1", "3", "5"]


def test_a_line_far_down_is_told_without_counting_all_before_it(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"image": "a.png", "caption": "A cat. " * 9}] * 3000)
    rows = open_rows(path)
    assert path.stat().st_size > 3 * LINE_BLOCK
    assert [rows.where(number).rsplit(":", 1)[1] for number in (0, 1234, 2999)] == ["1", "1235", "3000"]
    with path.open("r+b") as file:  # what has been counted is not read again
        file.write(b" " * LINE_BLOCK)
    assert rows.where(2999) == f"{path}:3000"


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("rows.jsonl", b"", "no rows"),
        ("rows.json", b'[{"image": "a"}, {"image"', "cut short"),
        ("rows.doc", b"hello", "none of these"),
        ("rows.txt", b"hello", "no rows"),
        ("rows.tar", b"hello", "no tar file"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        open_rows(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl does not exist"):
        open_rows(tmp_path / "no.jsonl")


def test_memory_stays_flat_however_long_the_file(tmp_path):
    line = b'{"messages":[{"role":"user","content":"What?"},{"role":"assistant","content":"%s"}]}\n' % (b"cat " * 200)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line * 5_000)
    tracemalloc.start()
    rows = open_rows(path)
    index = build_index(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index.rows) == 5_000
    assert peak < path.stat().st_size / 4


# ---- examples -------------------------------------------------------------------------------------------------------

CHAT = {
    "images": ["pictures/0.png", "pictures/1.png"],
    "messages": [
        {"role": "user", "content": "<image>What is this?"},
        {"role": "assistant", "content": "A red disc."},
        {"role": "user", "content": "<image>And this?"},
        {"role": "assistant", "content": "A green disc."},
    ],
}


def test_one_example_per_answer_with_the_pictures_up_to_it(tmp_path, processor):
    write_pictures(tmp_path, 2)
    data = dataset(write_lines(tmp_path / "rows.jsonl", [CHAT]), processor)
    assert [item["pixel_values"].shape[0] for item in map(data.__getitem__, range(2))] == [1, 2]
    turns = [Turn("What is this?", "A red disc.", 1), Turn("And this?", "A green disc.", 1)]
    for number in range(2):
        expected = render(turns[: number + 1], **data.renderer.options)
        assert data[number]["input_ids"].tolist() == expected.input_ids
        assert data[number]["labels"].tolist() == expected.labels


def test_a_cut_takes_old_turns_then_the_answer_and_never_a_slot(processor):
    turns = [Turn("Old question. " * 5, "Old answer."), Turn("What?", "cat " * 50, 1)]
    renderer = Renderer(processor, 60)
    rendered, num_dropped, is_cut = renderer.render(turns)
    whole = render(turns[1:], **renderer.options)
    assert (num_dropped, is_cut, len(rendered.input_ids)) == (1, True, 60)
    assert rendered.input_ids == whole.input_ids[:60]
    assert rendered.input_ids.count(processor.image_token_id) == processor.num_query_tokens
    assert sum(label != IGNORE_INDEX for label in rendered.labels) > 0


def test_old_turns_with_a_picture_stay(processor):
    turns = [Turn("What is this? " * 4, "A cat.", 1), Turn("And?", "cat " * 50)]
    rendered, num_dropped, _ = Renderer(processor, 70).render(turns)
    assert num_dropped == 0
    assert rendered.input_ids.count(processor.image_token_id) == processor.num_query_tokens


def test_a_question_that_does_not_fit_is_an_error(processor):
    with pytest.raises(DataError, match="no room for an answer within 20"):
        Renderer(processor, 20).render([Turn("What is this?", "A cat.", 1)])


def test_a_broken_picture_is_replaced_and_named(tmp_path, processor):
    path = captions(tmp_path, 3)
    (tmp_path / "pictures/1.png").write_bytes(b"garbage")
    data = dataset(path, processor)
    item = data[1]
    assert item["where"].endswith("train.jsonl:3")
    assert len(item["skipped"]) == 1 and "train.jsonl:2" in item["skipped"][0]


def test_when_everything_is_broken_it_says_so(tmp_path, processor):
    path = captions(tmp_path, 3)
    for file in (tmp_path / "pictures").iterdir():
        file.write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot be used"):
        dataset(path, processor)[0]


def test_missing_files_are_found_before_training(tmp_path):
    path = captions(tmp_path, 4)
    (tmp_path / "pictures/2.png").unlink()
    index = build_index(open_rows(path))
    assert list(index.rows) == [0, 1, 3]
    assert len(index.problems) == 1 and "train.jsonl:3" in index.problems[0]
    with pytest.raises(DataError, match="1 of 4 rows"):
        check_bad_share(1, 4, index.problems)
    check_bad_share(1, 4, index.problems, limit=0.25)


# ---- held-out split -------------------------------------------------------------------------------------------------


def test_the_split_is_stable_and_keeps_pictures_apart(tmp_path):
    names = write_pictures(tmp_path, 40)
    rows = [{"image": name, "caption": f"Caption {number} of {name}."} for name in names for number in range(3)]
    index = build_index(open_rows(write_lines(tmp_path / "rows.jsonl", rows)))
    train, held_out = split_held_out(index, 0.1)
    assert len(held_out) == 12 and len(train) == 108
    pictures = [{rows[index.rows[place]]["image"] for place in places} for places in (train, held_out)]
    assert not pictures[0] & pictures[1]
    assert np.array_equal(split_held_out(index, 0.1)[1], held_out)


def test_one_picture_of_very_many_rows_does_not_make_the_held_out_part_endless():
    index = Index()
    for row in range(4000):
        index.rows.append(row)
        index.groups.append(row % 2)
    train, held_out = split_held_out(index, 0.5)
    assert len(train) == 2000 and 250 <= len(held_out) <= MAX_HELD_OUT
    assert len({row % 2 for row in train}) == 1 and not set(train % 2) & set(held_out % 2)


@pytest.mark.parametrize("fraction, count", [(0.0, 0), (0.001, 0), (0.2, 0), (0.25, 1), (1.0, 3)])
def test_the_split_rounds_down_and_leaves_something_to_learn(tmp_path, fraction, count):
    train, held_out = split_held_out(build_index(open_rows(captions(tmp_path, 4))), fraction)
    assert (len(train), len(held_out)) == (4 - count, count)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_batches_are_padded_on_the_right_with_pictures_in_order(tmp_path, processor):
    write_pictures(tmp_path, 2)
    text = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    data = dataset(write_lines(tmp_path / "rows.jsonl", [text, CHAT]), processor)
    collator = Collator(processor.tokenizer.pad_token_id, (80, 80))
    batch = collator([data[number] for number in range(3)])
    lengths = [len(data[number]["input_ids"]) for number in range(3)]
    assert batch["attention_mask"].sum(-1).tolist() == lengths
    assert batch["attention_mask"][0].tolist() == [1] * lengths[0] + [0] * (max(lengths) - lengths[0])
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()
    assert torch.equal(batch["pixel_values"], torch.cat([data[1]["pixel_values"], data[2]["pixel_values"]]))
    assert collator([data[0]])["pixel_values"].shape == (0, 3, 80, 80)


def test_a_batch_without_anything_to_learn_is_an_error(tmp_path, processor):
    item = dataset(captions(tmp_path, 2), processor)[0]
    item["labels"] = torch.full_like(item["labels"], IGNORE_INDEX)
    with pytest.raises(DataError, match=r"no token to learn.*train\.jsonl:1"):
        Collator(3, (80, 80))([item])


@torch.no_grad()
def test_logits_are_asked_for_where_an_answer_goes_on_and_the_loss_is_that_of_all(tmp_path, processor):
    vlm = VisGLM.from_pretrained()
    data = dataset(write_lines(tmp_path / "rows.jsonl", [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in (("What is a cat?", "An animal."), ("Why?", "Nobody knows why that is."))
    ]), processor)  # fmt: skip
    batch = Collator(processor.tokenizer.pad_token_id, (80, 80))([data[0], data[1]])
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    whole = vlm.model(**{name: value for name, value in inputs.items() if name != "logits_to_keep"})
    part = vlm.model(**inputs)
    assert part.logits.shape[1] < whole.logits.shape[1]
    assert torch.allclose(part.logits, whole.logits[:, batch["logits_to_keep"]], atol=1e-4)
    assert float(part.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    last = vlm.model(**{**inputs, "logits_to_keep": 3, "num_items_in_batch": 1}).loss
    wanted = torch.nn.functional.cross_entropy(
        whole.logits[:, -3:-1].flatten(0, 1), inputs["labels"][:, -2:].flatten(), reduction="sum"
    )
    assert float(last) == pytest.approx(float(wanted), abs=1e-4)


def test_streams_are_read_row_by_row(tmp_path, processor):
    import datasets

    path = captions(tmp_path, 6)
    rows = [{**json.loads(line), "image": str(tmp_path / json.loads(line)["image"])} for line in path.open()]
    rows[3]["caption"] = " "
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    assert is_stream(stream) and not is_stream(rows) and not is_stream(str(path))
    items = list(StreamData(stream, Renderer(processor, 200), num_skipped_rows=1))
    assert [item["where"] for item in items] == ["row 1", "row 2", "row 4", "row 5"]
    assert "row 3" in items[2]["skipped"][0]
