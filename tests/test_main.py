"""The command line: what its messages advise can be given to it, and whatever is given ends in one message."""

import json
import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
from toys import make_model, make_tokenizer

from ftkit import __main__ as command_line
from ftkit import data, evaluation, models, training
from ftkit.config import TrainConfig
from ftkit.errors import FtkitWarning, TrainingError
from ftkit.runs import Run

PACKAGE = Path(command_line.__file__).parent

TURNS = [{"the question": f"Where is key {i}?", "reply": f"On hook {i}, by the door."} for i in range(20)]


@pytest.fixture
def answers_trained(tmp_path, monkeypatch):
    """Runs `train` on rows with a toy model, as far as the training itself: the answers that it would have read."""
    handed = []

    def train(model, tokenizer, splits, *_, **__):
        """Stands where the training would begin."""
        handed.extend(
            row["messages"][-1]["content"] for part in (splits.train, splits.val, splits.test) for row in part
        )
        raise TrainingError("as far as this test goes")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load", lambda *_: (make_model(), make_tokenizer()))
    monkeypatch.setattr(models, "default_model", lambda: "toy")
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(rows, *arguments):
        """The answers, sorted."""
        TrainConfig(load_in_4bit=False, optim="adamw_torch").save(tmp_path / "c.yaml")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        handed.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("always", FtkitWarning)
            assert command_line.main(["train", "c.yaml", "--data", "rows.jsonl", *arguments]) == 1
        return sorted(handed)

    return run


def test_doctor_says_what_this_machine_is(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    assert command_line.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "machine    " in told
    assert "✓ Ready: python -m ftkit quickstart" in told


@pytest.mark.parametrize("columns", [("question", "response"), ("the question", "my, reply")])
def test_a_mapping_is_given_as_the_message_advises(answers_trained, capsys, columns):
    """Proposed columns stand in the option; where none can be proposed a person writes them in."""
    rows = [dict(zip(columns, turn.values(), strict=True)) for turn in TURNS]
    assert answers_trained(rows) == []
    (option,) = re.findall(r"On this command line: (--mapping .*)", capsys.readouterr().err)
    flag, given = shlex.split(option)
    for column in columns:
        given = given.replace("COLUMN", column, 1)
    assert answers_trained(rows, flag, given) == sorted(row["reply"] for row in TURNS)


def test_bad_rows_are_left_out_as_the_message_advises(answers_trained, capsys):
    rows = [{"prompt": row["the question"], "completion": row["reply"]} for row in TURNS]
    rows.append({"prompt": 5, "completion": None})
    assert answers_trained(rows) == []
    assert "On this command line: --on-error skip" in capsys.readouterr().err
    assert len(answers_trained(rows, "--on-error", "skip")) == len(TURNS)
    assert "left out 1 of 21 rows" in capsys.readouterr().err


def test_neighbours_of_one_role_are_joined_as_the_message_advises(answers_trained, capsys):
    ask = [{"role": "user", "content": "In short:"}]
    rows = [
        {
            "messages": [
                *ask,
                {"role": "user", "content": row["the question"]},
                {"role": "assistant", "content": row["reply"]},
            ]
        }
        for row in TURNS
    ]
    assert answers_trained(rows) == []
    assert "On this command line: --merge-turns" in capsys.readouterr().err
    assert len(answers_trained(rows, "--merge-turns")) == len(TURNS)


def test_an_adapter_to_begin_with_is_handed_on(answers_trained, monkeypatch):
    handed = []
    trained = training.train
    monkeypatch.setattr(training, "train", lambda *given, **how: [handed.append(how["init_from"]), trained(*given)])
    rows = [{"prompt": row["the question"], "completion": row["reply"]} for row in TURNS]
    answers_trained(rows)
    answers_trained(rows, "--init-from", "runs/first")
    assert handed == [None, "runs/first"]


def test_parts_are_stratified_by_a_column(answers_trained):
    rows = [{"prompt": row["the question"], "completion": row["reply"], "kind": "a"} for row in TURNS]
    assert len(answers_trained(rows, "--stratify", "kind")) == len(TURNS)
    assert answers_trained(rows, "--stratify", "mood") == []


@pytest.mark.parametrize(("advice", "option"), command_line._SAID_HERE.items())
def test_what_messages_advise_in_python_can_be_said_here(advice, option):
    """The option exists, and some message does advise it."""
    command_line._parser().parse_args(["train", "c.yaml", "--data", "rows.jsonl", *shlex.split(option)])
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.stem != "__main__"]
    assert [text for text in texts if advice in text]


def test_every_option_that_a_foreign_setting_leads_to_exists():
    known = {word for word in command_line._parser().format_help().split() if word.startswith("--")}
    train = command_line._parser()._subparsers._group_actions[0].choices["train"].format_help()
    known |= set(re.findall(r"--[a-z-]+", train))
    advised = re.findall(r"--[a-z-]+", (PACKAGE / "samples/setting_names.json").read_text(encoding="utf-8"))
    assert set(advised) <= known


def test_the_shares_of_the_parts_are_given(answers_trained):
    rows = [{"prompt": row["the question"], "completion": row["reply"]} for row in TURNS]
    assert len(answers_trained(rows, "--val", "0.3", "--test", "0.3")) == len(TURNS)
    assert answers_trained(rows, "--val", "2") == []


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("prompt=question,answer=reply", {"prompt": "question", "answer": "reply"}),
        ("prompt=q,answer=a,system=s", {"prompt": "q", "answer": "a", "system": "s"}),
        ("prompt=a, b,answer=c=d", {"prompt": "a, b", "answer": "c=d"}),
    ],
)
def test_a_mapping_holds_columns_of_any_name(text, mapping):
    assert command_line._mapping(text) == mapping


@pytest.mark.parametrize("text", ["", "question", "prompt=", "=question", "\x1b[2J"])
def test_a_mapping_of_another_shape_is_refused_with_the_right_one(text, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["train", "c.yaml", "--data", "x.jsonl", "--mapping", text])
    said = capsys.readouterr().err
    assert "prompt=question,answer=reply" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "none.yaml", "--data", "x.jsonl"],
        ["train", ".", "--data", "x.jsonl"],
        ["train", "\x1b[2J\u202e", "--data", "x.jsonl"],
        ["train", "x" * 5000, "--data", "x.jsonl"],
        ["train", "\udcff.yaml", "--data", "x.jsonl"],
        ["notebook", "none"],
        ["notebook", "x" * 5000 + ".ipynb"],
        ["notebook", "\x1b[2J"],
        ["notebook", "00", "-p", "seed", "[&a x, *a]"],
        ["notebook", "00", "-p", "seed", "2001-99-99"],
        ["notebook", "00", "-p", "seed", "{a: 1}"],
        ["notebook", "00", "-p", "seed", "!!python/name:os.system x"],
        ["notebook", "00", "-p", "x" * 10**5, "1"],
        ["notebook", "00", "-p", "\x1b[31mseed", "1"],
        ["notebook", ".", "-o", "out"],
        ["quickstart", "-p", "none", "1"],
    ],
    ids=range(16),
)
def test_odd_arguments_end_in_one_message(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FTKIT_RUN_ROOT", str(tmp_path))
    assert command_line.main(arguments) == 1
    said = capsys.readouterr().err
    assert len(said) < 4_000
    assert said.isprintable() or set(said) - set("\n\t") == {c for c in said if c.isprintable()}
    assert "Traceback" not in said


ON_THE_TOY = TrainConfig(
    backend="transformers", load_in_4bit=False, dtype="fp32", gradient_checkpointing=False, lora_r=4
)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """A folder with a run whose adapter stands on the toy, and with twenty questions that the toy passes.

    The answers that count as right are those that the toy gives.
    """
    folder, tokenizer = tmp_path_factory.mktemp("trained"), make_tokenizer()
    run = Run.create("toy", folder)
    models.save_adapter(models.add_lora(make_model(), ON_THE_TOY), tokenizer, run / "adapter")
    run.finish("train", data_digest="abc")
    rows = [{"id": f"q{i}", "prompt": f"What is {i} plus {i}?", "completion": "?"} for i in range(20)]
    examples = data.load_examples(rows)
    said = models.generate(make_model(), tokenizer, [data.prompt(row) for row in examples], max_new_tokens=6)
    for row, answer in zip(rows, said, strict=True):
        row["completion"] = answer.text
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def trained(toy_run, tmp_path, monkeypatch):
    """A copy of that folder; with `strength` the adapter has forgotten the questions."""
    shutil.copytree(toy_run, tmp_path, dirs_exist_ok=True)

    def prepare(strength):
        def load_adapter(path):
            import torch

            adapted = models.add_lora(make_model(), ON_THE_TOY)
            torch.manual_seed(0)
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=strength)
            return adapted, make_tokenizer()

        monkeypatch.setattr(models, "load_adapter", load_adapter)
        return Run.open(tmp_path / "toy")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return prepare


JUDGED = ["--suite", "own.jsonl", "--max-new-tokens", "6", "--batch-size", "20"]


@pytest.mark.parametrize(("strength", "status"), [(0.0, 0), (1.0, 2)], ids=["passed", "failed"])
def test_a_gate_tells_a_build_by_its_exit_status(trained, capsys, strength, status):
    """0 for a model that kept what it could, 2 for one that lost it; the verdict and all answers are in the run."""
    run = trained(strength)
    assert command_line.main(["evaluate", "toy", "--gate", *JUDGED]) == status
    said = capsys.readouterr().out
    assert ("Gate PASSED" in said, "Gate FAILED" in said) == (status == 0, status == 2)
    verdict = evaluation.read_verdict(run)
    assert (verdict.passed, verdict.changes[0].items) == (status == 0, 20)
    assert len(verdict.lost) == (20 if status else 0)
    assert ("What is 3 plus 3?" in said) == bool(status)
    before, after = (evaluation.EvalReport.load(run / f"eval/gate/own-{side}.jsonl") for side in ("before", "after"))
    assert evaluation.gate(before, after).passed == (status == 0)


def test_without_gate_a_loss_is_told_and_no_build_fails(trained, capsys):
    trained(1.0)
    assert command_line.main(["evaluate", "toy", *JUDGED]) == 0
    assert "Gate FAILED" in capsys.readouterr().out


def test_a_strict_gate_fails_where_too_few_items_leave_it_open(trained, capsys):
    trained(0.0)
    few = ["evaluate", "toy", "--gate", *JUDGED, "--limit", "3"]
    assert command_line.main(few) == 0
    assert "3 items are too few" in capsys.readouterr().out
    assert command_line.main([*few, "--strict"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["none"],
        ["\x1b[2J"],
        ["toy", "--gates"],
        ["toy", "--gate", "--suite", "none.jsonl"],
        ["toy", "--gate", "--suite"],
        ["toy", "--gate", "--threshold", "5"],
        ["toy", "--gate", "--threshold", "nan"],
        ["toy", "--gate", "--alpha", "0"],
        ["toy", "--gate", "--limit", "-1"],
        ["toy", "--gate", "--limit", "\u0663"],
        ["toy", "--gate", "--metric", "vibes"],
        ["bare", "--gate"],
        ["toy", "--gate", "--suite", "own.jsonl", "own.jsonl"],
    ],
    ids=range(14),
)
def test_wrong_use_of_evaluate_has_a_status_of_its_own(trained, tmp_path, arguments, capsys):
    """A build that named a run that is not there must not look like a model that lost something."""
    trained(0.0)
    Run.create("bare", tmp_path)
    try:
        status = command_line.main(["evaluate", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 3
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows|empty|holds no"),
        ("{", "JSON"),
        ('{"id": "a", "prompt": "Q", "completion": "A"}\n' * 2, "more than once"),
    ],
    ids=["empty", "damaged", "doubled"],
)
def test_a_suite_that_cannot_be_read_is_an_error(trained, tmp_path, text, said, capsys):
    trained(0.0)
    (tmp_path / "own.jsonl").write_text(text, encoding="utf-8")
    assert command_line.main(["evaluate", "toy", "--gate", *JUDGED]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_a_base_that_passes_nothing_is_no_passed_gate(trained, tmp_path, capsys):
    trained(0.0)
    (tmp_path / "own.jsonl").write_text(
        json.dumps({"prompt": "Q", "completion": "never said"}) + "\n", encoding="utf-8"
    )
    assert command_line.main(["evaluate", "toy", "--gate", *JUDGED]) == 1
    assert "There are no suites to compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "gguf"], "none is no run folder"),
        (["bare", "gguf"], "bare has no adapter. It is written by training.train"),
        (["bare", "merged", "--quant", "q8_0"], "--quant q8_0 belongs to the target gguf"),
    ],
)
def test_export_says_what_is_missing(tmp_path, monkeypatch, arguments, said, capsys):
    monkeypatch.chdir(tmp_path)
    Run.create("bare", tmp_path)
    assert command_line.main(["export", *arguments]) == 1
    assert said in capsys.readouterr().err
