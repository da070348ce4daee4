import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import slicescan
from slicescan.integrations.hub import Hosted, from_pretrained, model_card, push_to_hub


@pytest.fixture
def model():
    torch.manual_seed(0)
    return slicescan.create_model("xyscannet_tiny", blocks=(1, 1, 1), dim=8, fusion_gate="pixel").eval()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def same(first, second) -> bool:
    states = first.state_dict(), second.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_folder_comes_back_equal_to_the_bit_without_a_network(model, tmp_path, no_network):
    Hosted(model).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    for found in (from_pretrained(tmp_path), slicescan.load(tmp_path), type(model).from_pretrained(tmp_path)):
        assert same(model, found) and found.arguments == model.arguments and not found.training


def test_the_hub_gets_weights_configuration_and_card(model, tmp_path, monkeypatch):
    sent = {}

    def upload(api, *, repo_id, folder_path, **kwargs):
        sent[repo_id] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        return "https://hub/commit/1"

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda api, repo_id, **kw: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    assert push_to_hub(model, "me/small") == "https://hub/commit/1"
    assert set(sent["me/small"]) == {"README.md", "config.json", "model.safetensors"}
    for name, content in sent["me/small"].items():
        (tmp_path / name).write_bytes(content)
    assert same(model, slicescan.load(tmp_path))


def test_a_repository_is_fetched_by_its_name(model, tmp_path, monkeypatch):
    Hosted(model).save_pretrained(tmp_path)
    asked = []

    def download(name, **kwargs):
        asked.append((name, kwargs["revision"]))
        return str(tmp_path)

    monkeypatch.setattr("slicescan.integrations.hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    assert same(model, from_pretrained("me/small", revision="v1"))
    assert asked == [("me/small", "v1")]


def test_the_card_tells_what_the_log_says(model, tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [
        {"step": 100, "loss": 0.05, "skipped": 2},
        {"step": 100, "gain_db": 1.25},
        {"step": 200, "loss": 0.04, "skipped": 1},
        {"step": 200, "of": 200, "wall_seconds": 1800.0},
    ]
    log.write_text("\n".join(map(json.dumps, lines)))
    card = model_card(model, log)
    assert card.data.library_name == "slicescan" and card.data.pipeline_tag == "image-to-image"
    for words in ("200 steps, last mean loss 0.0400", "0.50 hours", "3 steps", "| 100 | +1.25 dB |", "'pixel'"):
        assert words in card.text
    assert "No training log" in model_card(model).text


def test_a_log_that_is_none_is_named(model, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\nnot JSON\n')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2"):
        model_card(model, log)
