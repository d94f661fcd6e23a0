"""Reading checkpoint files and folders: what is taken, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hostile_files as hostile
import pytest
import torch
from folders import same
from safetensors.torch import save_file

from levit_export.core.errors import CheckpointError, UnsafeCheckpointError
from levit_export.models import checkpoints
from levit_export.models.checkpoints import limits, reading

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def weights() -> Tensors:
    """Two tensors under names of a state dict."""
    generator = torch.Generator().manual_seed(0)
    return {"head.l.weight": torch.randn(3, 4, generator=generator), "head.l.bias": torch.ones(3)}


def tensors_of(path: Path) -> Tensors:
    """What is read of ``path``."""
    return reading.read(path).tensors


def complaint(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """What is said of ``path``, which is to be refused with a remedy and its name."""
    with pytest.raises(kind) as raised:
        reading.read(path)
    assert type(raised.value) is kind
    assert raised.value.remedy
    assert path.name in raised.value.what
    return raised.value.what


def write(path: Path, content: bytes) -> Path:
    """``content`` in a file."""
    path.write_bytes(content)
    return path


def saved(path: Path, content: object) -> Path:
    """``content`` as ``torch.save`` writes it."""
    torch.save(content, path)
    return path


# What is read


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_training_state(tmp_path: Path, weights: Tensors, *, old: bool) -> None:
    """All that training scripts keep beside weights is read past: none of it asks for code."""
    model = torch.nn.Linear(4, 3)
    model(torch.ones(1, 4)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    state = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "scaler": {"scale": 65536.0, "growth_tracker": 0, "none": None, "huge": 2**70},
        "args": argparse.Namespace(lr=5e-4, model="LeViT_256", sizes=[1, 2], flags={"a"}),
        "shape": torch.Size([3, 4]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "bytes": b"\x00\xff",
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "teacher": model.state_dict(),
    }
    if not old:  # PyTorch itself cannot read these from its older format
        state["float8"] = torch.ones(2).to(torch.float8_e4m3fn)
    file = tmp_path / "checkpoint.pth"
    torch.save(state, file, _use_new_zipfile_serialization=not old)
    stored = reading.read(file)
    assert same(stored.tensors, weights)
    assert (stored.config, stored.preprocessor, stored.remarks) == (None, None, ())
    assert (stored.file, stored.files) == (file, (file,))
    assert stored.sha256 == limits.sha256_of(file)


def test_views(tmp_path: Path) -> None:
    """Transposed, shifted and shared tensors keep their values."""
    base = torch.arange(24.0)
    tensors = {
        "a": base.view(4, 6).T,
        "b": base[5:9],
        "c": base,
        "d": torch.ones(1, 2).expand(3, 2),
        "e": torch.zeros(0, 3),
        "f": torch.tensor(4.0),
    }
    assert same(tensors_of(saved(tmp_path / "w.pth", tensors)), tensors)


def test_safetensors_do_not_change_with_their_file(tmp_path: Path) -> None:
    """A file that is overwritten after it was read does not change what was read."""
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3000)}, file)
    tensors = tensors_of(file)
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(struct.pack("<f", 7.0))
    assert tensors["a"][-1] == 0
    os.truncate(file, 100)
    assert tensors["a"].sum() == 0


def test_parameters(tmp_path: Path) -> None:
    """Parameters, saved as such, come back as tensors without a gradient to follow."""
    layer = torch.nn.Linear(4, 3)
    tensors = tensors_of(saved(tmp_path / "w.pth", dict(layer.named_parameters())))
    assert same(tensors, dict(layer.state_dict()))
    assert {(type(t), t.requires_grad) for t in tensors.values()} == {(torch.Tensor, False)}


# Folders


def test_folder(tmp_path: Path, weights: Tensors) -> None:
    """A folder gives its weights and both JSON files; safetensors come before pickles."""
    save_file(weights, tmp_path / "model.safetensors")
    saved(tmp_path / "pytorch_model.bin", {k: v * 2 for k, v in weights.items()})
    write(tmp_path / "training_args.bin", b"x")
    (tmp_path / "config.json").write_text('{"model_type": "levit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 256}')
    stored = reading.read(tmp_path)
    assert same(stored.tensors, weights)
    assert stored.config == {"model_type": "levit"}
    assert stored.preprocessor == {"size": 256}
    assert stored.file == tmp_path / "model.safetensors"
    assert stored.remarks == (
        "model.safetensors was taken; the folder also holds pytorch_model.bin",
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.pth", "x.pt", "last.ckpt"])
def test_folder_with_one_pickle(tmp_path: Path, weights: Tensors, name: str) -> None:
    """The only weight file of a folder is taken, whatever a Trainer left beside it."""
    saved(tmp_path / name, {"model_ema": weights, "model": weights})
    for other in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "README.md"):
        write(tmp_path / other, b"x")
    stored = reading.read(tmp_path)
    assert same(stored.tensors, weights)
    assert (stored.file, stored.config) == (tmp_path / name, None)


def sharded(folder: Path, placed: Mapping[str, str], tensors: Tensors) -> Path:
    """A folder whose index says ``placed``, with the shards that are possible."""
    content = json.dumps({"metadata": {}, "weight_map": placed})
    (folder / "model.safetensors.index.json").write_text(content)
    for shard in {"a.safetensors", "b.safetensors"} & set(placed.values()):
        held = {k: tensors[k] for k, where in placed.items() if where == shard and k in tensors}
        save_file(held, folder / shard)
    return folder


def test_shards(tmp_path: Path, weights: Tensors) -> None:
    """Shards are put together, and the digest covers the index and each of them."""
    placed = {"head.l.weight": "a.safetensors", "head.l.bias": "b.safetensors"}
    stored = reading.read(sharded(tmp_path, placed, weights))
    assert same(stored.tensors, weights)
    names = [file.name for file in stored.files]
    assert names == ["model.safetensors.index.json", "a.safetensors", "b.safetensors"]
    before = stored.sha256
    save_file({"head.l.bias": torch.zeros(3)}, tmp_path / "b.safetensors")
    assert reading.read(tmp_path).sha256 != before


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ({"head.l.bias": "../a.safetensors"}, "not a file beside it"),
        ({"head.l.bias": "/etc/passwd"}, "not a file beside it"),
        ({"head.l.bias": ".."}, "not a file beside it"),
        ({"head.l.bias": "x\\a.safetensors"}, "not a file beside it"),
        ({"head.l.bias": "a.safetensors\n"}, "not a file beside it"),
        ({"head.l.bias": 7}, "not a file beside it"),
        ({"head.l.bias": "c.safetensors"}, "does not exist"),
        ({"head.l.bias": "a.safetensors", "gone": "a.safetensors"}, "disagree on 1 tensors"),
        ({}, "no 'weight_map'"),
        ({"bad\x1bname": "a.safetensors"}, "under the name"),
    ],
)
def test_bad_shards(
    tmp_path: Path, weights: Tensors, placed: dict[str, Any], message: str
) -> None:
    """An index that leaves its folder, or does not describe its shards, is refused."""
    with pytest.raises(CheckpointError, match=message):
        reading.read(sharded(tmp_path, placed, weights))


def test_folder_without_weights(tmp_path: Path) -> None:
    """A folder without weights is refused with what it holds instead."""
    for number in range(10):
        (tmp_path / f"checkpoint-{number}").mkdir()
    text = complaint(tmp_path)
    assert "is a folder without a weight file" in text
    assert "checkpoint-0" in text
    assert "and 2 more" in text


def test_ambiguous_folder(tmp_path: Path, weights: Tensors) -> None:
    """Several weight files without a standard name are an error that lists them."""
    for name in ("best.pth", "last.pth"):
        saved(tmp_path / name, weights)
    assert complaint(tmp_path).endswith("is a folder with 2 weight files: best.pth, last.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "a JSON list, not an object"),
        (b"", "is empty"),
        (b" " * (limits.JSON_BYTES + 1), "more than"),
    ],
    ids=["open", "encoding", "deep", "number", "list", "empty", "huge"],
)
def test_bad_json(tmp_path: Path, weights: Tensors, content: bytes, message: str) -> None:
    """A JSON file that is none, no object or too large is refused by name."""
    save_file(weights, tmp_path / "model.safetensors")
    write(tmp_path / "config.json", content)
    with pytest.raises(CheckpointError, match=message) as raised:
        reading.read(tmp_path)
    assert "config.json" in raised.value.what


# Files of other kinds


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("w.pth", b"GGUF\x03\0\0\0", "GGUF"),
        ("w.onnx", b"\x08\x08\x12\x07pytorch", "an ONNX model"),
        ("w.bin", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("w.pth", b"<!DOCTYPE html>", "web page"),
        ("w.pth.gz", b"\x1f\x8b\x08", "compressed with gzip"),
        ("w.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        ("w.npy", b"\x93NUMPY\1\0", "NumPy"),
        ("flax_model.msgpack", b"\x82\xa6params", "Flax"),
        ("w.pth", b"weights: see the wiki\n", "not a whole PyTorch checkpoint"),
        ("w.pth", b"", "is empty"),
        ("w.safetensors", b"\x01", "not a whole safetensors file"),
    ],
)
def test_other_kinds(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """A file of another kind is refused as what it is."""
    assert message in complaint(write(tmp_path / name, content))


def test_torchscript(tmp_path: Path) -> None:
    """A TorchScript archive is refused as one: it is a program."""
    file = tmp_path / "w.pt"
    content = {"w/data.pkl": b".", "w/constants.pkl": b".", "w/code/x.py": b""}
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    assert "TorchScript" in complaint(file)


def test_other_zip_file(tmp_path: Path) -> None:
    """A zip file of another program is refused, with what it holds."""
    file = tmp_path / "w.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", b"")
    assert "torch.save did not write (document.xml)" in complaint(file)


def test_tar(tmp_path: Path) -> None:
    """A tar archive is refused as one, also where it begins like a pickle of PyTorch."""
    member = write(tmp_path / "sys_info", b"x")
    with tarfile.open(tmp_path / "w.pth", "w") as archive:
        archive.add(member, "sys_info")
    assert "tar archive" in complaint(tmp_path / "w.pth")
    header = tarfile.TarInfo(hostile.MAGIC.decode("latin-1").rstrip("\0"))
    header.size = 0
    both = header.tobuf(tarfile.USTAR_FORMAT, "latin-1")
    assert both.startswith(hostile.MAGIC)
    assert "tar archive" in complaint(write(tmp_path / "both.pth", both + bytes(1024)))


# Files that are none


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_pipe(tmp_path: Path) -> None:
    """A pipe is refused at once; nobody waits for its other end."""
    os.mkfifo(tmp_path / "w.pth")
    assert "not a regular file" in complaint(tmp_path / "w.pth")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        reading.read(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no /dev/zero")
def test_device() -> None:
    """An endless device is refused."""
    assert "not a regular file" in complaint(Path("/dev/zero"))


def test_loop_of_links(tmp_path: Path) -> None:
    """A link to itself is refused with the system's reason."""
    (tmp_path / "w.pth").symlink_to(tmp_path / "w.pth")
    assert os.strerror(errno.ELOOP) in complaint(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w\0.pth", "w" * 5000, "gone.pth"])
def test_impossible_paths(tmp_path: Path, name: str) -> None:
    """A path that cannot exist, or does not, is refused."""
    with pytest.raises(CheckpointError) as raised:
        reading.read(tmp_path / name)
    assert raised.value.remedy


def test_large_file(tmp_path: Path) -> None:
    """A file beyond the limit is refused before it is opened."""
    file = write(tmp_path / "w.pth", b"PK")
    os.truncate(file, limits.FILE_BYTES + 1)
    assert "more than any LeViT needs" in complaint(file)


# Pickles that would run code


@pytest.mark.parametrize("nested", [False, True], ids=["bare", "nested"])
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4", "plain pickle", "hand-made"])
def test_hostile_pickle(tmp_path: Path, form: str, *, nested: bool) -> None:
    """A pickle that would make a folder is refused as unsafe, and the folder is not made."""
    marker, file = tmp_path / "marker", tmp_path / "w.pth"
    content: object = hostile.Runs(marker)
    content = {"model": {"head.l.weight": torch.ones(1), "x": content}} if nested else content
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(content, 2))
    elif form == "hand-made":
        file.write_bytes(hostile.archive({"model": hostile.Runs(marker)}))
    else:
        torch.save(
            content,
            file,
            pickle_protocol=4 if form == "protocol 4" else 2,
            _use_new_zipfile_serialization=form == "zip",
        )
    text = complaint(file, UnsafeCheckpointError)
    assert "nothing of it was executed" in text
    assert not marker.exists()
    pickle.loads(pickle.dumps(hostile.Runs(marker)))  # noqa: S301 - shows that it would
    assert marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        hostile.Calls(torch.FloatTensor, 10**12),
        hostile.Calls(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1,), (1,)),
        hostile.Calls(torch._utils._rebuild_wrapper_subclass, torch.Tensor),
        hostile.Calls(torch._utils._rebuild_sparse_tensor, torch.strided, ()),
        hostile.Calls(torch._utils._rebuild_qtensor, 1),
        hostile.Calls(torch._utils._rebuild_nested_tensor, 1),
        hostile.Calls(eval, "1"),
        hostile.Calls(getattr, 1, "real"),
    ],
    ids=lambda call: call.function.__name__,
)
def test_calls_beyond_plain_tensors(tmp_path: Path, call: hostile.Calls) -> None:
    """Functions that allocate what they are told, and kinds that no weight has, are not called."""
    file = write(tmp_path / "w.pth", hostile.archive({"a": call}))
    assert call.function.__name__ in complaint(file, UnsafeCheckpointError)


# Declarations larger than the file


def deep(depth: int) -> bytes:
    """A pickle of a tuple in a tuple, ``depth`` of them, as a key."""
    return b"\x80\x02})" + b"\x85" * depth + b"Ns."


def itself() -> dict[str, object]:
    """A dictionary that holds itself."""
    content: dict[str, object] = {}
    content["model"] = content
    return content


def copying(times: int) -> bytes:
    """A pickle that copies a list of 1,000 numbers ``times`` times in 10 bytes each."""
    listed = b"(" + b"K\x00K\x00\x86" * 1000 + b"t\x85"
    call = b"ccollections\nOrderedDict\n"
    return b"\x80\x02" + call + b"q\x00" + listed + b"q\x01" + b"h\x00h\x01R" * times + b"."


HOSTILE_PICKLES: dict[str, tuple[object, str]] = {
    "stride 0": ({"a": hostile.tensor(1, (10**12,), (0,))}, "declares tensors of 4,0"),
    "stride 0, shared": (
        {str(n): hostile.tensor(1, (500,), (0,)) for n in range(40)},
        "declares tensors of",
    ),
    "stride 0 beside": (
        {"model": {"a": hostile.tensor(1, (1,), (1,))}, "b": hostile.tensor(1, (10**9,), (0,))},
        "declares tensors of",
    ),
    "huge storage": ({"a": hostile.tensor(10**12, (1,), (1,))}, "elements in"),
    "beyond": ({"a": hostile.tensor(1, (2,), (1,))}, "beyond its storage"),
    "offset": ({"a": hostile.tensor(1, (1,), (1,), 1)}, "beyond its storage"),
    "negative offset": ({"a": hostile.tensor(1, (1,), (1,), -1)}, "odd shape"),
    "negative": ({"a": hostile.tensor(1, (-1,), (1,))}, "odd shape"),
    "overflow": ({"a": hostile.tensor(1, (2**61, 2**61, 8), (0, 0, 0))}, "declares tensors"),
    "rank": ({"a": hostile.tensor(1, (1,) * 60, (1,) * 60)}, "odd shape"),
    "no such storage": ({"a": hostile.tensor(1, (1,), (1,), key="7")}, "is to have 4 bytes"),
    "other size": ({"a": hostile.tensor(2, (1,), (1,))}, "is to have 8 bytes"),
    "two types": (
        {
            "a": hostile.tensor(1, (1,), (1,)),
            "b": hostile.Stored(1, kind=torch.IntStorage),
        },
        "two types",
    ),
    "bytearray": ({"a": hostile.Calls(bytearray, 10**12)}, "bytes that are not made of text"),
    "deep key": (deep(200_000), "a key that is neither"),
    "deep value": (b"\x80\x02}X\x01\0\0\0a)" + b"\x85" * 200_000 + b"s.", "not tensors"),
    "copies": (copying(2000), "pickle operations"),
    "many": (b"\x80\x02" + b"]" * (limits.PICKLE_OPERATIONS + 1) + b".", "pickle operations"),
    "itself": (itself(), "not tensors"),
    "memo": (b"\x80\x02h\x09.", "not a whole"),
    "no stack": (b"\x80\x02R.", "not a whole"),
    "cut": (b"\x80\x02}", "not a whole"),
    "method": (b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x05sb.", "methods are"),
    "name": ({"a\x1b[2J": hostile.tensor(1, (1,), (1,))}, r"'a\x1b[2J'"),
    "number as name": ({7: hostile.tensor(1, (1,), (1,))}, "under the name 7"),
}


OTHERWISE_IN_LEGACY = ("no such storage", "other size", "itself", "deep value")
"""Refused there as well, for a list of storages that does not fit."""


@pytest.mark.parametrize("form", [hostile.archive, hostile.legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", HOSTILE_PICKLES)
def test_pickles_that_ask_for_too_much(
    tmp_path: Path, case: str, form: Callable[[object], bytes]
) -> None:
    """Whatever a pickle declares beyond its file is refused before PyTorch sees it."""
    content, message = HOSTILE_PICKLES[case]
    text = complaint(write(tmp_path / "w.pth", form(content)))
    if form is hostile.archive or case not in OTHERWISE_IN_LEGACY:
        assert message in text
    assert text.isprintable()


def test_hand_made_files_are_read(tmp_path: Path) -> None:
    """The files of these tests are refused for what they say, not for how they are made."""
    content = {"a": hostile.tensor(1, (1,), (1,))}
    for form in (hostile.archive, hostile.legacy):
        file = write(tmp_path / "w.pth", form(content))
        assert same(tensors_of(file), {"a": torch.zeros(1)})


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tensors than the limit are refused, in each form of file."""
    tensors = {str(n): torch.zeros(1) for n in range(20)}
    monkeypatch.setattr(limits, "TENSORS", 19)
    saved(tmp_path / "w.pth", tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert "more than 19 tensors" in complaint(tmp_path / name)


# Archives that can be read in two ways


def entry_at(content: bytes, name: bytes) -> int:
    """Offset of the directory's entry of ``name``."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name))


def test_compressed_entries(tmp_path: Path) -> None:
    """A bomb of compressed zeros is refused unopened."""
    content = hostile.archive({}, {"0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED)
    assert len(content) < 1 << 16
    assert "entries are compressed" in complaint(write(tmp_path / "w.pth", content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["w/data.pkl", "w/DATA.pkl", "v/data.pkl"])
def test_two_pickles(tmp_path: Path, second: str) -> None:
    """Two entries that could both be the pickle are refused."""
    file = write(tmp_path / "w.pth", hostile.archive({}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(second, b"\x80\x02}.")
    assert "of one name, or in several folders" in complaint(file)


def changed(content: bytes, at: int, form: str, value: int) -> bytes:
    """``content`` with one number written over."""
    array = bytearray(content)
    struct.pack_into(form, array, at, value)
    return bytes(array)


def test_archives_of_two_minds(tmp_path: Path) -> None:
    """Directories and entries that contradict each other are refused."""
    whole = hostile.archive({"a": hostile.tensor(1, (1,), (1,))})
    end, pickled = len(whole) - 22, entry_at(whole, b"w/data.pkl")
    other = entry_at(whole, b"w/byteorder")
    cases = {
        "comment": changed(whole, end + 20, "<H", 3) + b"abc",
        "trailing": whole + b"x",
        "leading": b"PK\x03\x04" + whole,
        "moved directory": changed(whole, end + 16, "<I", 0),
        "fewer entries": changed(whole, end + 8, "<H", 1),
        "other disk": changed(whole, end + 4, "<H", 1),
        "encrypted": changed(whole, pickled + 8, "<H", 1),
        "beyond": changed(whole, pickled + 42, "<I", len(whole)),
        "overlap": changed(whole, other + 42, "<I", 0),
        "large": changed(changed(whole, pickled + 20, "<I", 10**9), pickled + 24, "<I", 10**9),
        "other name": whole.replace(b"w/data.pkl", b"w/data.pxl", 1),
        "zip64": whole[:end] + struct.pack("<4sIQI", b"PK\x06\x07", 0, 5, 1) + whole[end:],
    }
    file = tmp_path / "w.pth"
    assert tensors_of(write(file, whole)).keys() == {"a"}
    for name, content in cases.items():
        assert content != whole, name
        assert "not a whole PyTorch checkpoint" in complaint(write(file, content)), name


# Safetensors

GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {**GOOD, "shape": [10**12]}}, "invalid shape"),
        ({"a": {**GOOD, "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, "not fully covered"),
        ({"a": {**GOOD, "shape": [2**61, 2**61]}}, "overflow"),
        ({"a": {**GOOD, "shape": [-1]}}, "integer `-1`"),
        ({"a": {**GOOD, "shape": [True]}}, "boolean `true`"),
        ({"a": GOOD, "b": GOOD}, "invalid offset"),
        ({"a": {**GOOD, "data_offsets": [4, 8]}}, "invalid offset"),
        ({"a": {**GOOD, "dtype": "F33"}}, "unknown variant `F33`"),
        ({"a": {"dtype": "F32"}}, "missing field `shape`"),
        ({"a": 7}, "not a whole"),
        ([GOOD], "invalid type"),
        (b"{" * 100_000, "not a whole"),
        (b"\xff{}", "not a whole"),
        ({}, "not fully covered"),
        ({"a\n": GOOD}, "under the name"),
    ],
)
def test_lying_headers(tmp_path: Path, header: object, message: str) -> None:
    """A header that is not true of its file is refused, whatever it declares."""
    file = write(tmp_path / "w.safetensors", hostile.safetensors(header, bytes(4)))
    assert message in complaint(file)


@pytest.mark.parametrize("length", [2**63, 10**12, 100_000_001, 3])
def test_lying_lengths(tmp_path: Path, length: int) -> None:
    """A header said to be longer than the file, or too short, is refused."""
    whole = hostile.safetensors({"a": GOOD}, bytes(4))
    file = write(tmp_path / "w.safetensors", struct.pack("<Q", length) + whole[8:])
    complaint(file)


def test_large_header(tmp_path: Path) -> None:
    """A header beyond the limit is refused unread, though the file has it."""
    file = write(tmp_path / "w.safetensors", hostile.safetensors(b" " * (limits.JSON_BYTES + 1)))
    assert "bytes of JSON, more than" in complaint(file)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.bool, torch.uint16])
def test_types_that_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """Float8 and small integers are read, and refused as weights with name and type."""
    file = tmp_path / "w.safetensors"
    save_file({"head.l.bias": torch.ones(3).to(dtype)}, file)
    tensors = tensors_of(file)
    assert tensors["head.l.bias"].dtype == dtype
    with pytest.raises(CheckpointError, match=rf"head\.l\.bias as {dtype}") as raised:
        reading.refuse_unusable(tensors, file.name)
    assert "float32" in raised.value.remedy


def test_more_dimensions_than_pytorch_computes_with(tmp_path: Path) -> None:
    """A tensor of a hundred dimensions, which a safetensors file can declare, is refused."""
    header = {"a": {**GOOD, "shape": [1] * 100}}
    file = write(tmp_path / "w.safetensors", hostile.safetensors(header, bytes(4)))
    with pytest.raises(CheckpointError, match="holds a with 100 dimensions"):
        checkpoints.load(file)


def test_tensors_without_memory() -> None:
    """A tensor on the meta device is refused; it has no values that could be weights."""
    with pytest.raises(CheckpointError, match="meta"):
        reading.refuse_unusable({"a": torch.empty(3, device="meta")}, "w.pth")


def test_stored_is_a_value(tmp_path: Path, weights: Tensors) -> None:
    """What was read can be changed into another value, not in place."""
    stored = reading.read(saved(tmp_path / "w.pth", weights))
    assert replace(stored, remarks=("x",)).remarks == ("x",)
    with pytest.raises(AttributeError):
        stored.remarks = ()  # type: ignore[misc]


# Memory

BOUNDED = """
import resource, sys
from pathlib import Path
from levit_export.models.checkpoints import reading
from levit_export.core.errors import CheckpointError
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        reading.read(Path(name))
    except CheckpointError as error:
        assert not isinstance(error.__cause__, MemoryError), error
    else:
        raise SystemExit(f"{name} was read")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is not told")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Files that declare terabytes are refused in a process that may take 1 GiB more."""
    one = {**GOOD, "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    files = [write(tmp_path / "w.safetensors", hostile.safetensors({"a": one}, bytes(4)))]
    for case, (content, _) in HOSTILE_PICKLES.items():
        for form in (hostile.archive,) if case == "many" else (hostile.archive, hostile.legacy):
            name = f"{case.replace(' ', '-')}-{form.__name__}.pth"
            files.append(write(tmp_path / name, form(content)))
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 900, "MiB"
