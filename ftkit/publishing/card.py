"""A model card out of a run's own facts: what it is, how to use it, what it was trained on, how good it is, its limits.

Nothing in it is typed by hand and no row of the data stands in it; the prose is in `samples/model_card.md`. Folders of
this machine and secrets never reach it. A card that somebody has edited is not written over.
"""

import itertools
import json
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

from ftkit import evaluation, files, tables
from ftkit.config import TrainConfig
from ftkit.data import FILES
from ftkit.errors import ConfigError, DataError, FtkitWarning, MissingArtifact, without_secrets
from ftkit.evaluation import EvalReport, Score
from ftkit.publishing.licences import Licence, licence, without_paths
from ftkit.runs import Run

CARD = "MODEL_CARD.md"
_BESIDE = "MODEL_CARD.new.md"
_THINGS = {"adapter": "LoRA adapter", "merged": "model", "gguf": "GGUF model"}
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_SETTINGS = (
    *("load_in_4bit", "lora_r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "optim", "weight_decay", "max_length", "dtype", "seed"),
)
_MEASURED = {
    "steps": "weight updates",
    "tokens": "trained tokens",
    "trainable_parameters": "trained parameters",
    "seconds": "training time, s",
    "peak_memory_gib": "peak memory, GiB",
    "device": "device",
    "backend": "backend",
}
_LOADERS = {
    "adapter": ("peft", "AutoPeftModelForCausalLM"),
    "merged": ("transformers", "AutoModelForCausalLM"),
}
_USAGE = """\
from {package} import {loader}
from transformers import AutoTokenizer

name = "{repo_id}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = {loader}.from_pretrained(name, dtype="auto")

messages = [{{"role": "user", "content": "Write your prompt here."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=128)
answer = output[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def model_card(run: Run, terms: Licence | None = None) -> Path:
    """Write the card of a run's adapter into its folder as `MODEL_CARD.md`.

    Args:
        run: a finished run; what it has not measured, the card says is not measured.
        terms: from `licence`, where you know more of base or data than the run does.

    Returns:
        The card; or `MODEL_CARD.new.md` beside one that was edited by hand, with a warning.

    Raises:
        MissingArtifact: the run has no adapter.
        ConfigError: the run is the sample in the installed package.
    """
    if run.path.resolve() == Run.sample().path.resolve():
        raise ConfigError(
            "The sample run belongs to the installed package, and nothing is written there. Copy it first: "
            "shutil.copytree(Run.sample().path, 'runs/sample'), then Run.open('runs/sample')."
        )
    run.refuse_foreign()
    text = render(run, terms or licence(run), placeholder(run))
    if is_edited(run):
        warnings.warn(
            f"{run / CARD} was edited since ftkit wrote it, and stays. The new card is in {_BESIDE}.",
            FtkitWarning,
            stacklevel=2,
        )
        return files.write_text(run / _BESIDE, text)
    path = files.write_text(run / CARD, text)
    run.finish("card", sha256=files.digest(path))
    return path


def is_edited(run: Run) -> bool:
    """Whether the run has a card, and it is not as ftkit wrote it."""
    known = run.facts.get("card")
    path = run / CARD
    return path.is_file() and files.digest(path) != (known.get("sha256") if isinstance(known, dict) else None)


def placeholder(run: Run) -> str:
    """What stands for the repository's name in a card before anybody has named one."""
    return f"your-name/{run.path.resolve().name}"


def render(run: Run, terms: Licence, repo_id: str, kind: str = "adapter") -> str:
    """The text of a card, metadata first.

    Args:
        run: whose facts are told.
        terms: what base and data ask.
        repo_id: the name under which it will be loaded.
        kind: what the repository holds: "adapter", "merged" or "gguf".
    """
    from huggingface_hub import ModelCard, ModelCardData

    reports = _summary(run)
    facts = run.facts.get("train")
    facts = facts if isinstance(facts, dict) else {}
    config = TrainConfig.load(run / "config.yaml") if (run / "config.yaml").is_file() else None
    base, title = terms.base.of, repo_id.partition("/")[2]
    source = "" if terms.data.of == "the training data" else terms.data.of
    data = ModelCardData(
        model_name=title,
        base_model=base if "/" in base else None,
        base_model_relation={"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}[kind],
        library_name=_LIBRARIES[kind],
        pipeline_tag="text-generation",
        tags=["ftkit", "lora", *(["qlora"] if config and config.load_in_4bit else []), "sft"],
        datasets=[source] if source.count("/") == 1 and " " not in source else None,
        eval_results=_results(reports, source, str(facts.get("data_digest", "unknown"))) or None,
        **cast(dict[str, Any], terms.metadata()),
    )
    gate = _gate(run)
    card = ModelCard.from_template(
        data,
        template_str=resources.files("ftkit").joinpath("samples/model_card.md").read_text(encoding="utf-8"),
        title=title,
        kind=kind,
        thing=_THINGS[kind],
        base_link=f"[{base}](https://huggingface.co/{base})" if "/" in base else f"`{base}`",
        rows=_rows(run),
        source=source,
        data_licence=terms.data.title,
        digest=facts.get("data_digest", "not recorded"),
        settings=[(name, _cell(getattr(config, name))) for name in _SETTINGS] if config else [],
        measured=_measured(facts, run),
        usage=_usage(repo_id, kind),
        evaluated=_evaluated(run, reports),
        gate=gate,
        limits=_limits(run, reports, config, gate is not None),
        shown=terms.base.shown,
        licence_sentence=_sentence(terms),
        duties=terms.duties,
        questions=terms.open_questions,
        table_date=terms.date,
        version=run.facts.get("versions", {}).get("ftkit", ""),
    )
    return without_secrets(_without_folders(str(card.content))).rstrip() + "\n"


def _without_folders(text: str) -> str:
    """The card without this machine's folders: in prose wherever one stands, and in code where it is one of ours."""
    fence, parts = "```", text.split("```")
    return fence.join(part if number % 2 else without_paths(part) for number, part in enumerate(parts))


def _usage(repo_id: str, kind: str) -> str:
    if kind == "gguf":
        return f"llama-server -hf {repo_id}"
    package, loader = _LOADERS[kind]
    return _USAGE.format(package=package, loader=loader, repo_id=repo_id)


def _sentence(terms: Licence) -> str:
    base, data = terms.base, terms.data
    linked = f"[{base.title}]({base.link})" if base.link else base.title
    return f"The base model stands under: {linked}. The training data stands under: {data.title}."


def _rows(run: Run) -> dict[str, str]:
    """How many rows each part had; empty where the run does not hold all of them."""
    counts = {}
    for name in FILES:
        path = run / f"data/{name}"
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            counts[path.stem] = f"{sum(1 for line in file if line.strip()):,}"
    return counts


def _measured(facts: Mapping[str, Any], run: Run) -> list[tuple[str, str]]:
    told = [(called, _cell(facts[name])) for name, called in _MEASURED.items() if name in facts]
    made = run.facts.get("versions", {})
    listed = ", ".join(f"{name} {version}" for name, version in made.items() if name != "ftkit")
    return [*told, *([("versions", listed)] if listed else [])]


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    told = f"{value:,}" if isinstance(value, int) else str(value)
    return tables.flat(told).replace("|", "\\|").replace("<", "&lt;")


def _summary(run: Run) -> dict[str, dict[str, Any]]:
    """What each evaluation of the run says in numbers, by its file's name."""
    path = run / "eval/summary.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {name: {**report, "name": str(report["name"])} for name, report in known.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged. Evaluate again: evaluation.save_reports writes it.") from error


def _scores(report: Mapping[str, Any]) -> dict[str, Score]:
    """The scores in a summary, without those that scored nothing."""
    found = {}
    for name, value in report.items():
        if isinstance(value, dict) and value.keys() == {"value", "low", "high"} and None not in value.values():
            found[name] = Score(**value)
    return found


def _tuned(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The evaluations of the tuned model: those of another system than the first, which is the base."""
    base = next((report["name"] for report in reports.values()), "")
    return {key: report for key, report in reports.items() if report["name"] != base}


def _results(reports: Mapping[str, Mapping[str, Any]], source: str, digest: str) -> list[Any]:
    """The tuned model's scores for the card's model index, each with its interval."""
    from huggingface_hub import EvalResult

    found = []
    for key, report in _tuned(reports).items():
        for metric, score in _scores(report).items():
            told = EvalResult(
                task_type="text-generation",
                dataset_type=source if "/" in source and " " not in source else "private",
                dataset_name=f"{without_paths(report['name'])}, held-out rows ({without_paths(key)})",
                dataset_split="test",
                dataset_args={"data_digest": digest, "rows": report.get("rows")},
                dataset_config=without_paths(key),
                metric_type=metric,
                metric_name=metric.replace("_", " "),
                metric_value=round(score.value, 4),
                metric_args={"interval_95": [round(score.low, 4), round(score.high, 4)]},
            )
            found.append(told)
    return found


def _evaluated(run: Run, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The table of all evaluations, and a verdict on each that shares its prompts with the first."""
    if not reports:
        return None
    scored = {key: _scores(report) for key, report in reports.items()}
    metrics = list(dict.fromkeys(itertools.chain.from_iterable(scored.values())))
    head = ["model", "answers to", *(metric.replace("_", " ") for metric in metrics), "prompts", "ended by itself"]
    rows = [
        (
            *(_cell(report["name"]), _cell(key)),
            *(str(scored[key].get(metric, "not scored")) for metric in metrics),
            *(report.get("rows", "?"), _share(report.get("stopped"))),
        )
        for key, report in reports.items()
    ]
    return {"head": head, "rows": [[*map(str, row)] for row in rows], "said": _verdicts(run, list(reports))}


def _share(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) else "unknown"


def _verdicts(run: Run, names: list[str]) -> list[str]:
    """What a comparison of paired answers says, where the run still holds them."""
    read = {}
    for name in names:
        try:
            read[name] = EvalReport.load(run / f"eval/{name}.jsonl")
        except (DataError, MissingArtifact):
            continue
    if names[0] not in read:
        return ["The run holds no pairs of answers to the same prompts, so there is no verdict on the difference."]
    first, said = read.pop(names[0]), []
    for report in read.values():
        if report.digest == first.digest and report.name != first.name:
            try:
                said.append(evaluation.compare(first, report).verdict())
            except DataError as error:
                said.append(f"{first.name} and {report.name} cannot be compared: {error}")
    return [tables.visible(sentence) for sentence in said]


def _gate(run: Run) -> dict[str, Any] | None:
    """What the gate found, where it has judged this adapter."""
    try:
        verdict = evaluation.read_verdict(run)
    except (DataError, MissingArtifact):
        return None
    words = {"lost": "lost", "kept": "kept", "unsure": "cannot tell"}
    rows = [
        (change.suite, change.metric, change.items, change.before, change.after, words[change.state])
        for change in verdict.changes
    ]
    said = [f"The gate was {'passed' if verdict.passed else 'NOT passed'}.", *verdict.reasons]
    head = ["suite", "metric", "items", "before", "after", "verdict"]
    return {"head": head, "rows": [[*map(_cell, map(str, row))] for row in rows], "said": said}


def _limits(run: Run, reports: Mapping[str, Any], config: TrainConfig | None, gated: bool) -> list[str]:
    """What the run's facts say about where the model is not to be trusted."""
    said = []
    tuned = _tuned(reports)
    if tuned:
        prompts = ", ".join(f"{report.get('rows', '?')} ({key})" for key, report in tuned.items())
        said.append(f"Measured on few prompts of a known kind: {prompts}. Other prompts may go worse.")
    for key, report in tuned.items():
        ended = report.get("stopped")
        if isinstance(ended, int | float) and ended < 1:
            said.append(f"{1 - ended:.0%} of the answers ({key}) did not end by themselves.")
    if config is not None:
        said.append(f"Trained on texts of at most {config.max_length:,} tokens; longer ones were never seen.")
    if config is not None and config.load_in_4bit:
        said.append("Trained on 4-bit base weights; on 16-bit ones the answers can differ a little.")
    if not gated:
        said.append("What it forgot, and whether it still declines harmful requests, was not measured.")
    return [*said, "It inherits the errors and biases of its base; check what matters before you rely on it."]
