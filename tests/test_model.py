"""Parity with the reference implementations, and the traps of a prefix-LM inside `generate`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, GlmConfig, StaticCache, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tests.tiny import expected, golden_model
from visglm import VisGLMConfig, VisGLMForConditionalGeneration
from visglm.errors import PromptError

PROMPT_LENGTH = 44  # 1 text id, 32 slots, 9 text ids, [gMASK], <sop>


@pytest.fixture(scope="module")
def model():
    return golden_model()


@pytest.fixture(scope="module")
def inputs(model):
    """The golden inputs, with an image slot's own id where the reference used the pad token."""
    golden = expected("visualglm")
    input_ids = golden["input_ids"].masked_fill(golden["input_ids"] == 3, model.config.image_token_id)
    return {"input_ids": input_ids, "pixel_values": expected("vision")["pixel_values"]}


@pytest.fixture(scope="module")
def prompt(inputs):
    return {**inputs, "input_ids": inputs["input_ids"][:, :PROMPT_LENGTH]}


def greedy(model, prompt, **kwargs):
    kwargs = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, **kwargs}
    return model.generate(**prompt, **kwargs)[:, prompt["input_ids"].shape[1] :]


def left_pad(rows, pad_token_id):
    length = max(row.shape[0] for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (length - row.shape[0], 0), value=pad_token_id) for row in rows])
    mask = torch.stack([(torch.arange(length) >= length - row.shape[0]).long() for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def test_vision_parity(model):
    golden, vision = expected("vision"), model.model.vision
    features = vision.vit(golden["pixel_values"])
    torch.testing.assert_close(features, golden["vit_out"], rtol=0, atol=1e-5)
    queries = vision.query_tokens.expand(features.shape[0], -1, -1)
    hidden_states = vision.qformer(queries, encoder_hidden_states=features).last_hidden_state
    torch.testing.assert_close(hidden_states, golden["qformer_out"], rtol=0, atol=1e-5)
    embeds = model.get_image_features(golden["pixel_values"]).pooler_output
    torch.testing.assert_close(embeds, golden["image_embeds"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_embeddings_logits_and_loss_parity(model, inputs):
    golden = expected("visualglm")
    derived = model.model.text.prompt_inputs(model.config.text_config, inputs["input_ids"], None)
    assert torch.equal(derived["position_ids"].transpose(0, 1), golden["position_ids"])
    outputs = model(**inputs, labels=golden["labels"])
    fused = model.model.fuse(inputs["input_ids"], outputs.image_embeds)
    torch.testing.assert_close(fused, golden["inputs_embeds"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.loss, golden["loss"][0], rtol=0, atol=1e-5)
    # float32 itself is good for 2e-4 here (the golden logits against float64), so the bridge's 1e-6 are kept out.
    logits = model(inputs["input_ids"], image_embeds=expected("vision")["image_embeds"]).logits
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=2e-4)
    torch.testing.assert_close(outputs.logits, golden["logits"], rtol=0, atol=1e-3)


@torch.no_grad()
def test_text_only_parity(model):
    golden = expected("visualglm")
    torch.testing.assert_close(model(golden["text_ids"]).logits, golden["text_logits"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", [{"use_cache": True}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_greedy_parity(inputs, prompt, cache, attention):
    model = golden_model()
    model.set_attn_implementation(attention)
    assert torch.equal(greedy(model, prompt, **cache), expected("visualglm")["greedy_ids"])


def test_greedy_logits_parity(model, prompt):
    outputs = model.generate(
        prompt["input_ids"], image_embeds=expected("vision")["image_embeds"], max_new_tokens=12, do_sample=False,
        eos_token_id=None, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    logits = torch.stack(outputs.logits, dim=1)
    torch.testing.assert_close(logits, expected("visualglm")["greedy_logits"], rtol=0, atol=2e-4)


def test_left_padded_batch_equals_one_by_one(model, prompt):
    """Rows of different lengths, with one picture, two pictures and none."""
    ids, pixels = prompt["input_ids"], prompt["pixel_values"]
    rows = [ids[0], torch.cat([ids[1][:33], ids[1]]), ids[2][33:]]
    batch = {**left_pad(rows, model.config.pad_token_id), "pixel_values": pixels}
    singles = [
        {"input_ids": rows[0][None], "pixel_values": pixels[:1]},
        {"input_ids": rows[1][None], "pixel_values": pixels[1:]},
        {"input_ids": rows[2][None]},
    ]
    for cache in ({}, {"cache_implementation": "static"}):
        together = greedy(model, batch, **cache)
        for row, single in zip(together, singles, strict=True):
            assert torch.equal(row, greedy(model, single)[0])


def test_right_padding_does_not_change_the_loss(model, inputs):
    golden = expected("visualglm")
    padded = torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=model.config.pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(inputs["input_ids"]), (0, 5))
    labels = torch.nn.functional.pad(golden["labels"], (0, 5), value=-100)
    loss = model(padded, pixel_values=inputs["pixel_values"], attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, golden["loss"][0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_several_tokens_after_the_cache_equal_one_pass(model, inputs):
    """Assisted decoding feeds several tokens at once: the mask must not mistake them for a prompt."""
    full = model(**inputs).logits
    derived = model.model.text.prompt_inputs(model.config.text_config, inputs["input_ids"], None)
    head = model(inputs["input_ids"][:, :PROMPT_LENGTH], pixel_values=inputs["pixel_values"], use_cache=True)
    tail = model(
        inputs["input_ids"][:, PROMPT_LENGTH:],
        position_ids=derived["position_ids"][..., PROMPT_LENGTH:],
        token_type_ids=derived["token_type_ids"][:, PROMPT_LENGTH:],
        past_key_values=head.past_key_values,
    )
    torch.testing.assert_close(tail.logits, full[:, PROMPT_LENGTH:], rtol=0, atol=1e-4)


def test_prefix_attends_both_ways_and_the_answer_does_not(model, inputs):
    ids = inputs["input_ids"].clone()
    before = model(**{**inputs, "input_ids": ids}).logits
    ids[:, 40] = (ids[:, 40] + 1) % 100
    after = model(**{**inputs, "input_ids": ids}).logits
    assert (before[:, :40] - after[:, :40]).abs().max() > 1e-3, "an early prefix token must see a later one"
    ids = inputs["input_ids"].clone()
    ids[:, -1] = 7
    after = model(**{**inputs, "input_ids": ids}).logits
    torch.testing.assert_close(before[:, :-1], after[:, :-1])


def test_resuming_an_answer(model, prompt):
    whole = greedy(model, prompt)
    begun = {**prompt, "input_ids": torch.cat([prompt["input_ids"], whole[:, :5]], dim=1)}
    assert torch.equal(greedy(model, begun, max_new_tokens=7), whole[:, 5:])


def test_beams_equal_a_plain_search(model, prompt):
    """Scores of returned beams are what one uncached pass computes for the same ids."""
    outputs = model.generate(
        **prompt, max_new_tokens=4, num_beams=3, do_sample=False, eos_token_id=None, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    logits = model(outputs.sequences, pixel_values=prompt["pixel_values"]).logits[:, PROMPT_LENGTH - 1 : -1]
    chosen = logits.log_softmax(-1).gather(-1, outputs.sequences[:, PROMPT_LENGTH:, None])[..., 0].sum(-1)
    torch.testing.assert_close(outputs.sequences_scores, chosen, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pictures", ["pixel_values", "image_embeds"])
def test_beams_keep_the_pictures_of_their_rows(model, prompt, pictures):
    """Rows with two pictures, none and one: each beam sees those of its own row, in their order."""
    ids, pixels = prompt["input_ids"], prompt["pixel_values"]
    shown = pixels if pictures == "pixel_values" else model.get_image_features(pixels).pooler_output.detach()
    rows = [torch.cat([ids[1][:33], ids[1]]), ids[2][33:], ids[0]]
    batch = {**left_pad(rows, model.config.pad_token_id), pictures: shown}
    singles = [
        {"input_ids": rows[0][None], pictures: shown[:2]},
        {"input_ids": rows[1][None]},
        {"input_ids": rows[2][None], pictures: shown[2:]},
    ]
    together = greedy(model, batch, max_new_tokens=5, num_beams=3)
    for row, single in zip(together, singles, strict=True):
        assert torch.equal(row, greedy(model, single, max_new_tokens=5, num_beams=3)[0])
    [logits] = [model(singles[0]["input_ids"], **{pictures: shown[:2]}).logits[:, -1]]
    outputs = model.generate(
        **singles[0], max_new_tokens=1, num_beams=2, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    torch.testing.assert_close(outputs.logits[0], logits.expand(2, -1), rtol=0, atol=1e-4)


def test_sampling_several_sequences_per_prompt(model, prompt):
    torch.manual_seed(0)
    ids = model.generate(**prompt, max_new_tokens=3, do_sample=True, num_return_sequences=2, eos_token_id=None)
    assert ids.shape == (6, PROMPT_LENGTH + 3)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 2}])
def test_an_image_slot_is_never_an_answer(model, prompt, how):
    """One that was drawn would ask for a picture at the next step."""
    slot = model.config.image_token_id

    def want_slot(head, inputs, logits):
        logits[..., slot] = logits.amax(-1) + 20
        return logits

    hook = model.lm_head.register_forward_hook(want_slot)
    try:
        ids = greedy(model, prompt, max_new_tokens=4, **how)
    finally:
        hook.remove()
    assert ids.shape[1] == 4 and not (ids == slot).any()


def test_assisted_decoding_equals_greedy(model, prompt):
    single = {"input_ids": prompt["input_ids"][:1], "pixel_values": prompt["pixel_values"][:1]}
    draft = greedy(model, single, prompt_lookup_num_tokens=3)
    assert torch.equal(draft[0], expected("visualglm")["greedy_ids"][0])


def test_image_embeds_stand_in_for_pixels(model, prompt):
    embeds = model.get_image_features(prompt["pixel_values"]).pooler_output
    again = greedy(model, {"input_ids": prompt["input_ids"], "image_embeds": embeds})
    assert torch.equal(again, expected("visualglm")["greedy_ids"])


@pytest.mark.parametrize("num_images", [0, 1, 2, 4])
def test_slots_and_pictures_must_match(model, inputs, num_images):
    pixels = expected("vision")["pixel_values"].repeat(2, 1, 1, 1)[:num_images] if num_images else None
    with pytest.raises(PromptError, match=f"96 image slots.*{num_images} pictures"):
        model(inputs["input_ids"], pixel_values=pixels)


def test_what_cannot_be_right_raises(model, prompt):
    cache = model(**prompt, use_cache=True).past_key_values
    with pytest.raises(PromptError, match="cache of an earlier answer"):
        model.generate(**prompt, past_key_values=cache, max_new_tokens=1)
    with pytest.raises(PromptError, match="prefill_chunk_size"):
        model.generate(**prompt, prefill_chunk_size=8, max_new_tokens=1)
    with pytest.raises(PromptError, match="generate_batch"):
        model.generate_batch([[1, 2]])
    with pytest.raises(PromptError, match="<sop>"):
        model(torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(PromptError, match="exactly one of"):
        model()
    embeds = model.get_input_embeddings()(prompt["input_ids"])
    with pytest.raises(PromptError, match="token_type_ids and position_ids"):
        model(inputs_embeds=embeds)


def test_what_cannot_keep_the_prefix_is_not_offered(model):
    """Flash attention ignores the mask function, context parallelism cuts the prefix up."""
    for part in (model, model.model, model.model.text):
        assert not part._supports_flash_attn
        assert not part._supports_context_parallel


def test_image_slots_are_not_hidden_by_the_mask_that_generate_infers(model, prompt):
    """The original put the pad token there, and `generate` without a mask then looked past every picture."""
    blank = {**prompt, "pixel_values": torch.zeros_like(prompt["pixel_values"])}
    ones = torch.ones_like(prompt["input_ids"])
    assert torch.equal(greedy(model, prompt), greedy(model, {**prompt, "attention_mask": ones}))
    assert not torch.equal(greedy(model, prompt), greedy(model, blank))


def test_streamers_and_stopping_criteria(model, prompt):
    class Collector(BaseStreamer):
        ids: list[int] = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ids.append(-1)

    single = {"input_ids": prompt["input_ids"][:1], "pixel_values": prompt["pixel_values"][:1]}
    wanted = expected("visualglm")["greedy_ids"][0].tolist()
    streamer = Collector()
    greedy(model, single, streamer=streamer)
    assert streamer.ids == [*single["input_ids"][0].tolist(), *wanted, -1]

    def stop_at_five(input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= PROMPT_LENGTH + 5])

    stopped = greedy(model, single, stopping_criteria=StoppingCriteriaList([stop_at_five]))
    assert stopped[0].tolist() == wanted[:5]


def test_other_resolutions_by_position_interpolation(model):
    pixels = torch.rand(1, 3, 84, 84)
    assert model.get_image_features(pixels).pooler_output.shape == (1, 32, 64)


def test_save_and_load_sharded(model, prompt, tmp_path):
    """Through the Auto class and the meta device: nothing that is computed may come back as garbage."""
    model.save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(again, VisGLMForConditionalGeneration)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(greedy(again, prompt), expected("visualglm")["greedy_ids"])


def test_gradient_checkpointing_gives_the_same_gradients(inputs):
    labels = expected("visualglm")["labels"]
    gradients = []
    for enabled in (False, True):
        model = golden_model().train()
        if enabled:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        gradients.append(model.model.text.layers[0].attention.query_key_value.weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_causal_backbone_behind_the_same_bridge():
    """The bridge does not know which text model reads its tokens: Glm, with its own positions and masks."""
    torch.manual_seed(0)
    text = GlmConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    qformer = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VisGLMConfig(
        vision_config=vision, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=4, image_token_id=63
    )
    model = VisGLMForConditionalGeneration(config).eval()
    row = torch.tensor([5, 63, 63, 63, 63, 6, 7])
    pixels = torch.rand(1, 3, 28, 28)
    batch = {**left_pad([row, row[5:]], 0), "pixel_values": pixels}
    together = greedy(model, batch, max_new_tokens=5)
    assert torch.equal(
        together[0], greedy(model, {"input_ids": row[None], "pixel_values": pixels}, max_new_tokens=5)[0]
    )
    assert torch.equal(together[1], greedy(model, {"input_ids": row[None, 5:]}, max_new_tokens=5)[0])
    static = greedy(model, batch, max_new_tokens=5, cache_implementation="static")
    assert torch.equal(together, static)


def test_a_static_cache_of_ones_own(model, prompt):
    cache = StaticCache(config=model.config.text_config, max_cache_len=PROMPT_LENGTH + 12)
    assert torch.equal(greedy(model, prompt, past_key_values=cache), expected("visualglm")["greedy_ids"])


def test_an_assistant_is_refused_with_what_to_do(model, prompt):
    single = {"input_ids": prompt["input_ids"][:1], "pixel_values": prompt["pixel_values"][:1]}
    for given in (single, {"input_ids": single["input_ids"][:, 33:]}):
        with pytest.raises(PromptError, match="assistant_model cannot .*prompt_lookup_num_tokens"):
            model.generate(**given, assistant_model=golden_model(), max_new_tokens=4)


def test_guidance_is_refused_by_a_prefix_lm(model, prompt):
    with pytest.raises(PromptError, match="guidance_scale=1.5 cannot be had"):
        greedy(model, prompt, guidance_scale=1.5)
    assert torch.equal(greedy(model, prompt, guidance_scale=1), greedy(model, prompt))
