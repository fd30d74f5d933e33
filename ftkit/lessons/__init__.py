"""Only for lessons: exercises that answer back, short runs, LoRA and 4 bits by hand, claims beside measurements."""

from ftkit.lessons.axolotl import (
    axolotl_python,
    axolotl_recipe,
    axolotl_rows,
    axolotl_says,
    axolotl_stored,
    train_with_axolotl,
)
from ftkit.lessons.backends import find_patches, load_record, measure_backends, patches_written, supported_families
from ftkit.lessons.claims import hardware_table, memory_claims, settings_table
from ftkit.lessons.commands import stream
from ftkit.lessons.exercises import check, explore, predict, you_should_see
from ftkit.lessons.judge_pairs import judge_exam
from ftkit.lessons.lora import adapter_parameters, rank_errors, step_size, targets, truncated
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
)
from ftkit.lessons.quantization import error, roundtrip, stored
from ftkit.lessons.scaling import per_gpu_gib, published_scaling
from ftkit.lessons.short_runs import (
    compare_variants,
    fit,
    logits,
    mean_loss,
    plain_weight,
    row_losses,
    tokens,
    trained_tokens,
)

__all__ = [
    "adapter_parameters",
    "axolotl_python",
    "axolotl_recipe",
    "axolotl_rows",
    "axolotl_says",
    "axolotl_stored",
    "check",
    "compare_variants",
    "error",
    "explore",
    "find_patches",
    "fit",
    "hardware_table",
    "held_out",
    "judge_exam",
    "load_record",
    "logits",
    "mark",
    "mean_error",
    "mean_loss",
    "measure_backends",
    "measured_pairs",
    "measurements",
    "memory_claims",
    "own_rows",
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
    "predict",
    "published_scaling",
    "rank_errors",
    "roundtrip",
    "row_losses",
    "settings_table",
    "share_below_high",
    "step_size",
    "stored",
    "stream",
    "supported_families",
    "targets",
    "tokens",
    "train_with_axolotl",
    "trained_tokens",
    "truncated",
    "you_should_see",
]
