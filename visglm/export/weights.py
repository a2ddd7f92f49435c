"""Where a graph's weights lie in the checkpoint's files, and what makes of them what the graph computes with.

A weight stays as the checkpoint has it: 16-bit numbers are widened, integers become a `MatMulNBits`. ONNX Runtime does
what can be done once when it loads the graph.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, require

# safetensors' names of number formats → ONNX's.
DTYPES = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16", "U8": "UINT8", "I8": "INT8", "I64": "INT64"}
DOMAIN = "com.microsoft"
INT8_BLOCKS = (128, 64, 32, 16)  # columns that share a scale in the product; in the checkpoint the whole row does
ACTIVATIONS_IN_8_BITS = 4  # `accuracy_level` of MatMulNBits, as the products for torch have it


class Place(NamedTuple):
    """A tensor in a file: bytes from `offset` on, little-endian, row by row."""

    file: str
    offset: int
    num_bytes: int
    dtype: str  # a key of `DTYPES`
    shape: tuple[int, ...]


class Weights:
    """The tensors of all safetensors files in a folder, by name."""

    def __init__(self, folder: Path):
        self.places: dict[str, Place] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    place = Place(path.name, 8 + length + start, end - start, entry["dtype"], tuple(entry["shape"]))
                    self.places[name] = place

    def find(self, name: str) -> Place:
        """Where a tensor lies. Tied embeddings serve for the head."""
        if name == "lm_head.weight" and name not in self.places:
            name = "model.text.embed_tokens.weight"
        return self.places[name]

    def scale(self, name: str) -> Place | None:
        """Where the scales of a packed weight lie, if it is packed."""
        return self.places.get(f"{name}_scale")


def attach(model: Any, weights: Weights, path: Path) -> None:
    """Tell a graph where its weights are, and write it.

    Raises:
        CheckpointError: it needs a weight that no file has, or packed weights in a place that cannot take them.
    """
    ir = require("export", "onnx_ir")
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            continue
        if name not in weights.places and name != "lm_head.weight":
            raise CheckpointError(path.parent, [f"missing: {name}"], "This is a defect of visglm.")
        place, scale = weights.find(name), weights.scale(name)
        if scale is not None:
            pack(ir, graph, value, place, scale)
        elif place.dtype == "F32" or not place.dtype.startswith(("F", "BF")):
            value.const_value = stored(ir, name, place, place.shape)
        else:
            narrow = initializer(ir, graph, f"{name}.stored", place, place.shape)
            replace_value(ir, graph, value, ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT}))
    model.opset_imports[DOMAIN] = 1
    model.producer_name, model.doc_string = "visglm", None
    for node in graph:
        node.metadata_props.clear()
    ir.save(model, path)


def stored(ir: Any, name: str, place: Place, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """An initializer's value that lies in a file of the checkpoint."""
    return ir.ExternalTensor(
        place.file, place.offset, place.num_bytes, getattr(ir.DataType, dtype or DTYPES[place.dtype]),
        shape=ir.Shape(shape), name=name, base_dir="",
    )  # fmt: skip


def initializer(ir: Any, graph: Any, name: str, place: Place, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    tensor = stored(ir, name, place, shape, dtype)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_value(ir: Any, graph: Any, value: Any, node: Any) -> None:
    """The output of `node` in place of an initializer."""
    graph.insert_before(graph[0], node)
    node.outputs[0].name = f"{value.name}.wide"
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    del graph.initializers[value.name]


def pack(ir: Any, graph: Any, value: Any, place: Place, scale: Place) -> None:
    """Every product with a packed weight becomes one with its integers.

    `value` goes through one transposition to one product or several; both disappear.
    """
    transposes = [node for node, _ in value.uses()]
    products = [(node, transpose) for transpose in transposes for node, _ in transpose.outputs[0].uses()]
    if any(node.op_type != "Transpose" for node in transposes) or any(
        node.op_type != "MatMul" or node.inputs[1] is not transpose.outputs[0] for node, transpose in products
    ):
        raise CheckpointError(place.file, [f"{value.name} is packed, and no matrix"], "This is a defect of visglm.")
    rows, columns = (int(size) for size in value.shape)
    bits = 4 if place.dtype == "U8" else 8
    if bits == 4:
        block = columns // scale.shape[1]
    else:
        block = next((size for size in INT8_BLOCKS if columns % size == 0), columns)
    blocks = columns // block
    shape = (rows, blocks, block * bits // 8)
    numbers = initializer(ir, graph, f"{value.name}.stored", place, shape, "UINT8")
    narrow = initializer(ir, graph, f"{value.name}_scale", scale, (rows, scale.shape[1]))
    made: list[Any] = [ir.node("Cast", [narrow], {"to": ir.DataType.FLOAT})]
    wide = made[0].outputs[0]
    if bits == 8:
        # The checkpoint's bytes have a sign, the product's count from 128: one bit makes the one of the other.
        flip = constant(ir, graph, f"{value.name}.flip", [128], ir.DataType.UINT8)
        made.append(ir.node("BitwiseXor", [numbers, flip]))
        numbers = made[-1].outputs[0]
        size = constant(ir, graph, f"{value.name}.blocks", [rows, blocks], ir.DataType.INT64)
        made.append(ir.node("Expand", [wide, size]))
        wide = made[-1].outputs[0]
    flat = constant(ir, graph, f"{value.name}.flat", [-1], ir.DataType.INT64)
    made.append(ir.node("Reshape", [wide, flat]))
    scales = made[-1].outputs[0]
    for number, node in enumerate(made):
        node.outputs[0].name = f"{value.name}.made.{number}"
    graph.insert_before(graph[0], made)
    attributes = {
        "K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": ACTIVATIONS_IN_8_BITS,
    }  # fmt: skip
    for node, _ in products:
        product = ir.node("MatMulNBits", [node.inputs[0], numbers, scales], attributes, domain=DOMAIN)
        product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        graph.insert_before(node, product)
        name = node.outputs[0].name
        ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0], replace_graph_outputs=True)
        product.outputs[0].name = name
        graph.remove(node, safe=True)
    for node in transposes:
        graph.remove(node, safe=True)
    del graph.initializers[value.name]


def constant(ir: Any, graph: Any, name: str, numbers: list[int], dtype: Any) -> Any:
    tensor = ir.tensor(numbers, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
