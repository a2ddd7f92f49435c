"""What tells one set of weights from another of equal shapes, without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from torch import Tensor

SAMPLES_PER_AXIS = 16  # a matrix gives some 256 numbers: enough for training of any kind to change one of them


class Fingerprint:
    """A hash over names, shapes and evenly spread numbers of tensors that come one by one, in any order.

    Floating-point numbers count as float32, which holds those of 16 bits exactly: a copy in a wider type is the same
    base, one that was rounded is another.
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor into account; it may be a view of a file, of which little is read."""
        spread = tuple(slice(None, None, max(1, size // SAMPLES_PER_AXIS)) for size in tensor.shape)
        sample = tensor.detach()[spread].cpu()
        sample = sample.float() if sample.is_floating_point() else sample
        digest = hashlib.sha256(f"{name} {list(tensor.shape)}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
        self._digests[name] = digest.digest()

    def hex(self) -> str:
        """The fingerprint of all that was added."""
        return hashlib.sha256(b"".join(self._digests[name] for name in sorted(self._digests))).hexdigest()


def fingerprint_of(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """The fingerprint of tensors by name."""
    fingerprint = Fingerprint()
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        fingerprint.add(name, tensor)
    return fingerprint.hex()
