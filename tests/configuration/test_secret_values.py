"""A secret among the values of a configuration is refused before anything is written, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from prdp.cli import main
from prdp.configuration.secret_values import check_no_secrets
from prdp.support.errors import ConfigError

SECRET, OTHER = "s3cr3t-value-9f", "an0ther-value-9f"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"reward": {"api_key": OTHER}}, "reward.api_key: is called like a secret"),
        ({"reward": {"terms": {"a": {"reward": {"hf_token": OTHER}}}}}, "reward.terms.a.reward.hf_token: is called"),
        ({"prompts": {"train": {"password": OTHER}}}, "prompts.train.password: is called like a secret"),
        ({"reward": {"url": f"https://me:{OTHER}@host/x"}}, "reward.url: is a URL with a password"),
        ({"model": {"path": f"x-{SECRET}-y"}}, "model.path: holds the content of the environment variable MY_TOKEN"),
        ({"seeds": ["a", SECRET]}, "seeds: holds the content of the environment variable MY_TOKEN"),
    ],
)
def test_secrets_are_refused_and_not_shown(config: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_no_secrets(config, {"MY_TOKEN": SECRET, "HOME": "/home/me"})
    assert says in str(caught.value)
    assert SECRET not in str(caught.value) and OTHER not in str(caught.value)


def test_names_of_variables_and_tokenizers_are_none() -> None:
    config = {
        "reward": {"token_variable": "PRDP_REWARD_TOKEN", "tokenizer": "openai/clip", "url": "http://host:1"},
        "prompts": {"prompt_tokens": 3, "path": "/home/me/x", "token": ""},
    }
    check_no_secrets(config, {"SHORT_KEY": "me", "HOME": "/home/me"})


def test_nothing_is_written_of_a_run_with_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    words = ["experiment=shapes_smoke", f"output_dir={tmp_path}/run", "prompts.train.seed=0"]
    assert main(["train", *words, "model.revision=${oc.env:HF_TOKEN}"]) == 2
    out, err = capfd.readouterr()
    assert "model.revision: holds the content of the environment variable HF_TOKEN" in err
    assert SECRET not in out + err and not (tmp_path / "run").exists()
