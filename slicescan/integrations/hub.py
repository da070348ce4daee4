"""Models of the hub's format: folders and repositories with weights, configuration and model card."""

import json
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from torch import nn

from slicescan.models.base import Restorer
from slicescan.registry import load, model_entry

FILES = ["model.safetensors", "config.json"]


class Hosted(ModelHubMixin, library_name="slicescan"):
    """A model with the hub's own methods ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    Args:
        model: Any :class:`~slicescan.models.base.Restorer`.
        log: ``log.jsonl`` of the training run, which the model card tells of.

    Example:
        >>> import tempfile, slicescan
        >>> folder = tempfile.mkdtemp()
        >>> Hosted(slicescan.create_model("xyscannet_tiny", blocks=(1, 1, 1))).save_pretrained(folder)
        >>> type(Hosted.from_pretrained(folder).model).__name__
        'XYScanNet'
    """

    def __init__(self, model: Restorer, log: str | Path | None = None):
        self.model, self.log = model, log

    def _save_pretrained(self, save_directory: Path) -> None:
        self.model.save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None, cache_dir: Any, force_download: bool,
                         local_files_only: bool, token: Any, **kwargs: Any) -> Self:  # fmt: skip
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, revision=revision, cache_dir=cache_dir, allow_patterns=FILES,
                                            force_download=force_download, local_files_only=local_files_only,
                                            token=token))  # fmt: skip
        return cls(load(folder, **kwargs))  # type: ignore[arg-type]

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """The card that goes with the weights."""
        return model_card(self.model, self.log)


def push_to_hub(model: Restorer, repo_id: str, *, log: str | Path | None = None, **kwargs: Any) -> str:
    """Upload a model with its configuration and card.

    Args:
        model: What to upload.
        repo_id: ``owner/name``; made if there is none.
        log: ``log.jsonl`` of the training run, for the card.
        **kwargs: As for ``ModelHubMixin.push_to_hub``: ``private``, ``token``, ``commit_message``, ``branch``, …

    Returns:
        Address of the commit.
    """
    return Hosted(model, log).push_to_hub(repo_id, **kwargs)


def from_pretrained(name_or_path: str | Path, **kwargs: Any) -> nn.Module:
    """Rebuild a model of any family from a folder or a repository, in evaluation mode.

    Args:
        name_or_path: A folder written by ``save_pretrained``, or ``owner/name``.
        **kwargs: As for ``ModelHubMixin.from_pretrained``: ``revision``, ``cache_dir``, ``token``, …; and constructor
            arguments that replace those stored.
    """
    return Hosted.from_pretrained(name_or_path, **kwargs).model


def model_card(model: Restorer, log: str | Path | None = None) -> ModelCard:
    """What a model is, how to use it, and what its training log says.

    Args:
        model: The model.
        log: ``log.jsonl`` of its training run.

    Raises:
        ValueError: A line of the log is no JSON object.
    """
    record = model_entry(model.architecture)
    data = ModelCardData(
        library_name="slicescan", pipeline_tag="image-to-image", tags=["image-restoration", "slicescan", record.family]
    )
    arguments = ", ".join(f"{key}={value!r}" for key, value in model.arguments.items())
    text = f"""---
{data.to_yaml()}
---

# {model.architecture}

{record.family} for {record.task}: {sum(p.numel() for p in model.parameters()):,} parameters. Network: {record.paper}.

Arguments: `{arguments}`.

```python
from slicescan.integrations.hub import from_pretrained

model = from_pretrained("this repository")
```

It takes values in [0, 1], `(b, {model.in_chans}, h, w)` of any height and width, and gives the same size times
{model.scale}.

## Training

{_training(log)}
"""
    return ModelCard(text)


def _training(log: str | Path | None) -> str:
    if log is None:
        return "No training log came with these weights."
    entries = []
    for number, line in enumerate(Path(log).read_text(encoding="utf-8").splitlines(), 1):
        try:
            entries.append(dict(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{log}: line {number} is no JSON object ({error})") from error
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        return f"`{Path(log).name}` has no step in it."
    seconds = sum(entry["wall_seconds"] for entry in entries if "wall_seconds" in entry)
    rows = [f"{steps[-1]['step']:,} steps, last mean loss {steps[-1]['loss']:.4f}."]
    if seconds:
        rows.append(f"Wall-clock time {seconds / 3600:.2f} hours.")
    if skipped := sum(entry.get("skipped", 0) for entry in steps):
        rows.append(f"{skipped} steps with a gradient that was not finite were skipped.")
    gains = [entry for entry in entries if "gain_db" in entry]
    if gains:
        rows += ["", "| step | mean gain on held-out photographs |", "|--:|--:|"]
        rows += [f"| {entry['step']:,} | {entry['gain_db']:+.2f} dB |" for entry in gains[-10:]]
    return "\n".join(rows)
