"""Estimates against what loading really takes."""

from __future__ import annotations

import pytest
import torch

from visglm import VisGLM, checkpoint
from visglm.checkpoint import EMBEDDED_MODEL, RandomSource, choose_quantization, estimate
from visglm.checkpoint.estimate import part_of
from visglm.cli import main
from visglm.engine.cache import SlotCache
from visglm.families.visualglm import VISUALGLM
from visglm.quant import QuantizedEmbedding
from visglm.text.cache_size import cache_bytes

CPU = torch.device("cpu")


def loaded_bytes(network) -> dict[str, int]:
    found: dict[str, int] = {}
    in_files = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, QuantizedEmbedding)}
    for name, tensor in network.state_dict().items():
        if name in in_files:
            continue
        found[part_of(name, VISUALGLM)] = found.get(part_of(name, VISUALGLM), 0) + tensor.nbytes
    return found


@pytest.mark.parametrize("scheme", [None, "int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resident_is_what_the_loaded_weights_take(tmp_path, scheme, dtype):
    source = RandomSource("visglm-tiny", EMBEDDED_MODEL)
    checkpoint.convert(source, tmp_path / "model", "native")
    opened = checkpoint.open_source(tmp_path / "model")
    found = estimate(opened, choose_quantization(opened, scheme, False), CPU, dtype)
    assert opened.config.quantization is None  # it was only asked
    network, *_ = checkpoint.load(tmp_path / "model", device=CPU, dtype=dtype, quantize=scheme)
    measured = loaded_bytes(network)
    assert found.resident.keys() == measured.keys()
    for part, size in measured.items():
        assert found.resident[part] == pytest.approx(size, rel=0.1)
    files = (tmp_path / "model").glob("*.safetensors")
    assert sum(found.disk.values()) == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    assert found.load_peak >= sum(found.resident.values())


@pytest.mark.parametrize(("answers", "gigabytes"), [(1, 0.940), (3, 3.758), (16, 15.032)])
def test_answers_at_a_time_have_their_keys_and_values(capsys, answers, gigabytes):
    """28 layers, 4096 numbers of each, twice, 2,048 positions, two bytes: 0.94 GB, and room for powers of two."""
    arguments = ["estimate", "visualglm-6b", "--device", "cpu", "--dtype", "bfloat16", "--answers", str(answers)]
    assert main(arguments) == 0
    lines = {line[:12].strip(): line[12:].split() for line in capsys.readouterr().out.splitlines()}
    assert float(lines["cache"][2]) == pytest.approx(gigabytes, abs=2e-3)


@pytest.mark.parametrize(("free", "fit"), [(2**34, 4), (2**36, 16), (2**30, 1)])
def test_how_many_fit_is_what_the_engine_lets_in(capsys, monkeypatch, free, fit):
    monkeypatch.setattr("visglm.engine.core.available_memory", lambda device: free)
    assert main(["estimate", "visualglm-6b", "--quantize", "int4", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"answers of 2048 tokens that fit at a time, with the memory free now: {fit}"
    )


def test_the_model_in_the_package_is_counted_as_it_is(capsys):
    assert main(["estimate", "visglm-tiny", "--device", "cpu"]) == 0
    by_name = capsys.readouterr().out
    assert main(["estimate", str(EMBEDDED_MODEL), "--device", "cpu"]) == 0
    assert by_name.splitlines()[1:] == capsys.readouterr().out.splitlines()[1:]
    together = next(line.split() for line in by_name.splitlines() if line.startswith("together"))
    assert float(together[1]) == pytest.approx((EMBEDDED_MODEL / "model.safetensors").stat().st_size / 1e9, abs=2e-3)


def test_no_answers_at_a_time_is_refused(capsys):
    assert main(["estimate", "visglm-tiny", "--answers", "0"]) != 0
    assert "answers must be between 1 and 1024" in capsys.readouterr().err


def test_the_cache_takes_what_was_estimated(monkeypatch):
    """Filled by real answers, of as many rows and positions."""
    vlm = VisGLM.from_pretrained(device="cpu")
    config, sizes = vlm.model.config.text_config, []
    hook = vlm.model.lm_head.register_forward_pre_hook(lambda *arguments: sizes.append(held()))

    caches: list[SlotCache] = []
    make = SlotCache.__init__

    def noted(cache: SlotCache) -> None:
        caches.append(cache)
        make(cache)

    def held() -> int:
        return max((cache.num_bytes for cache in caches), default=0)

    monkeypatch.setattr(SlotCache, "__init__", noted)

    replies = vlm.batch(
        [(None, f"{n}?") for n in range(5)], batch_size=5, progress=False, max_new_tokens=140, min_new_tokens=140
    )
    hook.remove()
    longest = max(reply.usage.total_tokens for reply in replies)
    assert max(sizes) == cache_bytes(config, 4, 5, longest)


@pytest.mark.parametrize(("scheme", "copies"), [("int8", 0), ("int4", 0.5 + 4 / 128), ("nf4", 0.5 + 4 / 128)])
def test_kernels_for_gpus_that_keep_a_copy_are_counted(scheme, copies):
    """Of every packed product; an embedding has none."""
    source = RandomSource("visualglm-6b", EMBEDDED_MODEL)
    quantization = choose_quantization(source, scheme, vision=False)
    found = {
        device: sum(estimate(source, quantization, torch.device(device), torch.bfloat16).resident.values())
        for device in ("cuda", "meta")
    }
    layers, head = 28 * 12 * 4096**2, 130528 * 4096
    numbers = layers if scheme == "nf4" else layers + head
    assert found["cuda"] - found["meta"] == numbers * copies


def test_the_published_size_in_int4(capsys):
    assert main(["estimate", "visualglm-6b", "--quantize", "int4", "--device", "cpu"]) == 0
    lines = {line[:12].strip(): line[12:].split() for line in capsys.readouterr().out.splitlines()}
    assert 15.5 < float(lines["together"][0]) < 15.7
    assert 5.5 < float(lines["together"][1]) < 6.0
    assert float(lines["load peak"][0]) < 8
