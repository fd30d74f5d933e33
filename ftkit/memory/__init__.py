"""Will it fit? An estimate from shape and settings alone, line by line, with a range and what to change first."""

from ftkit.memory.estimates import TRL_LOSS_PATH, MemoryEstimate, beside, estimate, estimate_setup
from ftkit.memory.fitting import advice, fits, gpu, savings, verdict
from ftkit.memory.footprint import CPU_CHUNK_TOKENS, NF4_BITS, NF4_DOUBLE_BITS, Constants, TrainingSetup, peak_gib
from ftkit.memory.plots import plot_over_length, plot_parts
from ftkit.memory.shapes import ModelShape, find, names

__all__ = [
    "CPU_CHUNK_TOKENS",
    "NF4_BITS",
    "NF4_DOUBLE_BITS",
    "TRL_LOSS_PATH",
    "Constants",
    "MemoryEstimate",
    "ModelShape",
    "TrainingSetup",
    "advice",
    "beside",
    "estimate",
    "estimate_setup",
    "find",
    "fits",
    "gpu",
    "names",
    "peak_gib",
    "plot_over_length",
    "plot_parts",
    "savings",
    "verdict",
]
