"""The Modelfile: what the template writes around each role, and every stop token."""

import pytest
from toys import CHATML, GEMMA, LLAMA3, dataset_of, make_tokenizer, order_chat

from ftkit import chat, publishing
from ftkit.errors import DataError, StorageError
from ftkit.publishing.ollama import _Pieces

QWEN = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helper.<|im_end|>\n{% endif %}" + CHATML
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant!') }}{% endif %}{% endfor %}"
)
LAST_ALONE = CHATML.replace("{% for m in messages %}", "{% for m in messages[-1:] %}")


def as_go_writes(template, messages):
    """What Go's text/template makes of the few forms that are used, with Ollama's values."""
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    head, _, rest = template.partition("{{ range .Messages }}")
    default = head.removeprefix("{{ if not .System }}").removesuffix("{{ end }}")
    body, _, ask = rest.partition("{{ end }}{{ end }}")
    around = {}
    for branch in body.replace("{{ else if ", "{{ if ").split("{{ if eq .Role ")[1:]:
        role, _, text = branch.partition(" }}")
        around[role.strip('"')] = text.split("{{ .Content }}")
    turns = [around[m["role"]][0] + m["content"] + around[m["role"]][1] for m in messages]
    return ("" if system else default) + "".join(turns) + ask


@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN])
@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_it_writes_what_the_tokenizer_writes(template, system):
    tokenizer = make_tokenizer(template, adds_bos=template == LLAMA3)
    asked = [*order_chat(1, system=system), *order_chat(2)[:1]]
    wanted = chat.render(asked, tokenizer, add_generation_prompt=True)
    assert wanted.removeprefix("<bos>") == as_go_writes(_Pieces.of(tokenizer).template(), asked)


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_a_template_without_a_system_turn_gets_none(template):
    tokenizer = make_tokenizer(template, adds_bos=True)
    asked = [*order_chat(1), *order_chat(2)[:1]]
    wanted = chat.render(asked, tokenizer, add_generation_prompt=True)
    made = _Pieces.of(tokenizer).template()
    assert wanted.removeprefix("<bos>") == as_go_writes(made, asked)
    assert ".System" not in made and '"system"' not in made


def test_a_template_that_goes_another_way_is_refused():
    """Ollama would ask with another text than the model was trained on."""
    with pytest.raises(DataError, match=r"cannot be written for Ollama.*llama-server"):
        _Pieces.of(make_tokenizer(LAST_ALONE))


def test_braces_of_a_template_are_no_code_in_go():
    """Go would take "{{" for the beginning of an action."""
    tokenizer = make_tokenizer(CHATML.replace("<|im_start|>{{", "<|im_start|>{{ '{{x' }}{{"))
    assert '<|im_start|>{{ "{" }}{{ "{" }}xuser' in _Pieces.of(tokenizer).template()


class TestFile:
    """What stands in the file, and that it is not written over somebody's own."""

    @pytest.fixture
    def gguf(self, run):
        publishing.merge(run)
        path = run / "export/toy-f16.gguf"
        path.write_bytes(b"GGUF")
        return path

    def test_every_stop_token_stands_in_it(self, run, gguf):
        """The tokenizer's, and those of the generation config."""
        merged = gguf.parent / "merged"
        from transformers import GenerationConfig

        GenerationConfig(eos_token_id=[2, 0]).save_pretrained(merged)
        (merged / ".ftkit.json").unlink()
        lines = publishing.modelfile(gguf, merged).read_text().splitlines()
        assert lines[0] == "FROM ./toy-f16.gguf"
        stops = [line for line in lines if line.startswith("PARAMETER stop")]
        assert stops == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"']

    def test_a_system_text_stands_in_it_where_all_rows_have_one(self, gguf):
        """One that the model was not trained with would change its answers."""
        merged = gguf.parent / "merged"
        alike = dataset_of([order_chat(i, system="You read orders.") for i in range(3)])
        mixed = dataset_of([order_chat(0, system="You read orders."), order_chat(1)])
        assert 'SYSTEM """You read orders."""' in publishing.modelfile(gguf, merged, alike).read_text()
        assert "SYSTEM" not in publishing.modelfile(gguf, merged, mixed).read_text()
        assert "SYSTEM" not in publishing.modelfile(gguf, merged).read_text()

    def test_one_that_was_edited_stays(self, gguf):
        path = publishing.modelfile(gguf, gguf.parent / "merged")
        path.write_text(path.read_text() + "PARAMETER num_ctx 8192\n")
        with pytest.raises(StorageError, match=r"Modelfile would be replaced"):
            publishing.modelfile(gguf, gguf.parent / "merged")
        assert "num_ctx" in path.read_text()
