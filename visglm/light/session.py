"""Graphs as sessions of ONNX Runtime, each held against what the manifest says."""

from __future__ import annotations

import os
from typing import Any

from ..errors import CheckpointError, require
from ..untrusted import DamagedFile
from .graph import locations
from .manifest import NEXT_STEP, Manifest


def check_locations(manifest: Manifest, name: str) -> None:
    """Raise `CheckpointError` where a graph would read files whose hashes nobody has compared."""
    path = manifest.graphs[name]
    try:
        if foreign := locations(path) - manifest.files:
            raise DamagedFile(f"file {path.name}: it takes weights from {', '.join(sorted(foreign))[:200]}")
    except DamagedFile as error:
        raise CheckpointError(manifest.folder, [str(error)], NEXT_STEP) from error


def open_graph(manifest: Manifest, name: str, is_held: bool = True) -> Any:
    """A session of ONNX Runtime.

    Args:
        is_held: it stays open, so that weights are got ready for it once. Else they are read from their files as they
            are needed, each widened for itself, and nothing of them is kept.

    Raises:
        CheckpointError: it is no graph that can be used.
    """
    path = manifest.graphs[name]
    runtime = require("light", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    # By itself it takes all cores that there are, even where this process has one of them. And threads that wait by
    # spinning keep others from the cores.
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    more: dict[str, Any] = {}
    if not is_held:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # What comes after the basic ones folds constants whatever it is told, as of ONNX Runtime 1.32.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        more["disabled_optimizers"] = ["ConstantFolding"]
    problem: Exception | None = None
    # Where somebody in this process has set up threads for all sessions, as packed weights of torch's do, it refuses to
    # make a session's own, and there is no way to ask beforehand.
    for has_own_threads in (True, False):
        options.use_per_session_threads = has_own_threads
        try:
            # Without its own way back, which prints on stdout.
            session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0, **more
            )
            problem = None  # whose traceback would keep every caller's session alive with it
            return session
        except Exception as error:  # the library has a dozen types for graphs that make no sense
            problem = problem or error
    line = str(problem).splitlines()[0][:200]
    raise CheckpointError(
        manifest.folder, [f"file {path.name}: no graph that can be used ({line})"], NEXT_STEP
    ) from problem


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_shapes(manifest: Manifest, name: str, session: Any, wanted: dict[str, list[int | None] | None]) -> None:
    """Raise `CheckpointError` where a graph takes or gives anything else than the manifest says; None is any size."""
    ends = [*session.get_inputs(), *session.get_outputs()]
    found = {end.name: [size if isinstance(size, int) else None for size in end.shape] for end in ends}
    if found.keys() != wanted.keys() or any(shape not in (None, found[end]) for end, shape in wanted.items()):
        raise CheckpointError(manifest.folder, [f"the graph {name} is another model's"], NEXT_STEP)
