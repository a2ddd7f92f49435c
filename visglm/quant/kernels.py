"""A product of a few rows with an int8 weight, written for a GPU in Triton, which comes with torch for GPUs.

torch's own reads a weight of 12,288 × 4,096 in 272 µs for one row and 1,863 for sixteen (an H200); this takes 20 for
either, as bfloat16 takes 30. bitsandbytes' rounds what it is given to 8 bits, too.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # at a time: the least that the matrix units take, so that company changes no row's rounding
OUTPUTS, MOST_COLUMNS = 32, 256  # of a tile; the fastest of ten that were measured


@triton.jit
def int8_kernel(
    hidden_states, weight, weight_scale, output, num_rows, num_columns, num_outputs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """`OUTPUTS` numbers of `ROWS` rows."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row, is_place = row[:, None] < num_rows, place[None, :] < num_outputs
    given = hidden_states + row[:, None].to(tl.int64) * num_columns
    numbers = weight + place[None, :].to(tl.int64) * num_columns
    dtype = hidden_states.dtype.element_ty
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, num_columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        some = tl.load(given + column[None, :], mask=is_row, other=0.0)
        other = tl.load(numbers + column[:, None], mask=is_place, other=0)
        total = tl.dot(some, other.to(dtype), total, input_precision="ieee")
    total *= tl.load(weight_scale + place[None, :], mask=is_place, other=0.0).to(tl.float32)
    target = output + row[:, None].to(tl.int64) * num_outputs + place[None, :]
    tl.store(target, total.to(dtype), mask=is_row & is_place)


def columns_at_once(columns: int) -> int:
    """The largest power of two that so many columns can be cut into, as far as there is use for it."""
    return min(columns & -columns, MOST_COLUMNS)


def multiply(hidden_states: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """`hidden_states [rows, columns]` with `weight [outputs, columns]`, int8, times `weight_scale [outputs, 1]`."""
    (rows, columns), outputs = hidden_states.shape, weight.shape[0]
    output = hidden_states.new_empty(rows, outputs)
    grid = (triton.cdiv(outputs, OUTPUTS), triton.cdiv(rows, ROWS))
    int8_kernel[grid](
        hidden_states.contiguous(), weight, weight_scale, output, rows, columns, outputs,
        ROWS=ROWS, COLUMNS=columns_at_once(columns), OUTPUTS=OUTPUTS, num_warps=4, num_stages=4,
    )  # fmt: skip
    return output
