"""What was measured on GPUs with and without Unsloth, by others and by this kit: device, day, settings and source beside it."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.errors import MissingArtifact

_FILE = Path(__file__).parent / "samples/gpu_records.json"


@dataclass(frozen=True)
class Recorded:
    """One table; shows itself with where it comes from. None stands for a run that did not fit into memory."""

    question: str
    device: str
    day: str
    model: str
    settings: str
    by: str
    source: str
    rows: tuple[dict[str, Any], ...]

    @property
    def where(self) -> str:
        """Device, day, settings, who measured, and where it stands."""
        return f"{self.model}, {self.device}, {self.day}. {self.settings}. Measured by {self.by}: {self.source}"

    def __str__(self) -> str:
        lines = [" · ".join(f"{name} {_text(value)}" for name, value in row.items()) for row in self.rows]
        return "\n".join([self.question, *lines, self.where])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{_title(name)}</th>" for name in self.rows[0])
        rows = ("".join(f"<td>{html.escape(_text(value))}</td>" for value in row.values()) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p>{self.question}</p><table><tr>{head}</tr>{body}</table><p>{html.escape(self.where)}</p>"


def load(name: str = "length") -> Recorded:
    """A record by name: "length", "baseline" and "t4" as others published them, "h200" from this kit.

    Raises:
        MissingArtifact: no record of that name; lists those that there are.
    """
    known = json.loads(_FILE.read_text(encoding="utf-8"))
    if name not in known:
        raise MissingArtifact(f"No record {name!r}. There are: {', '.join(known)}.")
    facts = known[name]
    return Recorded(**{**facts, "rows": tuple(facts["rows"])})


def _title(name: str) -> str:
    """A column's name as a heading, its unit last."""
    for end, unit in (("_tokens_per_s", ", tokens/s"), ("_tokens", ", tokens"), ("_gb", ", GB"), ("_gib", ", GiB")):
        if name.endswith(end):
            return name.removesuffix(end).replace("_", " ") + unit
    return {"gb": "GB", "tokens_per_s": "tokens/s", "plain_torch_2_1_1": "plain, torch 2.1.1"}.get(
        name, name.replace("_", " ")
    )


def _text(value: Any) -> str:
    return "out of memory" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
