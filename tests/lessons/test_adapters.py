"""An adapter's file is told by what it holds, not by what its maker says."""

import pytest
import torch
from safetensors.torch import save_file

from ftkit import Run, lessons


def test_the_format_the_count_and_the_size_are_those_of_the_file(tmp_path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert lessons.adapter_files({"mine": tmp_path}).rows == [("mine", "F32", "10", "0.0")]


def test_several_formats_are_all_named(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2).bfloat16()}, tmp_path / "adapter_model.safetensors")
    assert lessons.adapter_files({"mixed": tmp_path}).rows[0][1] in {"F32, BF16", "BF16, F32"}


def test_the_bundled_run_has_a_16_bit_adapter():
    """What lesson 04 says of the quickstart's."""
    ((_, form, count, size),) = lessons.adapter_files({"quickstart": Run.sample() / "adapter"}).rows
    assert (form, count, size) == ("BF16", "4,884,480", "9.4")


def test_a_folder_without_an_adapter_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        lessons.adapter_files({"none": tmp_path})
