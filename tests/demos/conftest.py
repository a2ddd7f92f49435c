"""The page's own modules lie beside its script, which Streamlit puts on the path."""

from __future__ import annotations

import sys
from pathlib import Path

DEMOS = Path(__file__).parents[2] / "demos"
sys.path.insert(0, str(DEMOS))
