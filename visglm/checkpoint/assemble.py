"""A source's tensors → a network, whole or not at all.

The network is built on the meta device, where it costs nothing; every name, shape and dtype is compared before the
first byte is read; then each tensor is copied to its place as it comes. Nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from ..adapters import Fingerprint
from ..errors import CheckpointError
from ..families import family_of
from ..quant import Quantization, replace_modules
from ..untrusted import told
from .source import Source

# `prepare(name, module, tensor)` sees each tensor, on its device and as it is stored, with the module that owns it, and
# returns True if it has put it there in its own way (a packed weight, say). It may be a view of a file: keep a copy,
# unless `quant.memory.stretch_of` says that the mapping stays.
Prepare = Callable[[str, nn.Module, Tensor], bool]


class Unfilled(TorchFunctionMode):
    """What would draw numbers for a tensor leaves it as it is, in this thread: on the meta device there are none, and
    drawing none takes torch longer than all else of a network's building."""

    # Of torch.nn.init, which names its argument, and of tensors. What is called within them is not seen.
    DRAWS: ClassVar[frozenset[str]] = frozenset({
        "normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_",
        "xavier_uniform_",
    })  # fmt: skip

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if getattr(function, "__name__", "") in self.DRAWS:
            return arguments[0] if arguments else options["tensor"]
        return function(*arguments, **options)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The network of `config` on the meta device: shapes without memory. Packed modules where it is quantized.

    Raises:
        CheckpointError: there is no network of these sizes. ConfigError: its quantization is unknown.
    """
    quantization = Quantization.of(config)
    with told(config._name_or_path or "The configuration", "the configuration"):
        with torch.device("meta"), Unfilled():
            network = family_of(config).network_class(config)
        if quantization is not None:
            replace_modules(network, quantization, torch.float32)
    return network


def check(source: Source, network: nn.Module) -> None:
    """Compare names, shapes and dtypes of `source` with those of `network`.

    Raises:
        CheckpointError: they differ, or files are damaged; everything is listed.
    """
    found, expected = source.keys(), network.state_dict()
    tied = getattr(network, "all_tied_weights_keys", {}) if source.config.tie_word_embeddings else {}
    problems = list(source.problems)
    for name in sorted(expected.keys() - found.keys() - tied.keys()):
        if not source.is_lost(name):
            problems.append(f"missing: {source.name_on_disk(name)}")
    for name in sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected: {source.name_on_disk(name)}")
    for name in sorted(found.keys() & expected.keys()):
        shape, wanted = found[name].shape, tuple(expected[name].shape)
        if shape != wanted:
            problems.append(f"shape: {source.name_on_disk(name)} is {list(shape)}, expected {list(wanted)}")
        if found[name].dtype.is_floating_point != expected[name].is_floating_point():
            kind = "a floating-point type" if expected[name].is_floating_point() else "an integer type"
            problems.append(f"dtype: {source.name_on_disk(name)} is {found[name].dtype}, expected {kind}")
    if problems:
        raise CheckpointError(source.path, problems, "Nothing was loaded. Download the folder again, whole.")


def fill(
    network: PreTrainedModel,
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    prepare: Prepare | None = None,
    fingerprint: Fingerprint | None = None,
) -> None:
    """Give `network` (on the meta device, and checked) the tensors of `source`.

    Args:
        dtype: of the floating-point weights; None keeps each as it is stored.
        prepare: see `Prepare`.
        fingerprint: is shown every tensor as it is stored.
    """
    for name, tensor in told_of(source):
        if fingerprint is not None:
            fingerprint.add(name, tensor)
        owner, _, attribute = name.rpartition(".")
        module = network.get_submodule(owner)
        if prepare is not None and prepare(name, module, tensor.to(device)):
            continue
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        # Even where nothing changes it is copied: a view of a file would die with the file.
        put(module, attribute, tensor.to(device, wanted, copy=True, memory_format=torch.contiguous_format))
    check_ties(network, source)
    network.tie_weights()
    with told(source.path, "the configuration"):
        compute_buffers(network, device)
    left = [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
    if left:
        raise CheckpointError(source.path, [f"missing: {name}" for name in left], "This is a defect of visglm.")
    network.eval()


def check_ties(network: PreTrainedModel, source: Source) -> None:
    """Tensors that are one by the configuration may lie in the files twice, but equal: tying lets one of them go.

    Raises:
        CheckpointError: they differ.
    """
    if not network.config.tie_word_embeddings:
        return
    for name, other in network.all_tied_weights_keys.items():
        first, second = network.get_parameter(name), network.get_parameter(other)
        if not first.is_meta and not second.is_meta and not torch.equal(first, second):
            names = f"{source.name_on_disk(name)} and {source.name_on_disk(other)}"
            problem = f"config: 'tie_word_embeddings' is true, which makes {names} one tensor; they differ"
            raise CheckpointError(source.path, [problem], "Nothing was loaded. Set it to false, or download it again.")


def told_of(source: Source) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a source, whose files may have changed since they were looked at."""
    tensors = source.tensors()
    while True:
        with told(source.path, "a weight file"):
            pair = next(tensors, None)
        if pair is None:
            return
        yield pair


def put(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter or buffer of that name."""
    if attribute in module._buffers:
        module._buffers[attribute] = tensor
    else:
        module._parameters[attribute] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def compute_buffers(network: PreTrainedModel, device: torch.device) -> None:
    """Fill the buffers that no checkpoint holds, such as rotary frequencies, in float32 whatever the weights are in."""
    owners = {}
    for name, buffer in network.named_non_persistent_buffers():
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            owners[owner] = module = network.get_submodule(owner)
            module._buffers[attribute] = torch.empty_like(buffer, device=device)
    for module in owners.values():
        network._init_weights(module)


def assemble(
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    prepare: Prepare | None = None,
    fingerprint: Fingerprint | None = None,
) -> PreTrainedModel:
    """`build`, `check` and `fill` in one: the network of a checkpoint, in evaluation mode.

    Raises:
        CheckpointError: something is missing, unexpected, of the wrong shape or dtype, or damaged; all is listed.
    """
    network = build(source.config)
    check(source, network)
    fill(network, source, device=device, dtype=dtype, prepare=prepare, fingerprint=fingerprint)
    network.generation_config = source.generation_config()
    return network
