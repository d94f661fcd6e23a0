"""Whatever happened to a checkpoint's bytes, it is read or refused on purpose."""

from __future__ import annotations

import io
import json
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import hostile_files as hostile
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.zoo import LevitConfig

TINY = LevitConfig((16, 24, 32), 8, (1, 2, 3), (1, 1, 1), image_size=(32, 32), classes=3)
OUTCOMES = {"read", "CheckpointError", "UnsafeCheckpointError"}
ROUNDS = 150
"""Damaged forms of each subject; 10,000 of each are read by hand before a release."""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of whole checkpoints: both forms of PyTorch's, safetensors, folders."""
    folder = tmp_path_factory.mktemp("fuzz")
    tensors = dict(randomize_(Levit(TINY), 0).state_dict())
    small = {
        "model": {"a": torch.ones(2, 3), "b": torch.ones(1)},
        "model_ema": {"a": torch.ones(1)},
    }
    torch.save({"model": tensors, "epoch": 3}, folder / "levit.pth")
    torch.save(tensors, folder / "levit-old.pth", _use_new_zipfile_serialization=False)
    torch.save(small, folder / "small.pth")
    torch.save(small, folder / "small-old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "levit.safetensors")
    whole, shards = folder / "folder", folder / "shards"
    whole.mkdir()
    shards.mkdir()
    save_file(small["model"], whole / "model.safetensors")
    (whole / "config.json").write_text(json.dumps({"model_type": "levit", "depths": [1, 1, 1]}))
    (whole / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 256}}))
    placed = {}
    for name, tensor in small["model"].items():
        save_file({name: tensor}, shards / f"{name}.safetensors")
        placed[name] = f"{name}.safetensors"
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is not told")
def test_damaged_files(subjects: Path) -> None:
    """Thousands of damaged files end in tensors or in an error with a remedy, in bounded memory.

    They are read in a process of their own, so that a crash inside a library is seen as one; it
    may take 512 MiB more than it starts with.
    """
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, subjects, "0", str(ROUNDS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["outcomes"]) == 7
    for subject, counts in found["outcomes"].items():
        assert sum(counts.values()) == ROUNDS
        assert counts.keys() <= OUTCOMES
        assert counts["CheckpointError"] > ROUNDS / 20, subject
    assert found["grown"] < fuzzing.ADDED_MEMORY >> 20


def programs() -> Iterator[bytes]:
    """The operations of a real state dict's pickle, one by one."""
    stream = io.BytesIO()
    torch.save({"model": {"a": torch.ones(1), "b": torch.nn.Parameter(torch.ones(1))}}, stream)
    with zipfile.ZipFile(stream) as archive:
        program = archive.read("archive/data.pkl")
    starts = [position for _, _, position in pickletools.genops(program)]
    for start, stop in zip(starts, [*starts[1:], len(program)], strict=True):
        yield program[start:stop]


SENTENCES = tuple(programs())


@settings(max_examples=300)
@given(st.data())
def test_shuffled_programs(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A real pickle with operations removed, repeated and swapped is read or refused."""
    chosen = list(SENTENCES)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(chosen)))
        stop = at + data.draw(st.integers(0, 3))
        chosen[at:stop] = data.draw(st.lists(st.sampled_from(SENTENCES), max_size=3))
    storages = {"0": bytes(4), "1": bytes(4)}
    file = tmp_path_factory.getbasetemp() / "shuffled.pth"
    for form in (hostile.archive, hostile.legacy):
        file.write_bytes(form(b"".join(chosen), storages))
        assert fuzzing.outcome(file) in OUTCOMES


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner),
        max_leaves=12,
    )
)
def test_arbitrary_headers(tmp_path_factory: pytest.TempPathFactory, header: object) -> None:
    """Any JSON as a safetensors header is refused, or describes a file without tensors."""
    file = tmp_path_factory.getbasetemp() / "arbitrary.safetensors"
    file.write_bytes(hostile.safetensors(header))
    assert fuzzing.outcome(file) == "CheckpointError"
