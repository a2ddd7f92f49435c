"""Fine-tuning: data, methods, the run, the report."""

from __future__ import annotations

from .check import DataReport, check_data, convert_data
from .formats import CAPTION_QUESTIONS, FORMATS

__all__ = ["CAPTION_QUESTIONS", "FORMATS", "DataReport", "check_data", "convert_data"]
