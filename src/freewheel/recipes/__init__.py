"""Example models and recipes on real data."""

from __future__ import annotations

from freewheel.recipes.models import CharLSTM as CharLSTM
from freewheel.recipes.models import cnn as cnn
from freewheel.recipes.models import cnn_rgb as cnn_rgb
from freewheel.recipes.models import mlp as mlp

__all__ = ["CharLSTM", "cnn", "cnn_rgb", "mlp"]
