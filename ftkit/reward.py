"""Quality by a reward model from the Hub: one number for a whole chat, learnt from people's preferences."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftkit import hub, template
from ftkit.errors import FtkitError, ModelError
from ftkit.hardware import detect
from ftkit.likelihood import batches, context_tokens, evaluating, padded
from ftkit.quiet import quiet
from ftkit.scoring import ScoreFn, answer_of, each
from ftkit.template import Messages


def reward_model(model: Any, tokenizer: Any, batch_size: int = 8) -> ScoreFn:
    """Score by a reward model with one output; the chat is rendered with its own template, and rewards have no bounds.

    None are rows that do not end with an answer, exceed the model's context, or are refused by the template.

    Raises:
        ModelError: a model with several outputs.
    """
    _check_outputs(model.config, type(model).__name__)

    def score(rows: Sequence[Messages]) -> list[float | None]:
        """One score a row, in order."""
        ids = each(rows, lambda messages: _whole_chat(messages, tokenizer, context_tokens(model)))
        kept = [(i, row) for i, row in enumerate(ids) if row]
        seen, pad = {token for _, row in kept for token in row}, tokenizer.pad_token_id
        if pad is None or pad in seen:  # the head reads the last token that is no padding: take one that no row holds
            pad = next(i for i in range(len(seen) + 1) if i not in seen)
        scores: list[float | None] = [None] * len(rows)
        with evaluating(model), _padding_with(model, pad):
            for picked in batches([len(row) for _, row in kept], batch_size):
                tokens, mask = padded([kept[k][1] for k in picked], pad, model.device)
                rewards = model(input_ids=tokens, attention_mask=mask).logits[:, 0].float().tolist()
                for k, reward in zip(picked, rewards, strict=True):
                    scores[kept[k][0]] = reward if math.isfinite(reward) else None
        return scores

    return score


def load_reward_model(name: str | Path) -> tuple[Any, Any]:
    """Load a reward model and its tokenizer, in 16-bit where this machine computes in it.

    Weights come from safetensors alone, and no code from a model's repository is ever run.

    Raises:
        ModelError: unknown, gated, out of reach, without safetensors; with several outputs, or an output that was never trained.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source, hardware = hub.resolve(str(name)), detect()
    dtype = torch.bfloat16 if hardware.bf16 else torch.float16 if hardware.device == "cuda" else torch.float32
    try:
        with quiet(enabled=Path(source).is_dir()):
            _check_outputs(AutoConfig.from_pretrained(source, trust_remote_code=False), str(name))
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                device_map={"": 0} if hardware.device == "cuda" else "cpu",
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except FtkitError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{str(name)!r} could not be loaded as a reward model: {(str(error) or type(error).__name__).splitlines()[0]} Wanted: "
            "a sequence classifier that Transformers knows, with *.safetensors; code from a repository is never run."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{str(name)!r} has no weights for {', '.join(missing[:3])}, so its rewards would be random. "
            "Take a model that was trained as a reward model."
        )
    return model, tokenizer


def _whole_chat(messages: Messages, tokenizer: Any, context: int | None) -> list[int] | None:
    if not answer_of(messages):
        return None
    ids = list(tokenizer(template.render(messages, tokenizer), add_special_tokens=False)["input_ids"])
    return None if context and len(ids) > context else ids


def _check_outputs(config: Any, name: str) -> None:
    if config.num_labels != 1:
        raise ModelError(
            f"{name} has {config.num_labels} outputs; a reward model has one (num_labels=1). A classifier's labels are no "
            "ranking: take a reward model, or write a score function that reads the label you want."
        )


@contextmanager
def _padding_with(model: Any, pad: int) -> Iterator[None]:
    """Let the model's config name `pad` as padding inside the block."""
    config = model.config.get_text_config()
    before, config.pad_token_id = config.pad_token_id, pad
    try:
        yield
    finally:
        config.pad_token_id = before
