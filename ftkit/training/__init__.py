"""One training run: `train` leaves an adapter and a record that survives a kill, and `diagnose` reads the curve.

A run is a folder; what stands in it is read back here, drawn, and laid beside other runs.
"""

from ftkit.training.checkpoints import all_in, problem, remove
from ftkit.training.diagnosis import diagnose
from ftkit.training.history import History, HistoryPoint, RunsTable, read_points, resumable_step
from ftkit.training.loop import train
from ftkit.training.plots import plot_curves, plot_loss, plot_runs

__all__ = [
    "History",
    "HistoryPoint",
    "RunsTable",
    "all_in",
    "diagnose",
    "plot_curves",
    "plot_loss",
    "plot_runs",
    "problem",
    "read_points",
    "remove",
    "resumable_step",
    "train",
]
