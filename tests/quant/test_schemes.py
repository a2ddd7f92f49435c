"""Every row of `SCHEMES`: the error it makes, and that its products and gradients are those of the unpacked weight."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch

from visglm import VisGLM
from visglm.errors import ConfigError
from visglm.quant import SCHEMES, QuantizedEmbedding, QuantizedLinear, pack
from visglm.quant.products import without_contention
from visglm.quant.schemes import PARTS, pair, to_scale

# Scheme → largest relative error (of norms) for normally distributed weights in groups of 32.
ERRORS = {"int8": 0.01, "int4": 0.10, "nf4": 0.10}
schemes = pytest.mark.parametrize("scheme", SCHEMES)


def make(scheme: str, rows: int = 96, columns: int = 128, bias: bool = True) -> tuple[QuantizedLinear, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(rows, columns) * 0.02
    linear = QuantizedLinear(columns, rows, scheme=scheme, group_size=32, bias=bias)
    if bias:
        linear.bias.data.normal_()
    pack(linear, weight)
    return linear, weight


def unpacked(linear: QuantizedLinear) -> torch.Tensor:
    return torch.cat([weight for _, weight in linear.blocks(torch.float32)])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_every_scheme_has_a_bound():
    assert ERRORS.keys() == SCHEMES.keys()
    assert all(set(scheme.parts) <= set(PARTS) for scheme in SCHEMES.values())


@schemes
def test_error_and_size(scheme):
    linear, weight = make(scheme)
    assert 0 < error(unpacked(linear), weight) < ERRORS[scheme]
    assert linear.weight.nbytes == weight.numel() * SCHEMES[scheme].bits // 8
    assert linear.weight_scale.dtype == torch.float16


def plain_int4(matrix: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, number by number, that the fast way must agree with to the bit."""
    groups = matrix.unflatten(-1, (-1, group_size))
    low, high = torch.aminmax(groups, dim=-1, keepdim=True)
    scale = to_scale(torch.where(high > -low, high, low) / -8)
    steps = (groups * scale.float().reciprocal()).round().clamp(-8, 7).add(8).to(torch.uint8).flatten(-2)
    return steps[..., ::2] | (steps[..., 1::2] << 4), scale.squeeze(-1)


@pytest.mark.parametrize("group_size", [32, 128])
def test_int4_is_packed_as_it_is_defined(group_size):
    torch.manual_seed(0)
    matrix = torch.randn(64, 512) * 0.02
    matrix[0] = 0  # a scale of its own
    matrix[1] = matrix[1].abs()
    matrix[2] = -matrix[2].abs()
    matrix[3, ::2], matrix[3, 1::2] = 0.5, -0.5  # which of the two ends is taken for -8
    for found, wanted in zip(SCHEMES["int4"].pack(matrix, group_size), plain_int4(matrix, group_size), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def test_every_pair_of_numbers_fits_into_its_byte():
    steps = torch.cartesian_prod(torch.arange(16), torch.arange(16)).to(torch.uint8).flatten()
    assert torch.equal(pair(steps), steps[::2] + 16 * steps[1::2])
    assert torch.equal(pair(steps.view(2, 16, 16)), (steps[::2] + 16 * steps[1::2]).view(2, 16, 8))


@schemes
def test_packing_what_was_unpacked_changes_nothing(scheme):
    linear, _ = make(scheme)
    again = make(scheme)[0]
    pack(again, unpacked(linear))
    assert error(unpacked(again), unpacked(linear)) < 1e-3


@schemes
@pytest.mark.parametrize("hostile", [0.0, 1e-9, 1e4])
def test_weights_that_are_all_zero_tiny_or_huge(scheme, hostile):
    linear, weight = make(scheme)
    pack(linear, weight * hostile)
    found = unpacked(linear)
    assert torch.isfinite(found).all()
    assert (found - weight * hostile).abs().max() < max(hostile * 0.02, 1e-3)


@schemes
@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.filterwarnings("ignore:int4 is several times slower")
def test_the_product_is_that_of_the_unpacked_weight(scheme, num_rows):
    linear, _ = make(scheme)
    linear.settle()
    hidden_states = torch.randn(2, num_rows, 128)
    wanted = torch.nn.functional.linear(hidden_states, unpacked(linear), linear.bias)
    with torch.no_grad():
        assert linear(hidden_states).shape == wanted.shape
        assert error(linear(hidden_states), wanted) < 0.01  # activations in bfloat16 or 8 bits


def test_int4_uses_onnx_runtime_on_a_cpu():
    pytest.importorskip("onnxruntime")
    linear, _ = make("int4")
    linear.settle()
    hidden_states = torch.randn(1, 128)
    with torch.no_grad():
        found = linear(hidden_states)
        linear.product = None
        wanted = linear(hidden_states)
    assert 1e-5 < error(found, wanted) < 0.01  # it rounds activations to 8 bits, which the other way does not


def test_without_onnx_runtime_int4_warns_and_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    linear, _ = make("int4")
    with pytest.warns(UserWarning, match=r"visglm\[quant\]"):
        linear.settle()
    with torch.no_grad():
        wanted = torch.nn.functional.linear(torch.ones(1, 128), unpacked(linear), linear.bias)
        torch.testing.assert_close(linear(torch.ones(1, 128)), wanted)


@schemes
@pytest.mark.filterwarnings("ignore:int4 is several times slower")
def test_gradients_flow_to_the_input_and_not_to_the_weight(scheme):
    linear, _ = make(scheme)
    linear.settle()
    reference = torch.nn.Linear(128, 96)
    reference.weight.data, reference.bias.data = unpacked(linear), linear.bias.data
    inputs = torch.randn(3, 5, 128)
    found, wanted = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    linear(found).square().sum().backward()
    reference(wanted).square().sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(linear.bias.grad, reference.bias.grad, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in linear.named_parameters()] == ["bias"]


@schemes
def test_an_embedding_unpacks_the_rows_that_are_looked_up(scheme):
    linear, weight = make(scheme, bias=False)
    table = QuantizedEmbedding(
        96, 128, scheme=scheme, group_size=32, padding_idx=None, output_dtype=torch.float32, device="cpu"
    )
    pack(table, weight)
    ids = torch.tensor([[3, 95, 3]])
    assert torch.equal(table(ids), unpacked(linear)[ids])


@schemes
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda linear: pickle.loads(pickle.dumps(linear))])
@pytest.mark.filterwarnings("ignore:int4 is several times slower")
def test_copies_compute_the_same(scheme, duplicate):
    linear, _ = make(scheme)
    linear.settle()
    with torch.no_grad():
        assert torch.equal(duplicate(linear)(torch.ones(1, 128)), linear(torch.ones(1, 128)))


def test_columns_that_cannot_be_grouped_are_refused():
    with pytest.raises(ConfigError, match="100 columns cannot be cut into groups of 32"):
        QuantizedLinear(100, 8, scheme="int4", group_size=32, bias=False)


def test_torch_keeps_out_of_the_way_of_onnx_runtime_while_it_answers(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        plain, packed = VisGLM.from_pretrained(), VisGLM.from_pretrained(quantize="int4")
        for vlm, expected in ((plain, 3), (packed, 1)):
            seen = []
            vlm.model.lm_head.register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.get_num_threads()))
            vlm.chat(None, "你好", max_new_tokens=2)
            assert set(seen) == {expected}
            assert torch.get_num_threads() == 3
        monkeypatch.setattr(packed.model, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            packed.chat(None, "你好")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_torch_has_its_threads_back_whatever_the_order_in_which_answers_end(monkeypatch):
    """Two models with products of ONNX Runtime answer at once; the first to begin is the first to end."""
    monkeypatch.setattr("visglm.quant.products.uses_onnx", lambda model: True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = without_contention(torch.nn.Identity()), without_contention(torch.nn.Identity())
        first.__enter__()
        second.__enter__()
        assert torch.get_num_threads() == 1
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
