"""The whole way with real parts: the sample run's adapter, llama.cpp's converter, llama.cpp's server, the command."""

import json
import shutil
from pathlib import Path

import pytest

import ftkit
from ftkit import Run, data, evaluation, files, models, publishing
from ftkit.__main__ import main
from ftkit.errors import ModelError
from ftkit.models import sources
from ftkit.publishing import places
from ftkit.publishing.serving import post, server

pytestmark = pytest.mark.slow
HERMES = (
    "{% if tools %}<|im_start|>system\n# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}"
    "\n</tools><|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What `export RUN gguf` leaves, of a run with eight invoices that its training has not seen."""
    pytest.importorskip("xllamacpp")
    path = tmp_path_factory.mktemp("export") / "sample"
    shutil.copytree(Run.sample().path, path)
    (path / "data").mkdir()
    test = data.load_examples("invoices", split="test")
    files.write_jsonl(path / "data/test.jsonl", [{"messages": test[i]["messages"]} for i in range(8)])
    assert main(["export", str(path), "gguf", "--prompts", "10"]) == 0
    return Run.open(path)


def checks(run, name):
    return {check["name"]: check for check in places.record(run / "export")[name]["parity"]["checks"]}


def test_the_merge_chooses_every_token_as_the_adapter_does(exported):
    found = checks(exported, "merged")
    assert {name for name, check in found.items() if check["passed"] is False} == set()
    assert found["greedy tokens agree"]["value"] == 1.0


def test_llama_cpp_reads_prompts_as_they_were_trained(exported):
    found = checks(exported, "sample-f16.gguf")
    assert found["rendered prompts"]["value"] == found["token ids"]["value"] == 1.0


def test_the_gguf_answers_as_the_merged_model(exported):
    found = checks(exported, "sample-f16.gguf")
    assert found["answers"]["value"] >= 0.9
    assert found["exact match of the task"]["value"] >= 0.8


def test_a_tokenizer_from_a_gguf_is_made_right(exported):
    """The sample's adapter still has the byte fallback on which llama.cpp would answer nothing."""
    before, after = (
        json.loads((exported / f"{folder}/tokenizer.json").read_text()) for folder in ("adapter", "export/merged")
    )
    assert (before["model"]["byte_fallback"], after["model"]["byte_fallback"]) == (True, False)
    assert after["decoder"]["type"] == "ByteLevel"


def test_the_bundled_tokenizer_cuts_as_llama_cpp_does():
    """Spaces before digits, which Transformers' reader of its GGUF gets wrong, and all that the bundled rows hold."""
    from transformers import AutoTokenizer

    tokenizer = sources.as_published(models.pretrained(AutoTokenizer, Run.sample() / "adapter"))
    samples = (Path(ftkit.__file__).parent / "samples").glob("*.jsonl")
    texts = [line for path in samples for line in path.read_text(encoding="utf-8").splitlines()[:40]]
    texts += ["\n  1 of 2", "a\t\t12", "  3\u00a04", "x2 ²½ ٣", "\r\n 7.50 EUR", "日本 2024年"]
    with server(sources._gguf()) as url:
        how = {"add_special": True, "parse_special": True}
        cut = [post(url, "/tokenize", {"content": text, **how})["tokens"] for text in texts]
    assert len(texts) > 300
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == cut


def test_digests_stand_in_the_run_folder(exported):
    gguf = exported / "export/sample-f16.gguf"
    assert exported.facts["gguf"][gguf.name]["sha256"] == files.digest(gguf)
    assert exported.facts["finished"][-2:] == ["merge", "gguf"]


def test_a_served_gguf_is_an_endpoint(exported):
    """For evaluations and judges it is asked like any other, and its answers score like the model's own."""
    rows = data.load_examples(exported / "data/test.jsonl").select(range(3))
    with publishing.serve_gguf(exported / "export/sample-f16.gguf") as endpoint:
        assert isinstance(endpoint, models.Endpoint)
        answers = endpoint.ask([data.prompt(row)["messages"] for row in rows])
    assert evaluation.score_answers(answers, rows).exact_match.value >= 2 / 3


def test_the_modelfile_stops_and_has_no_system_text_of_its_own(exported):
    text = (exported / "export/Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "SYSTEM" not in text
    assert "You are a helpful AI assistant named SmolLM" in text  # the template's own, where a chat has none


def test_a_template_that_knows_tools_is_rendered_alike(made_of):
    """llama.cpp has its own reader of templates; schemas and calls go through it as JSON."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = sources.as_published(models.pretrained(AutoTokenizer, Run.sample() / "adapter"))
    tokenizer.chat_template = HERMES
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, max_position_embeddings=2048, **shape)
    )
    run = made_of(model, tokenizer)
    called = data.load_examples("tool_skill")[0]
    later = [*called["messages"], {"role": "tool", "content": "9 °C"}, {"role": "assistant", "content": "It is cold."}]
    report = publishing.parity(
        publishing.merge(run), publishing.to_gguf(run / "export/merged"), [{**called, "messages": later}], prompts=6
    )
    assert report.value("rendered prompts") == report.value("token ids") == 1.0


def test_a_tokenizer_that_the_converter_does_not_know_is_its_last_word(run):
    """The real converter dies on the toy's; the merged model stays."""
    merged = publishing.merge(run)
    with pytest.raises(ModelError, match=r"BPE pre-tokenizer was not recognized.*are as they were"):
        publishing.to_gguf(merged)
    assert files.problem(merged) is None
    assert sorted(path.name for path in merged.parent.iterdir()) == ["export.json", "merged"]
