"""Fine-tuning: data, methods, the run, the report."""

from __future__ import annotations

from .check import DataReport, check_data, convert_data
from .evaluate import Evaluation, evaluate
from .formats import CAPTION_QUESTIONS, FORMATS

__all__ = ["CAPTION_QUESTIONS", "FORMATS", "DataReport", "Evaluation", "check_data", "convert_data", "evaluate"]
