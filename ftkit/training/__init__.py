"""One training run: `train` leaves an adapter and a record that survives a kill, and `diagnose` reads the curve.

A run is a folder; what stands in it is read back here, drawn, and laid beside other runs.
"""

from ftkit.training.checkpoints import all_in, problem, remove
from ftkit.training.diagnosis import diagnose
from ftkit.training.history import History, HistoryPoint, RunsTable, read_points, resumable_step
from ftkit.training.launch import accelerate_config, fsdp_qlora, share_among, skypilot_task
from ftkit.training.loop import refuse, train
from ftkit.training.plots import plot_curves, plot_loss, plot_runs
from ftkit.training.processes import disconnect

__all__ = [
    "History",
    "HistoryPoint",
    "RunsTable",
    "accelerate_config",
    "all_in",
    "diagnose",
    "disconnect",
    "fsdp_qlora",
    "plot_curves",
    "plot_loss",
    "plot_runs",
    "problem",
    "read_points",
    "refuse",
    "remove",
    "resumable_step",
    "share_among",
    "skypilot_task",
    "train",
]
