"""What a checkpoint says of how it answers holds where nobody says otherwise; one word is greedy."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.families.made import Reference, load, make
from tests.serve.knocking import client_of, service_for
from visglm import VisGLM
from visglm.cli import main
from visglm.errors import CheckpointError
from visglm.sampling import GREEDY

SAYS = {"do_sample": True, "temperature": 1.5, "top_p": 0.95, "top_k": 40, "repetition_penalty": 4.0}
OWN = {name: SAYS[name] for name in GREEDY if name in SAYS}
TALK, ROOM = [("Where is the red cat?", "", [])], 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("glm46v", tmp_path_factory.mktemp("says") / "glm46v", **SAYS)


@pytest.fixture(scope="module")
def vlm(folder):
    return load(folder)


def ask(vlm, **settings):
    return vlm.chat(None, TALK[0][0], max_new_tokens=ROOM, **settings).ids


def test_what_the_folder_says_holds(vlm):
    assert vlm.defaults == {**GREEDY, **OWN}
    assert ask(vlm, seed=3) == ask(vlm, seed=3, **OWN) != ask(vlm, temperature=0)
    assert len({ask(vlm) for _ in range(5)}) > 1
    assert ask(vlm, seed=3, top_k=1) == ask(vlm, temperature=0)  # of several, one alone is changed
    [told] = vlm.batch([(None, TALK[0][0])], progress=False, max_new_tokens=ROOM, seed=3)
    stream = vlm.stream_chat(None, TALK[0][0], max_new_tokens=ROOM, seed=3)
    assert list(stream) is not None
    assert told.ids == stream.reply.ids == ask(vlm, seed=3)


def test_greedy_is_one_word_away_and_that_of_transformers(vlm, folder):
    reference = Reference("glm46v", folder)
    _, ids = reference.answer(TALK, ROOM)  # do_sample=False, by the folder's own repetition_penalty
    assert list(ask(vlm, temperature=0)) == ids
    assert ask(vlm, temperature=0, repetition_penalty=1.0) != ask(vlm, temperature=0)


def test_each_draw_is_from_what_transformers_would_draw_from(vlm, folder):
    """The first tokens of many answers are among those that its processors leave, and not one alone."""
    reference = Reference("glm46v", folder)
    inputs = reference.inputs(TALK)
    slot = reference.network.config.image_token_id
    found = reference.network.generate(
        **inputs, max_new_tokens=1, output_scores=True, return_dict_in_generate=True, suppress_tokens=[slot]
    )
    allowed = set(torch.isfinite(found.scores[0][0]).nonzero().flatten().tolist())
    drawn = {vlm.chat(None, TALK[0][0], max_new_tokens=1, seed=seed).ids[0] for seed in range(40)}
    assert len(drawn) > 1 and drawn <= allowed


def test_nothing_said_is_greedy(models):
    for vlm in (*models.values(), VisGLM.from_pretrained(device="cpu")):
        assert vlm.defaults == GREEDY
    vlm = models["glm46v"]
    assert ask(vlm) == ask(vlm, temperature=0)


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ({"do_sample": False, "temperature": 0.8, "top_p": 0.6}, {"top_p": 0.6}),  # which greedy answers do not heed
        ({"do_sample": True, "top_k": 2}, {"temperature": 1.0, "top_k": 2}),
        ({"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05}, {"repetition_penalty": 1.05}),
    ],
)
def test_as_transformers_reads_it(tmp_path, folders, says, found):
    folder = shutil.copytree(folders["glm_ocr"], tmp_path / "copy")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | says), "utf-8")
    vlm = load(folder)
    assert vlm.defaults == {**GREEDY, **found}
    vlm.save_pretrained(tmp_path / "again")  # which transformers refuses to do of some published settings
    assert load(tmp_path / "again").defaults == vlm.defaults


def test_what_cannot_be_is_refused_as_it_is_loaded(tmp_path):
    folder = make("glm_ocr", tmp_path / "copy", do_sample=True, temperature=50.0)
    with pytest.raises(CheckpointError, match=r"generation_config.json: temperature must be between 0.01 and 5"):
        load(folder)


def test_it_is_saved_and_told(vlm, tmp_path, capsys):
    vlm.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").defaults == vlm.defaults
    assert main(["doctor", str(tmp_path / "again")]) == 0
    assert "temperature 1.5, top_p 0.95, top_k 40, repetition_penalty 4" in capsys.readouterr().out


def test_choices_and_scores_take_no_part_in_it(vlm, tmp_path):
    assert vlm.chat(None, "Hi", choices=["cat", "dog"]).scores
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]}] * 2
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    said = {row["prediction"] for row in vlm.evaluate(file, max_new_tokens=ROOM, progress=False).predictions}
    assert said == {vlm.chat(None, "Hi", temperature=0, max_new_tokens=ROOM).text}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/chat/completions", {"max_tokens": ROOM}, lambda told: told["choices"][0]["message"]["content"]),
        ("/v1/messages", {"max_tokens": ROOM}, lambda told: told["content"][-1].get("text")),
    ],
)
def test_the_server_takes_it_where_a_request_says_nothing(vlm, path, body, text):
    service = service_for(vlm)
    body = {"model": service.names.default, "messages": [{"role": "user", "content": TALK[0][0]}], **body}
    with client_of(service) as client:
        drawn = {json.dumps(text(client.post(path, json=body).json())) for _ in range(6)}
        greedy = {json.dumps(text(client.post(path, json={**body, "temperature": 0}).json())) for _ in range(3)}
    assert len(greedy) == 1 < len(drawn)
