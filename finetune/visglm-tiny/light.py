"""The form of visglm-tiny that answers without torch, beside its weights in visglm/assets.

Usage: light.py
"""

from __future__ import annotations

from visglm.checkpoint import EMBEDDED_MODEL
from visglm.export import add_graphs

if __name__ == "__main__":
    add_graphs(EMBEDDED_MODEL)
