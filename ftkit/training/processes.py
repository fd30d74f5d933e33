"""What the processes of one training do together, and what the first of them does for all.

torchrun or accelerate starts them; each reads the rows and computes its share of every batch, and only the first writes
into the run folder. One process alone passes through here without a word. Knows nothing of models and rows.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ftkit.errors import FtkitError, FtkitWarning, TrainingError
from ftkit.hardware import detect, launch

T = TypeVar("T")

# What gloo and NCCL say where a process that they wait for is gone.
_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
    "NCCL communicator was aborted",
)


def connect() -> None:
    """Join the other processes, over gloo on CPUs and NCCL on GPUs; once is enough."""
    if launch().processes > 1:
        from accelerate import PartialState

        on_cpu = detect().device == "cpu"
        if on_cpu:  # accelerate would count CPUs, as in "cpu:1", and torch loads no checkpoint onto such a one
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        PartialState(cpu=on_cpu)


def disconnect() -> None:
    """Take leave of the other processes, at the end of a program."""
    if launch().processes > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that writes; alone it is."""
    return launch().rank == 0


def first_alone(work: Callable[[], T]) -> T:
    """Once all have come here the first process works, and every one gets its result, or raises its error.

    Args:
        work: gives back something that can be pickled, or None.

    Raises:
        FtkitError: as `work` did, in every process.
    """
    if launch().processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list, wait_for_everyone

    wait_for_everyone()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = work()
        except FtkitError as error:
            told[1] = error
    broadcast_object_list(told)
    result, refusal = told
    if refusal is not None:
        raise refusal
    return result  # type: ignore[no-any-return]


def any_of_them(wish: bool) -> bool:
    """Whether one of the processes wishes it: all get the same answer, so that they stop at the same step."""
    if launch().processes == 1:
        return wish
    return bool(summed(float(wish))[0])


def summed(*numbers: float) -> list[float]:
    """Each number, added up over the processes."""
    if launch().processes == 1:
        return list(numbers)
    import torch
    from accelerate import PartialState

    total = torch.tensor(numbers, dtype=torch.float64, device=PartialState().device)
    torch.distributed.all_reduce(total)
    return [float(number) for number in total]


@contextmanager
def speaking_once() -> Iterator[None]:
    """Warnings of ours are told by the first process alone."""
    if is_first():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FtkitWarning)
        yield


@contextmanager
def losses_explained() -> Iterator[None]:
    """Turn what gloo and NCCL say of a process that is gone into one sentence with what to do."""
    try:
        yield
    except RuntimeError as error:
        gone = launch().processes > 1 and any(sign in str(error) for sign in _GONE)
        if isinstance(error, FtkitError) or not gone:
            raise
        here, said = launch(), str(error).splitlines()[0][:120]
        raise TrainingError(
            f"Process {here.rank} of {here.processes} waits in vain: another one ended or no longer answers ({said}). "
            "What it said stands above. The same command goes on from the newest checkpoint."
        ) from error
