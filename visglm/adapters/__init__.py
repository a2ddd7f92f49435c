"""What is attached to a network, and over which base: adapters of fine-tuning, one owner for all of them.

`Adapters` attaches, switches, merges and takes back; `Delta` is an adapter as tensors and as a folder; `KINDS` are the
parts one is made of.
"""

from __future__ import annotations

from .attached import DEFAULT_NAME, Adapters
from .delta import (
    EMBEDDED,
    FILES,
    HERE,
    LORA_CONFIG_NAME,
    METADATA_NAME,
    Delta,
    Home,
    is_adapter,
    read_delta,
    read_tensors,
    relative_to,
    write_delta,
)
from .fingerprint import Fingerprint, fingerprint_of
from .names import base_name, base_tensors, lora_layers
from .parts import KINDS, Lora, Part, Prefix, Whole
from .sat import is_leftover, read_leftovers

__all__ = [
    "DEFAULT_NAME", "EMBEDDED", "FILES", "HERE", "KINDS", "LORA_CONFIG_NAME", "METADATA_NAME", "Adapters", "Delta",
    "Fingerprint", "Home", "Lora", "Part", "Prefix", "Whole", "base_name", "base_tensors", "fingerprint_of",
    "is_adapter", "is_leftover", "lora_layers", "read_delta", "read_leftovers", "read_tensors", "relative_to",
    "write_delta",
]  # fmt: skip
