"""No message repeats a key or a password, and no other word is lost."""

import warnings

import pytest

from ftkit.config import TrainConfig
from ftkit.errors import FtkitWarning, ModelError, StorageError, without_secrets


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://ada:secret@host/v1 is gone", "https://…@host/v1 is gone"),
        ("mirror='ftp://token@host'", "mirror='ftp://…@host'"),
        ("report_to='hf_abcdefghijKLMN0123'", "report_to='…'"),
        ("key sk-proj-abcdefghij-k", "key …"),
        ("wandb_api_key=12345&x=1", "wandb_api_key=…&x=1"),
        ("http://host/?token=abc", "http://host/?token=…"),
        ('{"password": "hunter2", "r": 8}', '{"password": "…", "r": 8}'),
        ("Authorization: Bearer abcdefgh.ij", "Authorization: Bearer …"),
    ],
)
def test_secrets_are_blotted_out(text, said):
    assert without_secrets(text) == said
    assert str(ModelError(text)) == said
    assert str(StorageError(text)) == said
    with pytest.warns(FtkitWarning) as told:
        warnings.warn(text, FtkitWarning, stacklevel=1)
    assert str(told[0].message) == said


@pytest.mark.parametrize(
    "text",
    [
        "eos_token='<|im_end|>' and pad_token=None",
        "12 tokens a second; the stop token: <|im_end|>",
        "hf_hub_download could not reach https://host/a@b",
        "api_key=None",
        "write to ada@example.org",
    ],
)
def test_other_words_stay(text):
    assert without_secrets(text) == text


def test_a_setting_that_is_a_key_is_not_repeated():
    with pytest.raises(ValueError, match="report_to") as told:
        TrainConfig(report_to="hf_abcdefghijKLMN0123")
    assert "hf_abc" not in str(told.value)
