"""Fine-tuning: data, methods, the run, the report."""

from __future__ import annotations

from .check import DataReport, check_data, convert_data
from .evaluate import Evaluation, evaluate
from .formats import CAPTION_QUESTIONS, FORMATS
from .hub import push
from .methods import METHODS
from .outlook import Outlook, outlook
from .report import FinetuneReport
from .run import Stop, finetune

__all__ = [
    "CAPTION_QUESTIONS", "FORMATS", "METHODS", "DataReport", "Evaluation", "FinetuneReport", "Outlook",
    "Stop", "check_data", "convert_data", "evaluate", "finetune", "outlook", "push",
]  # fmt: skip
