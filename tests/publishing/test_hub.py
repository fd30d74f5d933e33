"""`push`: against a real HTTP server that speaks the Hub's endpoints, well and badly."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from ftkit import files, models, publishing
from ftkit.errors import ConfigError, HubError, MissingArtifact, ModelError
from ftkit.publishing import places
from ftkit.publishing.merging import merged_digest
from ftkit.runs import Run

WRITTEN = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def run(small_sample):
    """The sample run, in a folder of its own."""
    return small_sample


@pytest.fixture
def known(run):
    """The terms of the run, as it knows them."""
    return publishing.licence(run)


def as_it_is(folder):
    """Every file below a folder with its digest."""
    return {name: files.digest(path) for name, path in files.inside(folder).items()}


def test_by_default_nothing_is_uploaded(hub, run, known):
    """A rehearsal lists what would go, and asks no server."""
    told = publishing.push(run, "ada/invoices", known)
    assert hub.seen == []
    assert {name for name, _ in told.files} > WRITTEN
    assert (told.private, told.url) == (True, "")
    assert "nothing was uploaded" in str(told)


def test_an_adapter_arrives_whole_with_its_card(hub, run, known):
    """Adapter, tokenizer and card stand in the repository, byte for byte but for the name of the base."""
    before = as_it_is(run.path)
    told = publishing.push(run, "ada/invoices", known, dry_run=False)
    repo = hub.repos["ada/invoices"]
    assert repo.private and told.url.startswith(f"{hub.url}/ada/invoices/commit/")
    assert repo.files["adapter_model.safetensors"] == (run / "adapter/adapter_model.safetensors").read_bytes()
    assert json.loads(repo.files["adapter_config.json"])["base_model_name_or_path"] == models.HUB_ID
    assert 'name = "ada/invoices"' in repo.files["README.md"].decode()
    assert set(repo.files) == {name for name, _ in told.files}
    assert as_it_is(run.path) == before


def test_only_what_a_model_needs_is_uploaded(hub, run, known):
    """Pickles, seals, hidden files and whatever else lies in the folder stay here."""
    for name in (".env", "training_args.bin", "notes.txt", ".ftkit.json", "README.md"):
        (run / "adapter" / name).write_text("secret")
    publishing.push(run, "ada/invoices", known, dry_run=False)
    stored = hub.repos["ada/invoices"].files
    assert not {".env", "training_args.bin", "notes.txt", ".ftkit.json"} & set(stored)
    assert stored["README.md"] != b"secret"


def test_what_was_uploaded_before_is_not_sent_again(hub, run, known):
    publishing.push(run, "ada/invoices", known, dry_run=False)
    publishing.push(run, "ada/invoices", known, dry_run=False)
    assert hub.requests("PUT", "/lfs/") == 2  # the weights and the tokenizer
    assert len(hub.repos["ada/invoices"].commits) == 2  # the first one made the repository


@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_short_fault_is_ridden_out(hub, run, known, fault):
    """The client tries again by itself."""
    failures = iter([fault, fault])
    hub.fault = lambda method, path: next(failures, None) if method == "PUT" else None
    assert publishing.push(run, "ada/invoices", known, dry_run=False).url
    assert hub.requests("PUT", "/lfs/") == 4


@pytest.mark.parametrize(
    ("method", "where", "fault", "words"),
    [
        ("POST", "/commit/", 500, "status 500"),
        ("POST", "/commit/", "drop", "broke off"),
        ("POST", "/commit/", 409, "being changed"),
        ("POST", "/commit/", 429, "takes no more requests"),
        ("PUT", "/lfs/", "drop", "broke off"),
        ("PUT", "/lfs/", 502, "status 502"),
        ("POST", "/batch", 429, "takes no more requests"),
        ("POST", "/preupload/", 503, "status 503"),
        ("GET", "/api/models/", "drop", "broke off"),
    ],
)
def test_after_a_failure_the_same_call_goes_on(hub, run, known, method, where, fault, words):
    """The error is ours, nothing here is harmed, no half of a model appears, and what arrived is kept."""
    before = as_it_is(run.path)
    hub.fault = lambda asked, path: fault if asked == method and where in path else None
    with pytest.raises(HubError, match=words) as told:
        publishing.push(run, "ada/invoices", known, dry_run=False)
    assert "not sent again" in str(told.value)
    assert as_it_is(run.path) == before
    assert hub.repos["ada/invoices"].files == {}
    sent = set(hub.large)
    hub.seen.clear()
    hub.fault = lambda method, path: None
    assert publishing.push(run, "ada/invoices", known, dry_run=False).url
    assert hub.requests("PUT", "/lfs/") == 2 - len(sent)
    assert set(hub.repos["ada/invoices"].files) > WRITTEN


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "does not take"),
        (401, "settings/tokens"),
        (402, "billing"),
        (403, "role Write"),
        (404, "your name"),
        (413, "larger"),
    ],
)
def test_a_refusal_says_which_page_or_right_is_missing(hub, run, known, status, words):
    hub.fault = lambda method, path: status if "/preupload/" in path else None
    with pytest.raises(HubError, match=words):
        publishing.push(run, "ada/invoices", known, dry_run=False)


def test_a_wrong_token_is_named_as_such_and_never_shown(hub, run, known, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrongTOKEN7654321")
    with pytest.raises(HubError, match="does not know the token") as told:
        publishing.push(run, "ada/invoices", known, dry_run=False)
    assert "wrongTOKEN" not in "".join(traceback.format_exception(told.value))


def test_somebody_elses_name_is_refused(hub, run, known):
    with pytest.raises(HubError, match="may not write to bob"):
        publishing.push(run, "bob/invoices", known, dry_run=False)
    assert hub.repos == {}


def test_without_a_token_nothing_is_asked(hub, run, known, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "No token was found" in str(publishing.push(run, "ada/invoices", known))
    with pytest.raises(HubError, match="hf auth login"):
        publishing.push(run, "ada/invoices", known, dry_run=False)
    assert hub.seen == []


def test_the_token_of_hub_login_is_found(hub, run, known, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(hub.token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert publishing.push(run, "ada/invoices", known, dry_run=False).url


def test_the_token_is_neither_kept_nor_shown(hub, run, known):
    """It stands in no file of the run, in no report and in nothing that is uploaded."""
    told = publishing.push(run, "ada/invoices", known, dry_run=False)
    assert hub.token not in f"{told!r}{told}{told._repr_html_()}"
    for path in files.inside(run.path).values():
        assert hub.token.encode() not in path.read_bytes()
    for content in hub.repos["ada/invoices"].files.values():
        assert hub.token.encode() not in content
    assert {token for _, path, token in hub.seen if path.startswith("/lfs/")} == {None}  # a store of others


def test_a_server_that_is_no_hub(hub, run, known):
    hub.route = lambda handler, path, body: handler.answer(200, b"<html>")
    with pytest.raises(HubError):
        publishing.push(run, "ada/invoices", known, dry_run=False)


def test_offline_mode_is_said(hub, run, known, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        publishing.push(run, "ada/invoices", known, dry_run=False)


def test_nothing_private_goes_into_a_public_repository(hub, run, known):
    """A repository that is there already and public is refused, until public is what was asked for."""
    publishing.push(run, "ada/invoices", known, dry_run=False, private=False)
    hub.repos["ada/invoices"].files.clear()
    with pytest.raises(ConfigError, match="it is public"):
        publishing.push(run, "ada/invoices", known, dry_run=False)
    assert hub.repos["ada/invoices"].files == {}


@pytest.mark.parametrize("name", ["invoices", "ada/", "ada/in voices", "a/b/c", "/x", ""])
def test_names_that_cannot_be(run, known, name):
    with pytest.raises(ConfigError, match="repo_id"):
        publishing.push(run, name, known)


def test_an_unknown_licence_blocks_a_public_upload_until_it_is_confirmed(hub, set_facts):
    run = set_facts(data_licence="unknown")
    with pytest.raises(ConfigError, match=r"licence of invoices \(bundled with ftkit\) is unknown") as told:
        publishing.push(run, "ada/invoices", private=False, dry_run=False)
    assert "confirm_licence=True" in str(told.value)
    assert hub.seen == []
    assert publishing.push(run, "ada/invoices", dry_run=False).private
    assert not publishing.push(run, "ada/open", private=False, confirm_licence=True, dry_run=False).private


@pytest.mark.parametrize(
    ("base", "name", "would_do"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "invoices", "Llama-invoices"),
        ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama-invoices", "Llama-invoices"),
        ("unsloth/Llama-3.1-8B", "my-llama", "Llama-my-llama"),
        ("meta-llama/Meta-Llama-3-8B", "Llama-invoices", "Llama-3-invoices"),
    ],
)
def test_a_llama_has_to_be_called_so(hub, set_facts, base, name, would_do):
    """No confirmation helps, the name that would do is named, and it does."""
    run = set_facts(base=base)
    (run / "LICENSE").write_text("LLAMA COMMUNITY LICENSE AGREEMENT …")
    terms = publishing.licence(run, data_licence="mit")
    with pytest.raises(ConfigError, match=f"'{would_do}' would do"):
        publishing.push(run, f"ada/{name}", terms, private=False, confirm_licence=True)
    publishing.push(run, f"ada/{name}", terms)  # nobody else sees a private one
    publishing.push(run, f"ada/{would_do}", terms, private=False, dry_run=False)
    stored = hub.repos[f"ada/{would_do}"].files
    assert stored["NOTICE"].decode().startswith(terms.base.notice)
    assert stored["LICENSE"].decode().startswith("LLAMA")
    assert f"**{terms.base.shown}**" in stored["README.md"].decode()


def test_the_text_of_the_licence_comes_from_the_base_or_from_the_run(hub, set_facts, tmp_path):
    """It is fetched from the base's repository; where that has none, it is asked for before anything is public."""
    run = set_facts(base="google/gemma-3-1b-it")
    terms = publishing.licence(run, data_licence="mit")
    with pytest.raises(ConfigError, match=r"Save it from https://ai\.google\.dev/gemma/terms"):
        publishing.push(run, "ada/g", terms, private=False)
    (tmp_path / "gemma").mkdir()
    (tmp_path / "gemma/LICENSE").write_text("Gemma Terms of Use …")
    hub.served["google/gemma-3-1b-it"] = tmp_path / "gemma"
    publishing.push(run, "ada/g", terms, private=False, dry_run=False)
    assert hub.repos["ada/g"].files["LICENSE"] == b"Gemma Terms of Use \xe2\x80\xa6"


def test_an_adapter_of_a_folder_says_where_others_find_its_base(hub, set_facts, tmp_path):
    """A path of this machine is of no use to anybody else, and is nobody else's business."""
    (tmp_path / "my-base").mkdir()
    run = set_facts(base=str(tmp_path / "my-base"))
    with pytest.raises(ConfigError, match=r"base_model='owner/name'"):
        publishing.push(run, "ada/invoices", publishing.licence(run, base_licence="mit", data_licence="mit"))
    terms = publishing.licence(run, base_model="HuggingFaceTB/SmolLM2-360M", data_licence="mit")
    publishing.push(run, "ada/invoices", terms, dry_run=False)
    stored = hub.repos["ada/invoices"].files
    assert json.loads(stored["adapter_config.json"])["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-360M"
    assert not [name for name, content in stored.items() if str(tmp_path).encode() in content]


def test_an_edited_card_is_uploaded_as_it_is(hub, run, known):
    """Its placeholder becomes the repository's name; nothing else changes."""
    path = publishing.model_card(run, known)
    text = path.read_text() + "\nAsk Ada before you use it.\n"
    path.write_text(text)
    publishing.push(run, "ada/x", known, dry_run=False)
    assert hub.repos["ada/x"].files["README.md"].decode() == text.replace("your-name/invoices", "ada/x")


@pytest.mark.parametrize(
    ("written", "words"),
    [("hf_" + "abcdefghijKLMN", "key or a token"), ("It lies in /home/ada/models/x.", "folder of this machine")],
)
def test_a_card_with_a_secret_or_a_path_is_refused(run, known, written, words):
    path = publishing.model_card(run, known)
    path.write_text(f"{path.read_text()}\n{written}\n")
    with pytest.raises(ConfigError, match=words) as told:
        publishing.push(run, "ada/x", known)
    assert written not in str(told.value)


def test_a_key_in_a_config_is_found(run, known):
    """Old versions of Transformers wrote the token with which a tokenizer was fetched into its config."""
    config = run / "adapter/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_auth_token": "hf_" + "abcdefghijKLMN"}))
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json holds what looks like a key"):
        publishing.push(run, "ada/x", known)


def test_a_card_with_another_licence_is_refused_in_public(run, known):
    path = publishing.model_card(run, known)
    path.write_text(path.read_text().replace("license: apache-2.0", "license: mit"))
    with pytest.raises(ConfigError, match="says license: mit, and base and data make it apache-2"):
        publishing.push(run, "ada/x", known, private=False)


def test_an_adapter_that_is_not_as_it_was_saved_is_not_uploaded(run, known):
    """A seal lists what was written; half a file would be nobody's model."""
    files.seal(run / "adapter", {}, files.HIDDEN)
    weights = run / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not as it was written"):
        publishing.push(run, "ada/x", known)


def test_nothing_to_upload(run, known, tmp_path):
    with pytest.raises(MissingArtifact, match="holds nothing to upload"):
        publishing.push(run, "ada/x", known, what=tmp_path)
    (run / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(MissingArtifact, match=r"no \*\.safetensors"):
        publishing.push(run, "ada/x", known)
    with pytest.raises(MissingArtifact, match="no adapter"):
        publishing.push(Run.create("new", tmp_path), "ada/x")


@pytest.fixture
def exported(tmp_path):
    """Toys of a merged model and of a GGUF that passed their parity, as `export.json` records it."""
    merged, gguf = tmp_path / "export/merged", tmp_path / "export/x-f16.gguf"
    merged.mkdir(parents=True)
    for name in ("config.json", "merged_from.json"):
        (merged / name).write_text("{}")
    (merged / "model.safetensors").write_bytes(b"weights")
    gguf.write_bytes(b"GGUF")
    (gguf.parent / "Modelfile").write_text("FROM ./x-f16.gguf")
    of = merged_digest(merged)
    places.note(merged.parent, "merged", parity={"passed": True, "of": of})
    places.note(gguf.parent, gguf.name, sha256=files.digest(gguf), parity={"passed": True, "of": of})
    return merged, gguf


def test_a_merged_model_and_a_gguf_bring_cards_of_their_own(hub, run, known, exported):
    """The card says how that kind is loaded, and what lies beside in the folder stays."""
    merged, gguf = exported
    publishing.push(run, "ada/merged", known, what=merged, dry_run=False)
    publishing.push(run, "ada/gguf", known, what=gguf, dry_run=False)
    whole, quantized = hub.repos["ada/merged"].files, hub.repos["ada/gguf"].files
    assert set(whole) == {"README.md", "config.json", "model.safetensors"}
    assert b"library_name: transformers" in whole["README.md"]
    assert set(quantized) == {"README.md", "x-f16.gguf", "Modelfile"}
    assert b"llama-server -hf ada/gguf" in quantized["README.md"]


@pytest.mark.parametrize("kind", [0, 1])
def test_what_was_not_proved_is_not_uploaded(run, known, exported, kind):
    """Never compared, compared and failed, or changed since: a merge can spoil every answer."""
    place = exported[kind]
    weights = place if kind else place / "model.safetensors"
    weights.write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"Nobody has proved .* publishing\.parity"):
        publishing.push(run, "ada/x", known, what=place)
    digest = files.digest(weights)
    places.note(place.parent, place.name, sha256=digest, parity={"passed": False, "of": digest})
    with pytest.raises(ConfigError, match="did not answer as what it was made of"):
        publishing.push(run, "ada/x", known, what=place)


@pytest.mark.slow
def test_the_cards_snippet_runs_as_it_stands(hub, sample, tmp_path):
    """Somebody else copies it, with nothing but the Hub: it downloads adapter and base, and answers."""
    publishing.push(sample, "ada/invoices", dry_run=False)
    hub.served[models.HUB_ID] = Path(models.resolve(models.BUNDLED))
    code = hub.repos["ada/invoices"].files["README.md"].decode().split("```python\n")[1].split("```")[0]
    prompt = "Extract all product names and prices from the following invoice text.\n\nRed Lamp 2 x 4.50 EUR"
    code = code.replace("Write your prompt here.", prompt.replace("\n", "\\n"))
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "Red Lamp" in ran.stdout
