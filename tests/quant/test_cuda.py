"""Which kernel a weight gets on a GPU. None is needed: what is asked of the device and of torch is answered for it."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import torch

from visglm.quant import QuantizedLinear, pack
from visglm.quant import cuda as cuda_module
from visglm.quant.cuda import CUDA_PRODUCTS, Int4CudaProduct, NF4Product, proved, swap_halves, worst_gap
from visglm.quant.products import PRODUCTS, Int8Product, rounds_alike
from visglm.quant.schemes import SCHEMES, unpair


def make(scheme: str, out_features: int = 64, in_features: int = 256, group_size: int = 128) -> QuantizedLinear:
    linear = QuantizedLinear(in_features, out_features, scheme=scheme, group_size=group_size, bias=False)
    pack(linear, torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0)))
    return linear


@pytest.fixture
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))


class Unpacking(Int8Product):
    """As good as the unpacked weight, times `factor`."""

    factor = 1.0

    def __call__(self, hidden_states):
        weight = torch.cat([weight for _, weight in self.linear.blocks(torch.float32)])
        return ((hidden_states.float() @ weight.T) * self.factor).to(hidden_states.dtype)


class Wrong(Unpacking):
    factor = 1.1


class Failing(Unpacking):
    def __call__(self, hidden_states):
        raise RuntimeError("no kernel image is available\nfor this device")


def test_every_scheme_has_a_row():
    assert {("cuda", scheme) for scheme in SCHEMES} == {
        (device, scheme) for scheme, device in PRODUCTS if device == "cuda"
    }
    assert {scheme: PRODUCTS[scheme, "cuda"] for scheme in SCHEMES} == CUDA_PRODUCTS


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"in_features": 192, "group_size": 64}, False),  # no whole number of tiles
        ({"out_features": 60}, False),
        ({"group_size": 16}, False),
    ],
)
def test_shapes_decide(ampere, settings, fits):
    assert cuda_module.fits_int4(make("int4", **settings)) is fits


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_an_older_device_has_none(monkeypatch, scheme):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert CUDA_PRODUCTS[scheme](make(scheme)) is None


def test_without_triton_there_is_no_int8_kernel(ampere, monkeypatch):
    monkeypatch.setitem(sys.modules, "visglm.quant.kernels", None)
    with pytest.warns(UserWarning, match=r"int8 is slower .*failed .*visglm.quant.kernels"):
        assert CUDA_PRODUCTS["int8"](make("int8")) is None
    assert not cuda_module.fits_int8(make("int8", in_features=40, group_size=40))


COMPARED = """
import torch
from visglm.quant import QuantizedLinear, pack
from visglm.quant.kernels import multiply

torch.manual_seed(0)
for columns, outputs, rows in ((256, 64, 1), (96, 60, 16), (544, 33, 19)):
    linear = QuantizedLinear(columns, outputs, scheme="int8", group_size=columns, bias=False)
    pack(linear, torch.randn(outputs, columns))
    hidden_states = torch.randn(rows, columns)
    weight = torch.cat([weight for _, weight in linear.blocks(torch.float32)])
    found = multiply(hidden_states, linear.weight, linear.weight_scale)
    torch.testing.assert_close(found, hidden_states @ weight.T, atol=1e-4, rtol=1e-4)
"""


def test_the_int8_kernel_multiplies():
    """Played on a CPU by Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", COMPARED], check=True, env=environment)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gpu_multiplies_as_with_the_unpacked_weight(scheme, rows):
    linear = make(scheme, 200, 1024, 64).cuda()
    linear.settle()
    assert linear.product is not None
    hidden_states = torch.randn(rows, 1, 1024, device="cuda").bfloat16()
    found, alone = linear(hidden_states), linear(hidden_states[-1:])
    linear.product = None
    wanted = linear(hidden_states).float()
    assert (found.float() - wanted).norm() < 0.01 * wanted.norm()
    assert scheme != "int8" or torch.equal(alone, found[-1:])


def test_nf4_without_bitsandbytes_says_what_is_missing(ampere, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.warns(UserWarning, match=r"nf4 is several times slower.*quant-gpu"):
        assert CUDA_PRODUCTS["nf4"](make("nf4")) is None


@pytest.mark.parametrize(
    ("kind", "said"), [(Wrong, "was 10.\\d% off"), (Failing, "failed .RuntimeError: no kernel image is available.")]
)
def test_what_is_wrong_is_not_used_and_told(kind, said):
    with pytest.warns(UserWarning, match=f"{said} for a weight of 64 × 256. Weights are unpacked"):
        assert proved(lambda linear: True, kind)(make("int8")) is None


def test_what_is_right_is_used():
    assert isinstance(proved(lambda linear: True, Unpacking)(make("int8")), Unpacking)


def test_the_even_column_goes_to_the_high_half():
    weight = make("int4").weight
    low_first = unpair(weight).view(torch.uint8).unflatten(-1, (-1, 2))
    swapped = swap_halves(weight)
    assert torch.equal(swapped >> 4, low_first[..., 0]) and torch.equal(swapped & 15, low_first[..., 1])


def test_int4_is_handed_over_as_the_kernel_defines_it(ampere, monkeypatch):
    """(number - 8) · scale + zero, groups along the columns; the kernels of torch are played by what they document."""

    def convert(packed, tiles):
        assert packed.dtype == torch.uint8 and tiles == 8
        return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)

    def multiply(rows, numbers, group_size, scale_and_zero):
        assert rows.dtype == scale_and_zero.dtype == torch.bfloat16
        scale, zero = scale_and_zero.float().unbind(-1)
        groups = (numbers.float() - 8).unflatten(-1, (-1, group_size))
        weight = (groups * scale.T[..., None] + zero.T[..., None]).flatten(-2)
        return (rows.float() @ weight.T).to(torch.bfloat16)

    played = types.SimpleNamespace(_convert_weight_to_int4pack=convert, _weight_int4pack_mm=multiply)
    monkeypatch.setattr(cuda_module.torch.ops, "aten", played)
    product = CUDA_PRODUCTS["int4"](make("int4"))
    assert isinstance(product, Int4CudaProduct)
    assert product.suits(torch.ones(3, 1, 256)) and not product.suits(torch.ones(1, 3, 256))
    model = torch.nn.ModuleList([make("int4")])
    assert rounds_alike(model)
    model[0].product = product
    assert not rounds_alike(model)


def test_nf4_is_handed_over_as_bitsandbytes_has_it():
    """Its own unpacking runs on a CPU, too."""
    functional = pytest.importorskip("bitsandbytes.functional")
    linear = make("nf4")
    product = NF4Product(linear)
    unpacked = functional.dequantize_4bit(product.weight, product.state).float()
    wanted = SCHEMES["nf4"].unpack(linear.weight, linear.weight_scale)
    torch.testing.assert_close(unpacked, wanted, atol=0.02, rtol=0.01)
    assert worst_gap(linear, product) < cuda_module.BOUND
