"""Only for lessons: exercises that answer back, short runs, LoRA and 4 bits by hand, claims beside measurements."""

from ftkit.lessons.adapters import adapter_files
from ftkit.lessons.axolotl import (
    axolotl_python,
    axolotl_recipe,
    axolotl_rows,
    axolotl_says,
    axolotl_stored,
    train_with_axolotl,
)
from ftkit.lessons.backends import (
    find_patches,
    load_record,
    measure_backends,
    patches_written,
    recorded_speed_ups,
    supported_families,
)
from ftkit.lessons.broken_runs import adapter_difference, break_four, kill_half_way, no_figure
from ftkit.lessons.claims import hardware_table, memory_claims, settings_table
from ftkit.lessons.commands import stream
from ftkit.lessons.exercises import check, explore, predict, you_should_see
from ftkit.lessons.finished import finished_run
from ftkit.lessons.judge_pairs import judge_exam
from ftkit.lessons.lora import (
    adapter_parameters,
    gaps_to_peft,
    rank_shares,
    step_size,
    target_table,
    targets,
    truncated,
)
from ftkit.lessons.measured import held_out, mean_error, measured_pairs, measurements, share_below_high
from ftkit.lessons.own import own_rows
from ftkit.lessons.planted import mark
from ftkit.lessons.plots import (
    plot_adapter_weight,
    plot_against_measured,
    plot_backends,
    plot_blocksize,
    plot_by_length,
    plot_levels,
    plot_losses,
    plot_rank_tradeoff,
    plot_rounding,
    plot_saved_by_qlora,
    plot_spectrum,
    plot_speed_ups,
)
from ftkit.lessons.quantization import error, nf4_levels, packed_codes, projections, rounded, roundtrip, stored
from ftkit.lessons.recorded_runs import hidden_nan, sick_runs
from ftkit.lessons.scaling import per_gpu_gib, published_scaling
from ftkit.lessons.short_runs import (
    accumulated_loss,
    compare_rows,
    compare_variants,
    fit,
    full_update,
    logits,
    lora_update,
    loss_with,
    mean_loss,
    plain_weight,
    row_losses,
    tokens,
)
from ftkit.lessons.twins import search_twins

__all__ = [
    "accumulated_loss",
    "adapter_difference",
    "adapter_files",
    "adapter_parameters",
    "axolotl_python",
    "axolotl_recipe",
    "axolotl_rows",
    "axolotl_says",
    "axolotl_stored",
    "break_four",
    "check",
    "compare_rows",
    "compare_variants",
    "error",
    "explore",
    "find_patches",
    "finished_run",
    "fit",
    "full_update",
    "gaps_to_peft",
    "hardware_table",
    "held_out",
    "hidden_nan",
    "judge_exam",
    "kill_half_way",
    "load_record",
    "logits",
    "lora_update",
    "loss_with",
    "mark",
    "mean_error",
    "mean_loss",
    "measure_backends",
    "measured_pairs",
    "measurements",
    "memory_claims",
    "nf4_levels",
    "no_figure",
    "own_rows",
    "packed_codes",
    "patches_written",
    "per_gpu_gib",
    "plain_weight",
    "plot_adapter_weight",
    "plot_against_measured",
    "plot_backends",
    "plot_blocksize",
    "plot_by_length",
    "plot_levels",
    "plot_losses",
    "plot_rank_tradeoff",
    "plot_rounding",
    "plot_saved_by_qlora",
    "plot_spectrum",
    "plot_speed_ups",
    "predict",
    "projections",
    "published_scaling",
    "rank_shares",
    "recorded_speed_ups",
    "rounded",
    "roundtrip",
    "row_losses",
    "search_twins",
    "settings_table",
    "share_below_high",
    "sick_runs",
    "step_size",
    "stored",
    "stream",
    "supported_families",
    "target_table",
    "targets",
    "tokens",
    "train_with_axolotl",
    "truncated",
    "you_should_see",
]
