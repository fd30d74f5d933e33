"""What several GPUs need and gain: an estimate divided among them, and what others have measured and published."""

from ftkit import files, tables
from ftkit.memory import MemoryEstimate


def per_gpu_gib(need: MemoryEstimate, gpus: int, *, shard: bool) -> float:
    """Likely GiB on each of so many GPUs: DDP keeps everything on each; FSDP shares out what does not grow with tokens.

    FSDP also holds the weights of a layer or two, gathered while they are at work: a few per cent that are left out.
    """
    fixed = sum(part.gib for part in need.parts if not part.grows)
    return need.likely_gib - fixed + fixed / gpus if shard else need.likely_gib


def published_scaling() -> tables.Table:
    """Published runs on several GPUs: rows a second, and what each GPU does of what it does in the smallest set-up."""
    known, cells = files.sample("several_gpus"), []
    for series in known["series"]:
        rates = {gpus: rows / seconds for gpus, rows, seconds in series["measured"]}
        fewest = min(rates)
        for gpus, rate in rates.items():
            share = rate / gpus / (rates[fewest] / fewest)
            about = (series["what"], series["source"]) if gpus == fewest else ("", "")
            cells.append((about[0], str(gpus), f"{rate:.2f}", f"{share:.0%}", about[1]))
    head = ("what was trained, on which GPUs", "GPUs", "rows/s", "a GPU's share kept", "source")
    return tables.Table(head, cells, caption=known["about"])
