"""A model as ONNX graphs, for the player in `visglm.light` and for a page in a browser.

What is written is a checkpoint in the native layout, which torch loads like any other, with three files more: two
graphs, whose weights are the checkpoint's own, and `light.json`, which says everything else that an answer needs. So
nothing is stored twice, and int4 is the same bits in both.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ..adapters import HERE, Home, write_delta
from ..checkpoint import AdapterSource, QuantizedSource, Source, open_source, realize, replacing, stored_dtype, write_as
from ..checkpoint import save as save_checkpoint
from ..config import VisGLMConfig
from ..errors import ConfigError, require
from ..families import check_can
from .graphs import trace_decoder, trace_vision
from .heat import trace_heat
from .manifest import describe
from .sections import SECTION_BYTES, cut, cut_points
from .weights import Weights, attach

SCHEMES = ("int8", "int4")  # for which ONNX Runtime has products

__all__ = ["SCHEMES", "add_graphs", "export"]


def export(source: Source, folder: str | Path, quantize: str | None = None) -> None:
    """Write what a checkpoint answers as a folder that `visglm.light` plays. Weights pass through one at a time.

    LoRA, and whatever else fine-tuning changed in weights, becomes part of them; a P-Tuning prefix stays beside them
    and is where the player's cache starts.

    Args:
        folder: to write; as with every checkpoint, it appears whole, and foreign files in it stay.
        quantize: "int4" or "int8" for the text model; None as it is. Pictures are looked at in floating point.

    Raises:
        ConfigError: it is of a family that has no export, there is no such scheme for ONNX Runtime, or the adapter is
            of a kind that cannot be written.
        CheckpointError: the source is broken, or the folder cannot be written.
        MissingDependencyError: the extra "export" is not installed.
    """
    check_can(source.config, "export")
    require("export", "onnx", "onnxscript")
    if quantize is not None and quantize not in SCHEMES:
        raise ConfigError(f"quantize must be one of {', '.join(SCHEMES)}, or None; got {quantize!r}.")
    packed = source.config.quantization
    if packed is not None and packed["scheme"] not in SCHEMES:
        raise ConfigError(
            f"{source.path} is quantized to {packed['scheme']}, for which ONNX Runtime has no product. Export the "
            f"16-bit checkpoint with quantize={' or '.join(map(repr, SCHEMES))}."
        )
    check_apart(source, Path(folder))
    delta = source.delta()
    if delta is not None and "prefix" not in delta.by_kind():
        with tempfile.TemporaryDirectory() as merged:
            loaded = realize(source, device="cpu", dtype=stored_dtype(source))
            loaded.adapters.merge()
            save_checkpoint(loaded.adapters, loaded.processor, merged)
            del loaded
            export(open_source(merged), folder, quantize)
        return
    if delta is not None and len(delta.by_kind()) > 1:
        raise ConfigError(
            f"{source.path} is a P-Tuning prefix and {', '.join(sorted(set(delta.by_kind()) - {'prefix'}))} in one, "
            "which cannot be merged, and has no form without torch. Fine-tune with one method."
        )
    base = source.base if isinstance(source, AdapterSource) else source
    written = QuantizedSource(base, quantize) if quantize is not None else base
    with replacing(folder) as partial:
        write_as("native", written, partial)
        if delta is not None:
            quantization = written.config.quantization
            write_delta(partial, replace(delta, base=Home(HERE), quantization=quantization))
        write_graphs(written, partial)


def check_apart(source: Source, folder: Path) -> None:
    """Raise `ConfigError` where what is read would be replaced by what is written, perhaps in fewer bits."""
    read = [source.path, *([source.base.path] if isinstance(source, AdapterSource) else [])]
    if folder.expanduser().resolve() in [Path(path).resolve() for path in read if path is not None]:
        raise ConfigError(f"{folder} is what is exported, and would be replaced. Choose another folder to write to.")


def add_graphs(folder: str | Path) -> None:
    """Put graphs and manifest into a folder in the native layout, beside the weights that are in it.

    Raises:
        CheckpointError: the folder holds no such checkpoint.
        MissingDependencyError: the extra "export" is not installed.
    """
    require("export", "onnx", "onnxscript")
    write_graphs(open_source(folder), Path(folder))


def can_have_heat(config: VisGLMConfig, weights: Weights) -> bool:
    """Whether gradients pass the weights, which packed ones do not let them, and the eyes are one graph."""
    eyes = sum(place.num_bytes for name, place in weights.places.items() if name.startswith("model.vision."))
    return config.quantization is None and eyes <= SECTION_BYTES


def write_graphs(source: Source, folder: Path) -> None:
    weights = Weights(folder)
    processor = source.processor()
    graphs = {"decoder": "decoder.onnx"}
    if source.config.vision_config is not None:
        size = processor.image_processor.size
        shape = size["height"], size["width"]
        has_heat = can_have_heat(source.config, weights)
        if has_heat:
            attach(trace_heat(source.config, shape), weights, folder / "heat.onnx")
            graphs["heat"] = "heat.onnx"
        vision = trace_vision(source.config, shape, with_features=has_heat)
        points = cut_points(vision, weights, SECTION_BYTES)
        attach(vision, weights, folder / "vision.onnx")
        first, *others = cut(folder / "vision.onnx", points) if points else ["vision.onnx"]
        graphs |= {"vision": first} | {f"vision_{number}": name for number, name in enumerate(others, start=2)}
    attach(trace_decoder(source.config), weights, folder / "decoder.onnx")
    describe(source, processor, weights, folder, graphs)
