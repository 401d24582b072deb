"""Regularizers: they reduce over-fitting on little data."""

from ftengine_builtins.regularizers.criteria import LabelSmoothing, RDrop
from ftengine_builtins.regularizers.dropout import Dropout
from ftengine_builtins.regularizers.ema import Ema
from ftengine_builtins.regularizers.l2_sp import L2SP
from ftengine_builtins.regularizers.load_balancing import LoadBalancing
from ftengine_builtins.regularizers.mixout import Mixout
from ftengine_builtins.regularizers.neftune import Neftune
from ftengine_builtins.regularizers.wise_ft import WiseFT

__all__ = [
    "L2SP",
    "Dropout",
    "Ema",
    "LabelSmoothing",
    "LoadBalancing",
    "Mixout",
    "Neftune",
    "RDrop",
    "WiseFT",
]
