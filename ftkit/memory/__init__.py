"""Will it fit? An estimate from the configuration alone, line by line, with a range."""

from ftkit.memory.estimates import TRL_LOSS_PATH, Item, MemoryEstimate, beside, estimate, estimate_setup
from ftkit.memory.fitting import advice, fits, gpu, gpu_table, savings, verdict
from ftkit.memory.footprint import GIB, NF4_BITS, NF4_DOUBLE_BITS, Constants, TrainingSetup, terms, total
from ftkit.memory.plots import plot_over_length, plot_parts
from ftkit.memory.shapes import ModelShape, _listed, find, names

__all__ = [
    "GIB",
    "NF4_BITS",
    "NF4_DOUBLE_BITS",
    "TRL_LOSS_PATH",
    "Constants",
    "Item",
    "MemoryEstimate",
    "ModelShape",
    "TrainingSetup",
    "_listed",
    "advice",
    "beside",
    "estimate",
    "estimate_setup",
    "find",
    "fits",
    "gpu",
    "gpu_table",
    "names",
    "plot_over_length",
    "plot_parts",
    "savings",
    "terms",
    "total",
    "verdict",
]
