"""Did fine-tuning lose something? The gate's rule, its reasons, what it is bound to, and what it refuses."""

import dataclasses
import json
import math
import shutil

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import evaluation, headless
from ftkit.errors import DataError, FtkitError, GateFailed, MissingArtifact, NotebookError
from ftkit.evaluation import EvalReport, detectable_loss, gate, interval, noise_floor, read_verdict
from ftkit.runs import Run


def report(name, hits, *, metric="mentions", clusters=None, **facts):
    rows = tuple(
        {
            "id": f"q{i}",
            "cluster": clusters[i] if clusters else f"q{i}",
            "prompt": f"Question {i}?",
            "expected": [f"right {i}"],
            "answer": f"{name} says {i}",
            "stopped": True,
            "tokens": 3,
            metric: None if hit is None else float(hit),
        }
        for i, hit in enumerate(hits)
    )
    scored = [row[metric] for row in rows if row[metric] is not None and math.isfinite(row[metric])]
    score = interval(scored) if scored else evaluation.Score(math.nan, math.nan, math.nan)
    return EvalReport(name, {metric: score}, rows, **{"number_format": "bfloat16", "digest": "d", **facts})


BASE = report("base", [1] * 100)


@pytest.fixture
def run(tmp_path):
    """A run with an adapter and a finished training."""
    run = Run.create("invoices", tmp_path)
    (run / "adapter").mkdir()
    (run / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    run.finish("train", data_digest="abc")
    return run


def test_a_loss_that_is_significant_and_more_than_allowed_fails():
    verdict = gate(BASE, report("tuned", [1] * 85 + [0] * 15))
    (change,) = verdict.changes
    assert (verdict.passed, change.state) == (False, "lost")
    assert change.difference.value == pytest.approx(-0.15)
    assert change.difference.low < -0.15 < change.difference.high < 0
    assert change.p == pytest.approx(0.5**15)  # McNemar, exact and one-sided: fifteen of fifteen pairs went down


def test_a_model_against_itself_passes_and_that_is_proof():
    verdict = gate(BASE, report("again", [1] * 100))
    assert verdict.passed
    assert verdict.changes[0].state == "kept"
    assert "ruled out" in verdict.reasons[0]


def test_significance_without_size_does_not_fail():
    """A large sample shows losses that nobody minds."""
    verdict = gate(report("base", [1] * 1000), report("tuned", [0] * 20 + [1] * 980), threshold=0.05)
    assert verdict.changes[0].p < 0.001
    assert verdict.passed


def test_size_without_significance_does_not_fail_unless_strict():
    few = report("base", [1] * 4), report("tuned", [1, 1, 0, 0])
    verdict = gate(*few)
    assert (verdict.passed, verdict.changes[0].state) == (True, "unsure")
    assert "4 items are too few: even if all were lost, chance could not be ruled out" in verdict.reasons[0]
    assert not gate(*few, strict=True).passed


def test_what_cannot_be_told_is_said_with_the_smallest_loss_that_could_be():
    verdict = gate(report("base", [1] * 30), report("tuned", [0] * 2 + [1] * 28))
    smallest = verdict.changes[0].detectable
    assert 0.1 < smallest < 0.3
    assert f"{100 * smallest:.0f} points" in verdict.reasons[0]


def test_the_floor_takes_the_place_of_a_lower_threshold():
    tuned = report("tuned", [1] * 85 + [0] * 15)
    assert not gate(BASE, tuned, floor=0.1).passed
    assert gate(BASE, tuned, floor=0.2).passed
    assert gate({"a": BASE}, {"a": tuned}, floor={"a": 0.2}).changes[0].allowed == 0.2


def test_gains_count_against_losses():
    before, after = [1, 0] * 50, [0, 1] * 50
    verdict = gate(report("base", before), report("tuned", after))
    (change,) = verdict.changes
    assert (len(change.lost), len(change.gained), change.difference.value) == (50, 50, 0)
    assert change.state == "unsure"


def test_many_suites_together_raise_no_more_alarms():
    """Five items of five lost is p = 0.031: alone it fails, among ten suites it may be chance."""
    lost = report("base", [1] * 40), report("tuned", [0] * 5 + [1] * 35)
    assert not gate(*lost).passed
    suites = {f"s{i}": report("base", [1] * 40) for i in range(10)}
    others = {name: report("tuned", [1] * 40) for name in suites}
    verdict = gate(suites, others | {"s3": lost[1]})
    assert verdict.passed
    assert verdict.changes[3].p_holm == pytest.approx(10 * 0.5**5)


def test_scores_between_pass_and_fail_are_tested_by_their_signs():
    """Every item loses the same: no spread between them, and yet a sure loss."""
    verdict = gate(report("base", [0.9] * 30, metric="chrf"), report("tuned", [0.5] * 30, metric="chrf"))
    assert not verdict.passed
    assert gate(report("a", [0.9] * 30, metric="chrf"), report("b", [0.9] * 30, metric="chrf")).passed


def test_answers_to_one_prompt_are_one_piece_of_evidence():
    clusters = [f"p{i // 25}" for i in range(100)]
    pair = (report(n, h, clusters=clusters) for n, h in (("base", [1] * 100), ("tuned", [0] * 50 + [1] * 50)))
    assert gate(*pair).changes[0].state == "unsure"


def test_the_report_names_the_items_with_both_answers():
    verdict = gate(BASE, report("tuned", [0] * 15 + [1] * 85))
    assert [item.id for item in verdict.lost] == [f"q{i}" for i in range(15)]
    text = str(verdict)
    assert "Gate FAILED" in text
    assert "Question 0?" in text and "base says 0" in text and "tuned says 0" in text and "right 0" in text
    assert "and 5 more lost items" in text


def test_a_failed_gate_raises_with_reasons_and_items():
    verdict = gate({"general": BASE}, {"general": report("tuned", [0] * 15 + [1] * 85)})
    with pytest.raises(GateFailed, match=r"general \(mentions\) lost: -15.0 points") as told:
        verdict.raise_if_failed()
    assert "q0: Question 0?" in str(told.value)
    assert isinstance(told.value, AssertionError)
    passed = gate(BASE, BASE)
    assert passed.raise_if_failed() is passed


def test_unscored_items_are_left_out_and_counted():
    verdict = gate(report("base", [1] * 50 + [None]), report("tuned", [None] + [1] * 50))
    assert (verdict.changes[0].items, verdict.changes[0].unscored) == (49, 2)
    assert "2 items are without a score" in str(verdict)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (report("tuned", [1] * 99), "different prompts: 100 and 99"),
        (report("tuned", [1] * 100, digest="e"), "different prompts"),
        (report("tuned", [1] * 100, number_format="4-bit nf4"), "bfloat16 before, 4-bit nf4 after"),
        (report("tuned", [1] * 100, settings={"max_new_tokens": 8}), "settings differ"),
        (report("tuned", [1] * 100, metric="chrf"), "metrics differ"),
        (report("tuned", [math.nan] + [1] * 99), "no numbers: q0"),
        (report("tuned", []), "tuned has no rows"),
        (report("tuned", [None] * 100), "no item has a score"),
        (dataclasses.replace(BASE, rows=BASE.rows[:99] + BASE.rows[:1]), "ids more than once: q0"),
        (dataclasses.replace(BASE, rows=BASE.rows[::-1]), "different prompts"),
        ({"other": BASE}, "suites differ"),
        ({}, "suites differ"),
        ([1, 0, 1], "list is no evaluation"),
        (None, "NoneType is no evaluation"),
    ],
    ids=range(14),
)
def test_sides_that_do_not_belong_together_are_refused(after, said):
    with pytest.raises(DataError, match=said):
        gate(BASE, after)


def test_all_problems_are_told_at_once():
    odd = report("tuned", [math.nan] + [1] * 99, digest="e", number_format="float32")
    with pytest.raises(DataError) as told:
        gate({"a": BASE, "b": BASE}, {"a": odd})
    for said in ("suites differ", "different prompts", "number formats differ", "no numbers"):
        assert said in str(told.value)


@pytest.mark.parametrize(
    "odd", [{"threshold": -0.1}, {"threshold": 1}, {"threshold": math.nan}, {"alpha": 0}, {"floor": {"x": 0.1}}]
)
def test_odd_settings_are_refused(odd):
    with pytest.raises(DataError):
        gate(BASE, BASE, **odd)


def test_a_noise_floor_is_the_largest_change_against_itself():
    again = report("base", [0] * 2 + [1] * 98), report("base", [0] * 5 + [1] * 95)
    assert noise_floor(BASE, *again) == {"all": pytest.approx(0.05)}
    with pytest.raises(DataError, match="at least two"):
        noise_floor(BASE)
    with pytest.raises(DataError, match="different prompts"):
        noise_floor(BASE, report("base", [1] * 100, digest="e"))


@given(st.integers(1, 400), st.floats(0, 0.3), st.floats(0.001, 0.2))
def test_the_detectable_loss_is_found_with_the_power_that_it_states(items, allowed, alpha):
    """Losing that share of the items is significant and beyond what is allowed in four of five repeats."""
    from scipy.stats import binom

    share = detectable_loss(items, allowed, alpha)
    needed = [lost for lost in range(items + 1) if 0.5**lost <= alpha * (1 + 1e-9) and lost > allowed * items + 1e-9]
    if share is None:
        assert not needed
    else:
        assert binom.sf(needed[0] - 1, items, share) == pytest.approx(0.8, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_whatever_is_compared_gets_a_verdict_that_reads_back(pairs):
    before, after = (report(name, side) for name, side in zip(("a", "b"), zip(*pairs, strict=True), strict=True))
    verdict = gate(before, after)
    (change,) = verdict.changes
    assert change.difference.low <= change.difference.value <= change.difference.high
    assert 0 < change.p <= change.p_holm <= 1
    assert verdict.passed == (change.state != "lost")
    assert json.loads(json.dumps(dataclasses.asdict(verdict), allow_nan=False))["passed"] == verdict.passed


def test_a_verdict_is_read_back_from_its_run(run):
    verdict = gate(BASE, report("tuned", [0] * 15 + [1] * 85), run=run)
    assert verdict.save(run) == run / "eval/verdict.json"
    assert read_verdict(run) == verdict
    assert (verdict.run, verdict.data, len(verdict.adapter)) == ("invoices", "abc", 12)
    assert run.facts["gate"] == {"passed": False, "suites": 1, "lost": 15}


@pytest.mark.parametrize("changed", ["adapter", "data"])
def test_a_verdict_on_another_run_is_refused(run, tmp_path, changed):
    """Trained again, or copied from elsewhere: what was judged is not what stands there."""
    gate(BASE, BASE, run=run).save(run)
    if changed == "adapter":
        (run / "adapter/adapter_model.safetensors").write_bytes(b"others")
    else:
        run.finish("train", data_digest="def")
    with pytest.raises(DataError, match=f"as it is now \\({changed} .*--gate"):
        read_verdict(run)


def test_a_verdict_bound_to_no_run_is_not_saved_in_one(run, tmp_path):
    with pytest.raises(DataError, match="on no run"):
        gate(BASE, BASE).save(run)
    assert gate(BASE, BASE).save(tmp_path / "v.json").is_file()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"changes": [1]}', '{"changes": [], "x": 1}', "null"])
def test_a_damaged_verdict_is_refused(run, text):
    (run / "eval").mkdir()
    (run / "eval/verdict.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        read_verdict(run)


def test_a_run_without_a_verdict_or_an_adapter_says_which_step_is_missing(run):
    with pytest.raises(MissingArtifact, match="evaluate RUN --gate"):
        read_verdict(run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(MissingArtifact, match="no adapter"):
        gate(BASE, BASE, run=run)


def test_records_of_another_sample_are_refused(tmp_path):
    BASE.save(tmp_path / "before.jsonl")
    report("tuned", [1] * 100, digest="other").save(tmp_path / "after.jsonl")
    sides = (EvalReport.load(tmp_path / f"{name}.jsonl") for name in ("before", "after"))
    with pytest.raises(FtkitError, match="different prompts"):
        gate(*sides)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 15])
def test_under_papermill_a_failed_gate_ends_the_notebook(tmp_path, lost):
    """The cell raises, so papermill fails, and with it whatever called it."""
    BASE.save(tmp_path / "before.jsonl")
    report("tuned", [0] * lost + [1] * (100 - lost)).save(tmp_path / "after.jsonl")
    cells = [
        "from ftkit import evaluation",
        f"folder = {str(tmp_path)!r}\nbefore = evaluation.EvalReport.load(f'{{folder}}/before.jsonl')\n"
        "after = evaluation.EvalReport.load(f'{folder}/after.jsonl')",
        "evaluation.gate(before, after).raise_if_failed()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "gate.ipynb")
    if lost:
        with pytest.raises(NotebookError, match=r"cell 3: GateFailed: tuned does not pass the gate"):
            headless.execute(tmp_path / "gate.ipynb", tmp_path / "out", {})
    else:
        assert headless.execute(tmp_path / "gate.ipynb", tmp_path / "out", {}).html.is_file()


@pytest.mark.parametrize("floor", [math.nan, -0.1, 2, "0.1", {"all": math.nan}])
def test_a_floor_is_a_share(floor):
    """A NaN among numbers is the largest or none of them, as Python happens to look: it is refused instead."""
    with pytest.raises(DataError, match="floor"):
        gate(BASE, report("tuned", [1] * 100), floor=floor)


@pytest.mark.parametrize(("setting", "odd"), [("threshold", "5%"), ("alpha", None), ("alpha", 1)])
def test_settings_are_shares(setting, odd):
    with pytest.raises(DataError, match=setting):
        gate(BASE, report("tuned", [1] * 100), **{setting: odd})


def test_a_gate_without_a_metric_does_not_pass():
    sides = (dataclasses.replace(BASE, scores={}), dataclasses.replace(report("tuned", [0] * 100), scores={}))
    with pytest.raises(DataError, match="scored by no metric"):
        gate(*sides)


def test_a_loss_beyond_all_is_not_called_detectable():
    verdict = gate(report("base", [0.75]), report("tuned", [0.25]))
    assert verdict.changes[0].detectable is None
