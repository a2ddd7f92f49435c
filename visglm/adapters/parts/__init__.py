"""What an adapter is made of: one class for each kind of change to a network, a row of `KINDS` each.

A part is in the network or not (`on`, `off`, `remove`), and its base comes back to the bit when it is off.
"""

from __future__ import annotations

from ..names import PREFIX_END
from .lora import LORA, Lora, lora_config, pairs
from .part import Part
from .prefix import Prefix
from .whole import Whole

__all__ = ["KINDS", "LORA", "Lora", "Part", "Prefix", "Whole", "kind_of", "lora_config", "pairs"]

KINDS: dict[str, type[Part]] = {part.kind: part for part in (Lora, Prefix, Whole)}


def kind_of(name: str) -> str:
    """The kind of part that a tensor in an adapter's files belongs to."""
    if LORA.fullmatch(name):
        return Lora.kind
    return Prefix.kind if name.endswith(PREFIX_END) else Whole.kind
