"""What others make of the same weights: an environment of their own, their checkpoint, files.

optimum-onnx and optimum-intel need ``transformers``, and versions of their own; they are installed
apart, as ``scripts/alternatives.txt`` says. Where that is not possible their rows are not run and
say why.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarking.processes import ROOT, WorkerError, answer, environment

CACHE = ROOT / ".benchmark"
"""Ignored by git: the environment, and what ``torch.compile`` made for earlier runs."""

PLACE = CACHE / "alternatives"
PINNED = ROOT / "scripts" / "alternatives.txt"
SHOWN = ("optimum", "optimum-onnx", "optimum-intel", "transformers", "torch", "nncf")
HEADS = (
    "optimum exports LevitForImageClassificationWithTeacher: both heads, their mean first, as in "
    "ours"
)


@dataclass(frozen=True)
class Alternatives:
    """The other environment; ``reason`` says why there is none."""

    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(PLACE / "bin" / "python")

    def export(self, form: str, folder: Path, output: Path) -> list[str]:
        """The command line that exports a ``transformers`` folder in ``form``."""
        command = [str(PLACE / "bin" / "optimum-cli"), "export", form, "--model", str(folder)]
        fp32 = ["--weight-format", "fp32"] if form == "openvino" else []
        return [*command, "--task", "image-classification", *fp32, str(output)]

    def quantise(self, form: str, exported: Path, output: Path, calibration: Path) -> str:
        """Make int8 of what was exported; empty, or why it is not there."""
        if self.reason:
            return self.reason
        task = [form, str(exported), str(output), str(calibration)]
        program = Path(__file__).with_name("optimum_int8.py")
        try:
            answer([self.python, str(program)], task)
        except WorkerError as error:
            return f"optimum's quantiser failed: {error}"
        return ""


def prepare() -> Alternatives:
    """Install what ``PINNED`` names, once; nothing to do when that was done before."""
    stamp, wanted = PLACE / ".installed", str(zlib.crc32(PINNED.read_bytes()))
    if not stamp.is_file() or stamp.read_text() != wanted:
        print("installing the alternatives into .benchmark (once, a few minutes)", file=sys.stderr)
        try:
            _install()
        except (OSError, subprocess.CalledProcessError) as error:
            return Alternatives(f"not installed: {_last_line(error)}")
        stamp.write_text(wanted)
    return Alternatives(versions=_versions())


def _install() -> None:
    pip = [str(PLACE / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(PLACE)],
        [*pip, "install", "--requirement", str(PINNED)],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True)


def _last_line(error: OSError | subprocess.CalledProcessError) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in (said or str(error)).splitlines() if line.strip()]
    # Without the addresses that pip was looking at.
    return (lines[-1] if lines else type(error).__name__).split(" (from ")[0]


def _versions() -> dict[str, str]:
    done = subprocess.run(
        [str(PLACE / "bin" / "python"), "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    found = {each["name"].lower(): each["version"] for each in json.loads(done.stdout)}
    return {name: found[name] for name in SHOWN if name in found}


def write_checkpoint(model: str, folder: Path) -> None:
    """Our weights of ``model`` as ``transformers`` stores them: both heads, and its settings."""
    from safetensors.torch import save_file

    from levit_export.models import loading
    from levit_export.models.checkpoints import huggingface
    from levit_export.models.checkpoints.levit import Outline
    from levit_export.models.zoo import LevitConfig

    checkpoint = loading.load(choice(model))
    config = checkpoint.config
    if not isinstance(config, LevitConfig):
        raise TypeError(f"{model} is no LeViT that transformers knows")
    stem = config.stem_stride.bit_length() - 1
    names = huggingface.names(Outline(stem, config.depths, config.two_heads))
    tensors = checkpoint.build().state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {names[name]: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    recipe = checkpoint.preprocessing
    for name, settings in {
        "config": _config(config),
        "preprocessor_config": _steps(recipe),
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(settings), encoding="utf-8")


def choice(model: str) -> Any:
    """The weights that are measured: the bundled ones of the bundled model, else seeded ones."""
    from levit_export.models.loading import ModelChoice

    return ModelChoice(model=model, random_seed=None if model == "levit_digits" else 0)


def flags(model: str) -> tuple[str, ...]:
    """The same for our command line."""
    seed = choice(model).random_seed
    return ("--model", model, *(() if seed is None else ("--random-weights", str(seed))))


def _config(config: Any) -> dict[str, Any]:
    labels = {str(index): f"LABEL_{index}" for index in range(config.classes)}
    stages = len(config.dims)
    return {
        "model_type": "levit",
        "architectures": ["LevitForImageClassificationWithTeacher"],
        "image_size": config.image_size[0],
        "patch_size": config.stem_stride,
        "hidden_sizes": config.dims,
        "num_attention_heads": config.heads,
        "depths": config.depths,
        "key_dim": [config.key_dim] * stages,
        "mlp_ratio": [2] * stages,
        "attention_ratio": [2] * stages,
        "drop_path_rate": 0,
        "id2label": labels,
        "label2id": {label: int(index) for index, label in labels.items()},
    }


def _steps(recipe: Any) -> dict[str, Any]:
    return {
        "image_processor_type": "LevitImageProcessor",
        "size": {"shortest_edge": recipe.crop[0]},
        "crop_size": {"height": recipe.crop[0], "width": recipe.crop[1]},
        "image_mean": recipe.mean,
        "image_std": recipe.std,
    }
