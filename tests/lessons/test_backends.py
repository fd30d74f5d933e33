"""Backends are compared fairly: the same rows, a process each; what was replaced is found, records have sources."""

import html
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ftkit import lessons
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError, MissingArtifact, MissingExtra
from ftkit.lessons import backends
from ftkit.lessons.backends import BackendRun, SideBySide


def run(name, rates=(100.0, 100.0), peak_gib=2.0, losses=(2.0, 1.0), **facts):
    return BackendRun(name, "a machine", "2026-01-01", losses, tuple(rates), peak_gib, 0, {"torch": "2"}, **facts)


@pytest.fixture
def side():
    return SideBySide((run("plain"), run("fast", (140.0, 160.0), 1.5, (2.0, 1.1))))


def test_speed_up_is_a_ratio_of_tokens_a_second(side):
    assert side.speed_up("fast", "plain") == 1.5
    assert side.speed_up("plain", "fast") == pytest.approx(2 / 3)


@pytest.mark.parametrize(("rates", "told"), [((100, 120), 1.1), ((100, 121), None), ((100,), None)])
def test_no_speed_is_told_where_repeats_differ_by_more_than_a_fifth(rates, told):
    """Nor where there is no repeat."""
    both = SideBySide((run("plain"), run("other", rates)))
    assert both.speed_up("other", "plain") == told
    assert both.speed_up("plain", "other") == (told and pytest.approx(1 / told))


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ((100, 110), "105 (repeats within 10%)"),
        ((100, 150), "too noisy to read: repeats differ by 50%"),
        ((100,), "not repeated"),
    ],
)
def test_speed_comes_with_the_spread_or_not_at_all(rates, told):
    assert run("one", rates).speed == told
    assert told in str(SideBySide((run("one", rates),)))


def test_a_ratio_names_the_memory_even_where_speed_is_too_noisy(side):
    assert side.ratio("fast", "plain") == "fast over plain: 1.50 times the speed, 0.75 times the memory"
    noisy = side + SideBySide((run("noisy", (100, 200)),))
    assert noisy.ratio("noisy", "plain") == "noisy over plain: speed too noisy to read, 1.00 times the memory"


def test_runs_are_repeated_in_turn(monkeypatch):
    """A neighbour that slows the machine for a while slows both."""
    order, rates = [], iter((100.0, 200.0, 110.0, 210.0))

    def measured(name, config, model, rows, late):
        order.append(name)
        return run(name, (next(rates),), peak_gib=len(order))

    monkeypatch.setattr(backends, "_in_a_process", measured)
    configs = {"plain": TrainConfig(max_steps=3), "Unsloth": TrainConfig(max_steps=3)}
    both = lessons.measure_backends(configs, model="any")
    assert order == ["plain", "Unsloth", "plain", "Unsloth"]
    assert [(r.rates, r.peak_gib) for r in both.runs] == [((100.0, 110.0), 3), ((200.0, 210.0), 4)]


def test_memory_saved_is_a_share_and_may_be_negative(side):
    assert side.memory_saved("fast", "plain") == 0.25
    assert side.memory_saved("plain", "fast") < 0


def test_loss_gap_is_the_largest_relative_one(side):
    assert side.loss_gap("fast", "plain") == pytest.approx(0.1)


def test_runs_of_other_lengths_cannot_be_compared(side):
    with pytest.raises(ValueError, match="zip"):
        (side + SideBySide((run("short", losses=(2.0,)),))).loss_gap("short", "plain")


def test_an_unknown_run_is_named(side):
    with pytest.raises(KeyError, match="no run 'x', only plain, fast"):
        side["x"]


def test_sum_holds_both(side):
    assert [r.name for r in (side + SideBySide((run("late"),))).runs] == ["plain", "fast", "late"]


def test_save_holds_device_day_and_versions(side, tmp_path):
    saved = json.loads(side.save(tmp_path / "side.json").read_text())
    assert [(r["name"], r["device"], r["day"], r["versions"]) for r in saved] == [
        ("plain", "a machine", "2026-01-01", {"torch": "2"}),
        ("fast", "a machine", "2026-01-01", {"torch": "2"}),
    ]


def test_table_says_where_and_when_once(side):
    assert str(side).splitlines()[-1] == "a machine, 2026-01-01"
    assert side._repr_html_().count("2026-01-01") == 1
    assert ">150 (repeats within 14%)</td><td>1.50</td>" in side._repr_html_()


def test_names_are_escaped():
    assert "<b>" not in SideBySide((run("<b>"),))._repr_html_()


def test_a_single_step_is_refused():
    """The first step compiles and is not timed: nothing would be left."""
    with pytest.raises(ConfigError, match="one: max_steps=1 leaves nothing to time"):
        lessons.measure_backends({"one": TrainConfig(max_steps=1)}, model="any")


@pytest.mark.slow
def test_a_failed_run_says_which_and_why(tmp_path):
    """Its process's last words come with the error."""
    with pytest.raises(FtkitError, match=r"(?s)run 'wrong' failed.*no-such-model"):
        lessons.measure_backends(
            {"wrong": TrainConfig(backend="transformers", max_steps=2)}, model=str(tmp_path / "no-such-model")
        )


GOOD = "def forward(self):\n    return 'new'\ndef helper():\n    return 'new'\nclass Other:\n    pass\n"


def compiled(file, module="rival_pkg.code"):
    """Functions and a class as if they came from `file`."""
    names = {"__name__": module}
    exec(compile(GOOD, file, "exec"), names)
    return names


@pytest.fixture
def library(monkeypatch):
    """A library `victim` with a class, a function and a submodule."""
    top, sub = types.ModuleType("victim"), types.ModuleType("victim.layers")
    source = (
        "class Base:\n    def loss(self): pass\nclass Layer(Base):\n    def forward(self): pass\n"
        "    @staticmethod\n    def make(): pass\n    @property\n    def size(self): pass\ndef helper(): pass\n"
    )
    exec(compile(source, "/x/site-packages/victim/layers.py", "exec"), vars(sub))
    top.Layer = sub.Layer  # re-exported
    monkeypatch.setitem(sys.modules, "victim", top)
    monkeypatch.setitem(sys.modules, "victim.layers", sub)
    return sub


def places(by="rival"):
    """Full names of what was replaced in `victim`."""
    return set(flat(lessons.find_patches(by, ("victim",))))


def flat(patches):
    return [f"{place}.{name}" for place, names in patches.names.items() for name in names]


def test_an_untouched_library_has_no_patches(library):
    assert places() == set()


def test_replaced_methods_and_functions_are_found_once(library):
    """Although `victim` re-exports the class."""
    new = compiled("/x/site-packages/rival/code.py")
    library.Layer.forward, library.helper = new["forward"], new["helper"]
    assert places() == {"victim.layers.Layer.forward", "victim.layers.helper"}


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property])
def test_descriptors_are_looked_into(library, wrap):
    library.Layer.make = wrap(compiled("/x/site-packages/rival/code.py")["helper"])
    assert places() == {"victim.layers.Layer.make"}


def test_methods_of_a_base_class_in_the_same_module_count(library):
    """Unsloth replaces SFTTrainer by a class of the same name below it, and patches the one beneath."""
    library.Base.loss = compiled("/x/site-packages/rival/code.py")["helper"]
    assert "victim.layers.Layer.loss" in places()


def test_a_class_that_was_exchanged_whole_is_found(library):
    library.Other = compiled("/x/rival/code.py", "rival.code")["Other"]
    assert places() == {"victim.layers.Other"}


def test_code_below_a_decorator_is_found(library):
    import functools

    @functools.wraps(new := compiled("/x/site-packages/rival/code.py")["helper"])
    def decorated():
        return new()

    library.helper = decorated
    assert places() == {"victim.layers.helper"}


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("/x/site-packages/rival/code.py", True),
        ("/x/site-packages/rival_zoo/code.py", True),
        ("/tmp/rival_compiled_cache/Trainer.py", True),
        ("C:\\x\\site-packages\\rival\\code.py", True),
        ("/home/rival/venv/site-packages/victim/layers.py", False),  # the environment lies in a folder of that name
        ("/x/site-packages/rivalry/code.py", False),
        ("/x/site-packages/victim/rival.py", False),
    ],
)
def test_only_folders_of_that_name_count(library, file, counts):
    library.helper = compiled(file)["helper"]
    assert bool(places()) is counts


@pytest.mark.slow
def test_looking_imports_nothing():
    """Lazy modules import when an attribute of a placeholder is asked for; `find` must not ask."""
    script = (
        "import sys, transformers; from ftkit import lessons; before = set(sys.modules);"
        "n = len(lessons.find_patches());"
        "sys.exit(str(sorted(set(sys.modules) - before)) if n or set(sys.modules) - before else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_methods_on_one_model_are_found(model):
    """Only those of this model: the class and other models stay as they are."""
    assert len(lessons.find_patches("rival", model=model)) == 0
    new = types.MethodType(compiled("/x/site-packages/rival/code.py")["forward"], model.lm_head)
    model.lm_head.forward = new
    assert flat(lessons.find_patches("rival", model=model)) == ["Linear.forward"]


def test_table_counts_by_module(library):
    new = compiled("/x/site-packages/rival/code.py")
    library.Layer.forward, library.Layer.size, library.helper = new["forward"], property(new["helper"]), new["helper"]
    found = lessons.find_patches("rival", ("victim",))
    assert len(found) == 3
    assert "3         victim.layers  helper, Layer.forward, Layer.size" in str(found)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a file of patches and a table of names."""
    (tmp_path / "rivalpkg").mkdir()
    (tmp_path / "rivalpkg/__init__.py").write_text("raise RuntimeError('must not run')")
    (tmp_path / "rivalpkg/llama.py").write_text(
        "class Own:\n    def patch():\n        Attention.forward = fast\n        Model.forward = make(fast)\n"
        "        Attention.forward = fast\n        model.load = other\n        self.x = y\n        name = other\n"
    )
    (tmp_path / "rivalpkg/mapper.py").write_text(
        'N = {\n "a/Llama-3-8b" : (\n  "b/Other-1",\n ),\n'
        ' "a/llama-2" : 2,\n "meta/Meta-Llama-3": 3,\n "q/Qwen3-4B": 4,\n}'
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_patches_that_wait_are_read_from_the_text(package):
    """Without running the package; each once."""
    found = lessons.patches_written("llama.py", "rivalpkg")
    assert found.rows == [("Attention.forward", "fast"), ("Model.forward", "make(fast)")]


def test_families_are_counted_by_the_first_word(package):
    assert lessons.supported_families("mapper.py", "rivalpkg") == {"llama": 3, "qwen": 1}


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(MissingExtra, match="no_such_package is not installed"):
        lessons.patches_written("x.py", "no_such_package")


def test_the_installed_unsloth_has_what_the_lesson_says():
    """Attention, layer and model of Llama wait for a GPU; the families go beyond those of an often-copied sentence."""
    importlib.util.find_spec("unsloth") or pytest.skip("unsloth is not installed")
    waiting = {method for method, _ in lessons.patches_written().rows}
    assert {"LlamaAttention.forward", "LlamaDecoderLayer.forward", "LlamaModel.forward"} <= waiting
    assert {"llama", "mistral", "gemma", "qwen", "phi", "granite"} <= set(lessons.supported_families())


@pytest.mark.parametrize("name", ["length", "baseline", "t4", "h200"])
def test_each_says_where_it_comes_from(name):
    record = lessons.load_record(name)
    for part in (record.device, record.day, record.by, record.source, record.settings):
        assert part
        assert part in record.where
        assert html.escape(part) in record._repr_html_()
    assert record.source.startswith("https://") or (Path(__file__).parents[2] / record.source).is_file()
    assert record.rows


def test_an_unknown_record_names_those_that_there_are():
    with pytest.raises(MissingArtifact, match="length, baseline, t4, h200"):
        lessons.load_record("h100")


def test_a_run_without_memory_is_told():
    """At 65,536 tokens only Unsloth ran."""
    row = lessons.load_record("length").rows[-2]
    assert (row["length_tokens"], row["plain_gb"], row["unsloth_gb"]) == (65536, None, 25)
    assert "out of memory" in str(lessons.load_record("length")).splitlines()[-3]


def test_published_improvements_agree_with_the_speeds():
    """The page gives 111 to 117 % for the same rows."""
    ratios = [
        r["unsloth_tokens_per_s"] / r["plain_tokens_per_s"] for r in lessons.load_record("length").rows if r["plain_gb"]
    ]
    assert [round(100 * ratio) for ratio in ratios] == [111, 116, 117, 116, 114, 111]


def test_recorded_speed_ups_name_their_opponent():
    """The maker's own lie on both sides of two; against a newer torch or FlashAttention none reaches it."""
    found = lessons.recorded_speed_ups()
    (old, newer, plain, flash, own) = found.values()
    assert min(old) < 2 < max(old)
    assert max(newer + plain + flash + own) < 2
    assert [round(value, 2) for value in (plain[0], flash[0], min(own), max(own))] == [1.68, 1.36, 0.88, 1.36]
    assert len(flash) == 7


def test_columns_are_named_with_their_units():
    page = lessons.load_record("length")._repr_html_()
    assert "<th>length, tokens</th>" in page
    assert "<th>plain, tokens/s</th>" in page
    assert "<th>Unsloth, GB</th>" in page
    assert "<th>Unsloth, GiB</th>" in lessons.load_record("h200")._repr_html_()
