"""Which licence a base and its data have, how it is known, and what it asks."""

import datetime
import re

import pytest

from ftkit import files, models, publishing
from ftkit.data.loading import _origin
from ftkit.errors import MissingArtifact
from ftkit.publishing.licences import without_paths
from ftkit.runs import Run

TABLE = files.sample("licences")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test of names waits for a server; those that want one take `hub`, which takes this back."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("codellama/CodeLlama-7b-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("meta-llama/Llama-3.1-8B", "llama3.1"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "llama3.1"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama3.2"),
        ("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "llama3.2"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
        ("meta-llama/Llama-4-Scout-17B-16E", "llama4"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama3.1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama3.3"),
        ("huggyllama/llama-7b", "llama1"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "apache-2.0"),
        ("google/gemma-2b", "gemma"),
        ("google/gemma-2-9b-it", "gemma"),
        ("google/gemma-3-1b-it", "gemma"),
        ("google/gemma-4-E2B-it", "apache-2.0"),
        ("google/medgemma-4b-it", "unknown"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "apache-2.0"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "apache-2.0"),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "apache-2.0"),
        ("mistralai/Ministral-3-8B-Instruct-2512", "apache-2.0"),
        ("mistralai/Mistral-Small-Instruct-2409", "mrl"),
        ("mistralai/Mistral-Large-Instruct-2411", "mrl"),
        ("mistralai/Ministral-8B-Instruct-2410", "mrl"),
        ("mistralai/Codestral-22B-v0.1", "mnpl"),
        ("mistralai/Mamba-Codestral-7B-v0.1", "apache-2.0"),
        ("mistralai/Devstral-2-123B-Instruct-2512", "unknown"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "apache-2.0"),
        ("Qwen/Qwen2.5-Coder-7B", "apache-2.0"),
        ("Qwen/Qwen2.5-32B", "apache-2.0"),
        ("Qwen/Qwen3-0.6B", "apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", "qwen-research"),
        ("Qwen/Qwen2.5-Coder-3B", "qwen-research"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen"),
        ("Qwen/Qwen-72B", "unknown"),
        ("microsoft/Phi-3.5-mini-instruct", "mit"),
        ("microsoft/phi-4", "mit"),
        ("HuggingFaceTB/SmolLM3-3B", "apache-2.0"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "mit"),
        ("deepseek-ai/DeepSeek-V3.1", "mit"),
        ("deepseek-ai/deepseek-llm-7b-chat", "deepseek"),
        ("openai/gpt-oss-20b", "apache-2.0"),
        ("tiiuae/falcon-7b", "apache-2.0"),
        ("tiiuae/Falcon3-1B-Instruct", "falcon-llm-license"),
        ("tiiuae/falcon-180B", "unknown"),
        ("CohereLabs/c4ai-command-r7b-12-2024", "cc-by-nc-4.0"),
        ("allenai/OLMo-2-0425-1B", "apache-2.0"),
        ("somebody/her-own-model", "unknown"),
        (models.BUNDLED, "apache-2.0"),
    ],
)
def test_known_families_by_name(name, id):
    """Where no card can be read the dated table tells, and what it does not know is unknown."""
    assert publishing.licence(name).base.id == id


def test_every_row_of_the_table_is_whole():
    """Dates are dates, links are links, patterns are patterns, and families name licences that are there."""
    datetime.date.fromisoformat(TABLE["date"])
    for id, of in TABLE["licences"].items():
        assert of["use"] in ("free", "conditions", "research", "unknown"), id
        assert id == "unknown" or of["link"].startswith("https://"), id
        assert of["use"] == "free" or of["duties"], id
        assert of["read"] is None or datetime.date.fromisoformat(of["read"]) <= datetime.date.fromisoformat(
            TABLE["date"]
        )
    for family in TABLE["families"]:
        re.compile(family["match"])
        assert family["licence"] in TABLE["licences"]


def card(folder, **fields):
    """A model's folder whose README says this of its licence."""
    folder.mkdir(parents=True)
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (folder / "README.md").write_text(f"---\n{lines}---\n# A model\n")
    return folder


def test_a_models_own_card_is_read(tmp_path):
    terms = publishing.licence(card(tmp_path / "mine", license="mit")).base
    assert (terms.of, terms.id, terms.source) == ("mine", "mit", "its own card")


def test_a_license_name_is_read_where_the_license_is_other(tmp_path):
    terms = publishing.licence(card(tmp_path / "mine", license="other", license_name="mrl")).base
    assert (terms.id, terms.use) == ("mrl", "research")
    terms = publishing.licence(card(tmp_path / "other", license="other", license_name="house-rules")).base
    assert terms.use == "unknown" and "'house-rules'" in terms.source


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Llama-3.2-1B-tuned", {"license": "apache-2.0"}),
        ("mine", {"license": "mit", "base_model": "meta-llama/Llama-3.2-1B"}),
    ],
)
def test_a_card_that_forgets_what_its_base_demands_is_doubted(tmp_path, name, fields):
    """The base's terms count, and a public push waits until somebody has looked."""
    found = publishing.licence(card(tmp_path / name, **fields), data_licence="mit")
    assert found.base.id == "llama3.2"
    assert [question for question in found.open_questions if f"says {fields['license']}" in question]


def test_the_card_of_the_maker_goes_before_the_table(hub, tmp_path):
    """The table has a date, and the maker may have changed the licence since; others may not."""
    for owner in ("google", "somebody"):
        hub.served[f"{owner}/gemma-3-9-it"] = card(tmp_path / owner, license="apache-2.0")
    assert publishing.licence("google/gemma-3-9-it").base.id == "apache-2.0"
    assert publishing.licence("somebody/gemma-3-9-it").base.id == "gemma"


def test_where_the_table_knows_nothing_the_card_counts(tmp_path):
    found = publishing.licence(card(tmp_path / "Qwen9-tuned", license="mit"), data_licence="mit")
    assert found.base.id == "mit"
    assert found.open_questions == ()


def test_a_model_without_a_card_on_the_hub(hub):
    """It is unknown, and said why."""
    terms = publishing.licence("somebody/her-own-model").base
    assert (terms.use, terms.source) == ("unknown", "the Hub has no such model, or a private one")


@pytest.mark.parametrize(("said", "known"), [("mit", "mit"), ("[mit, cc-by-4.0]", "mit\n\ncc-by-4.0"), ("", "unknown")])
def test_the_card_of_a_hub_dataset_is_read_when_its_rows_are(hub, tmp_path, said, known):
    hub.served["ada/notes"] = card(tmp_path / "notes", license=said)
    assert _origin("ada/notes") == ("https://huggingface.co/datasets/ada/notes", known)


def test_what_is_stated_goes_before_what_is_read(set_facts):
    run = set_facts(data_licence="apache-2.0")
    found = publishing.licence(run, base_licence="cc-by-nc-4.0", data_licence="odc-by and cc-by-sa-4.0")
    assert (found.base.id, found.base.source) == ("cc-by-nc-4.0", "stated by you")
    assert (found.data.id, found.data.use) == ("cc-by-sa-4.0 and odc-by", "conditions")


def test_the_licence_of_the_data_is_what_the_run_knows(set_facts):
    run = set_facts(data_source="https://huggingface.co/datasets/ada/notes", data_licence="cc-by-nc-4.0\n\nmit")
    data = publishing.licence(run).data
    assert (data.of, data.id, data.use) == ("ada/notes", "cc-by-nc-4.0 and mit", "research")


def test_rows_of_which_some_have_no_licence_have_none(set_facts):
    run = set_facts(data_licence="apache-2.0\n\nunknown")
    assert publishing.licence(run).data.use == "unknown"


@pytest.mark.parametrize(
    ("base", "data", "fields"),
    [
        ("apache-2.0", "mit", {"license": "apache-2.0"}),
        ("apache-2.0", "cc-by-sa-4.0", {"license": "apache-2.0"}),
        ("apache-2.0", "cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("llama3.2", "mit", {"license": "llama3.2"}),
        ("gemma", "cc-by-nc-4.0", {"license": "other", "license_name": "gemma-and-cc-by-nc-4.0"}),
        ("mrl", "mit", {"license": "other", "license_name": "mrl"}),
        ("apache-2.0", "house-rules", {"license": "unknown"}),
    ],
)
def test_the_stricter_licence_goes_on_the_card(base, data, fields):
    found = publishing.licence("x/y", base_licence=base, data_licence=data).metadata()
    assert found.items() >= fields.items()
    assert ("license_link" in found) == (found["license"] == "other")


def test_research_only_data_asks_for_a_confirmation():
    asked = publishing.licence(models.BUNDLED, data_licence="cc-by-nc-4.0").open_questions
    assert len(asked) == 1 and "No commercial use" in asked[0]


def test_the_report_names_licence_source_and_duties():
    text = str(publishing.licence("meta-llama/Llama-3.2-1B", data_licence="mit"))
    for words in ("Llama 3.2 Community License", "Built with Llama", "stated by you", TABLE["date"]):
        assert words in text


def test_a_run_without_an_adapter(tmp_path):
    with pytest.raises(MissingArtifact, match="no adapter"):
        publishing.licence(Run.create("new", tmp_path))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/ada/models/llama", "llama"),
        ("in '/home/ada', or in C:\\Users\\ada.", "in '', or in ."),
        ("in /home/ada/x.json, and ~/notes/y", "in x.json, and y"),
        (r"C:\Users\ada\model", "model"),
        (r"\\server\share\model", "model"),
        ("meta-llama/Llama-3.2-1B and/or 1/2", "meta-llama/Llama-3.2-1B and/or 1/2"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("a </tool> b | c", "a </tool> b | c"),
    ],
)
def test_folders_are_cut_off_file_names(text, kept):
    assert without_paths(text) == kept
