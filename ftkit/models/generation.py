"""Answers, batched: sorted by length, padded on the left, stopped at the stop token.

What all prompts of a batch begin with (template, system text, instruction) is read once for all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ftkit import chat
from ftkit.chat import Messages
from ftkit.hardware import release_memory
from ftkit.models.likelihood import evaluating
from ftkit.models.loading import backend_of
from ftkit.tables import visible

_WORTH_SHARING_TOKENS = 64  # reading a beginning apart costs about as much as these do in the batch
_OWN_CACHE = ("cache_implementation", "prefill_chunk_size", "num_beams")  # with these `generate` wants to make its own


@dataclass(frozen=True)
class Answer:
    """What the model said: its text, its length in tokens, and whether it ended by itself."""

    text: str
    tokens: int
    stopped: bool

    def __str__(self) -> str:
        return visible(self.text)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Messages | Mapping[str, Any]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 42,
    constraint: Callable[[], Any] | None = None,
    progress: bool = False,
) -> list[Answer]:
    """Answer every prompt, in the order given.

    Prompts of like length share a batch, so that little is padded. Greedy at temperature 0. An answer that reaches
    `max_new_tokens` without the stop token has `stopped=False`: its end is missing.

    Args:
        model: any causal language model; a 4-bit one is slow on a CPU, so merge first (`models.load_adapter`).
        tokenizer: with a chat template.
        prompts: each a question, messages, or a row as `data.prompt` gives it, with the schemas of its tools.
        max_new_tokens: most tokens of one answer.
        batch_size: prompts answered at once.
        temperature: 0 takes the likeliest token; above it tokens are drawn with `seed`.
        seed: of the draws.
        constraint: makes a logits processor for each batch, which says what may be written.
        progress: show a bar.
    """
    import torch
    from tqdm.auto import tqdm

    asked = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = [chat.render(prompt, tokenizer, add_generation_prompt=True) for prompt in asked]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers: list[Answer | None] = [None] * len(ids)
    hook = model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    if temperature > 0:
        torch.manual_seed(seed)
    try:
        with evaluating(model), tqdm(total=len(ids), unit="answer", disable=not progress, leave=False) as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                said = _answer(model, tokenizer, [ids[i] for i in rows], max_new_tokens, temperature, constraint)
                for row, answer in zip(rows, said, strict=True):
                    answers[row] = answer
                bar.update(len(rows))
                release_memory()
    finally:
        hook.remove()
    return [answer for answer in answers if answer is not None]


def _contiguous(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the last hidden states: for a strided view and a frozen head torch would copy the head once a prompt."""
    return (inputs[0].contiguous(), *inputs[1:])


def _answer(
    model: Any,
    tokenizer: Any,
    batch: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    constraint: Callable[[], Any] | None,
) -> list[Answer]:
    """Answer one batch; `batch` holds token ids, shortest first."""
    import torch

    width, pad = max(map(len, batch)), tokenizer.pad_token_id
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
    stops = chat.stop_ids(tokenizer, model)
    drawing = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=_shared_beginning(model, batch, width),
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=pad,
            use_cache=True,
            logits_processor=[constraint()] if constraint else None,
            **drawing,
        )
    return [_cut(row, stops, tokenizer) for row in output[:, width:].tolist()]


def _shared_beginning(model: Any, batch: list[list[int]], width: int) -> Any:
    """What attention keeps of the first slots of a padded batch, from one reading of the beginning that all rows share.

    Slots, padding and positions are those of a batch without it. None where little would be saved, or where the model
    keeps more than keys and values of every token (sliding windows, recurrent states).
    """
    import torch
    from transformers.cache_utils import DynamicLayer

    columns = zip(*(row[:-1] for row in batch), strict=False)  # a last token is left to be read
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    if len(shared) * (len(batch) - 1) < _WORTH_SHARING_TOKENS or backend_of(model) == "unsloth":
        return None
    if any(getattr(model.generation_config, setting, None) for setting in _OWN_CACHE):
        return None
    device = model.device
    read = model.get_decoder()(input_ids=torch.tensor([shared], device=device), use_cache=True)
    cache = getattr(read, "past_key_values", None)
    layers = getattr(cache, "layers", [])
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    padding = torch.tensor([[width - len(row)] for row in batch], device=device)
    source = (torch.arange(len(shared), device=device) - padding).clamp(min=0)  # rows x slots; what pads hold is masked
    for layer in layers:
        layer.keys = layer.keys[0][:, source].transpose(0, 1).contiguous()
        layer.values = layer.values[0][:, source].transpose(0, 1).contiguous()
    return cache


def _cut(row: list[int], stops: list[int], tokenizer: Any) -> Answer:
    end = next((i for i, token in enumerate(row) if token in stops), None)
    kept = row if end is None else row[:end]
    return Answer(tokenizer.decode(kept, skip_special_tokens=True), len(kept) + (end is not None), end is not None)
