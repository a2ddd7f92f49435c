"""Pictures: from anything that holds one to RGB, and on to what the vision tower takes (`preprocess`)."""

from __future__ import annotations

from .formats import FORMATS
from .limits import DEFAULT_LIMITS, ImageLimits
from .load import SOURCES, load_image, load_images, refused

__all__ = ["DEFAULT_LIMITS", "FORMATS", "SOURCES", "ImageLimits", "load_image", "load_images", "refused"]
