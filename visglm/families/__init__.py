"""Families of models: what is particular to one is a file and a row of `FAMILIES`, which everything else asks."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .base import Family, Manner, Room
from .glm4v import GLM41V, GLM46V, GLM_OCR
from .processor import FamilyProcessor
from .visualglm import VISUALGLM

FAMILIES: dict[str, Family] = {row.model_type: row for row in (VISUALGLM, GLM41V, GLM46V, GLM_OCR)}

__all__ = ["FAMILIES", "Family", "FamilyProcessor", "Manner", "Room", "check_can", "family_of", "manner_of"]


def family_of(config: Any) -> Family:
    """The row of a network's configuration.

    Raises:
        ConfigError: it is of no known family.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(f"{row.name} ({model_type})" for model_type, row in FAMILIES.items())
        raise ConfigError(f"the model type {config.model_type!r} is of no family that is known here: {known}.")
    return FAMILIES[config.model_type]


def check_can(config: Any, what: str) -> None:
    """Raise `ConfigError` where models of a family do not do `what` here."""
    row = family_of(config)
    if what not in row.can:
        others = ", ".join(other.name for other in FAMILIES.values() if what in other.can)
        raise ConfigError(f"{row.name} has no {what} here; what it has: {', '.join(row.can)}. {others} has it.")


def manner_of(config: Any) -> Any:
    """What prompts of a network depend on."""
    return family_of(config).manner(config)
