"""What a library has replaced in others is found by looking at where the code of each function lies."""

import subprocess
import sys
import types

import pytest

from ftkit import lessons
from ftkit.errors import MissingExtra

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
    return {patch.where for patch in lessons.find_patches(by, ("victim",)).found}


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
    assert [(p.where, p.code) for p in lessons.find_patches("rival", ("victim",)).found] == [
        ("victim.layers.Other", "rival.code:Other")
    ]


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


def test_origin_names_file_and_function(library):
    library.helper = compiled("/x/site-packages/rival/sub/code.py")["helper"]
    assert lessons.find_patches("rival", ("victim",)).found[0].code == "rival/sub/code.py:helper"


def test_looking_imports_nothing():
    """Lazy modules import when an attribute of a placeholder is asked for; `find` must not ask."""
    script = (
        "import sys, transformers; from ftkit import lessons; before = set(sys.modules); n = len(lessons.find_patches());"
        "sys.exit(str(sorted(set(sys.modules) - before)) if n or set(sys.modules) - before else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_methods_on_one_model_are_found(model):
    """Only those of this model: the class and other models stay as they are."""
    assert len(lessons.find_patches_on(model, "rival")) == 0
    new = types.MethodType(compiled("/x/site-packages/rival/code.py")["forward"], model.lm_head)
    model.lm_head.forward = new
    assert [p.where for p in lessons.find_patches_on(model, "rival").found] == ["Linear.forward"]


def test_table_counts_by_module(library):
    new = compiled("/x/site-packages/rival/code.py")
    library.Layer.forward, library.Layer.size, library.helper = new["forward"], property(new["helper"]), new["helper"]
    found = lessons.find_patches("rival", ("victim",))
    assert (len(found), found.by_module()) == (3, {"victim.layers": 3})
    assert str(found) == "   3  victim.layers"
    assert "helper, Layer.forward, Layer.size" in found._repr_html_()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a file of patches and a table of names."""
    (tmp_path / "rivalpkg").mkdir()
    (tmp_path / "rivalpkg/__init__.py").write_text("raise RuntimeError('must not run')")
    (tmp_path / "rivalpkg/llama.py").write_text(
        "class Own:\n    def patch():\n        Attention.forward = fast\n        lib.Model.forward = make(fast)\n"
        "        Attention.forward = fast\n        Own.load = other\n        self.x = y\n        name = other\n"
    )
    (tmp_path / "rivalpkg/mapper.py").write_text(
        "N = {'a/Llama-3-8b': 1, 'a/llama-2': 2, 'meta/Meta-Llama-3': 3, 'q/Qwen3-4B': 4}"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_patches_that_wait_are_read_from_the_text(package):
    """Without running the package; its own classes are no patches."""
    found = lessons.patches_written("llama.py", "rivalpkg")
    assert [p.where for p in found.found] == ["Attention.forward", "lib.Model.forward"]
    assert found.found[0].code == "rivalpkg/llama.py:fast"


def test_families_are_counted_by_the_first_word(package):
    assert lessons.supported_families("mapper.py", "rivalpkg") == {"llama": 3, "qwen": 1}


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(MissingExtra, match="no_such_package is not installed"):
        lessons.patches_written("x.py", "no_such_package")


def test_the_installed_unsloth_has_what_the_lesson_says():
    """Attention, layer and model of Llama wait for a GPU; the families go beyond those of the brief."""
    pytest.importorskip("importlib.util").find_spec("unsloth") or pytest.skip("unsloth is not installed")
    assert {"LlamaAttention.forward", "LlamaDecoderLayer.forward", "LlamaModel.forward"} <= {
        p.where for p in lessons.patches_written().found
    }
    assert {"llama", "mistral", "gemma", "qwen", "phi", "granite"} <= set(lessons.supported_families())
