"""Dask clusters on loopback: same answers, nothing lost, nothing done twice, clear refusals."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import clusters
import numpy as np
import pytest
from clusters import Running
from PIL import Image
from support import Cli, Exported

from levit_export.core.errors import (
    CheckpointError,
    ClusterError,
    DataError,
    MissingDependencyError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.values import Preprocessing
from levit_export.inputs import samples
from levit_export.inputs.images import open_images
from levit_export.models.loading import ModelChoice
from levit_export.workflows import cluster
from levit_export.workflows.cluster import Call, connected, identity, parcel
from levit_export.workflows.evaluate import EvaluateRequest, evaluate, on_cluster
from levit_export.workflows.evaluate.predict import Weights, Workload

pytest.importorskip("distributed", reason="Dask is not installed")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A scheduler and two workers, which no test may kill."""
    with clusters.cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the shared export: ``evaluate`` writes what it found into the report there."""
    return shutil.copytree(exported.folder, tmp_path / "levit_digits")


def both(request: EvaluateRequest, scheduler: str) -> tuple[object, object]:
    """What is found on the cluster, and here."""
    there = evaluate(replace(request, scheduler=scheduler))
    here = evaluate(replace(request, workers=1))
    return there.artifacts, here.artifacts


def test_same_answers_as_here(running: Running, folder: Path, tmp_path: Path) -> None:
    """Files of images give the same report, with those that cannot be read, and why."""
    data = tmp_path / "data"
    data.mkdir()
    for i, pixels in enumerate(samples.held_out_digits()[0][:60]):
        Image.fromarray(pixels).save(data / f"{i:02}.png")
    (data / "05.png").write_bytes(b"")
    (data / "06.png").unlink()
    (data / "06.png").mkdir()
    (data / "50.png").write_bytes(b"no image")
    there, here = both(EvaluateRequest((folder,), data, batch=8), running.address)
    assert there == here


def test_checkpoints_travel(running: Running, folder: Path, digits_file: Path) -> None:
    """A checkpoint under a relative path, which leads nowhere on a worker, is the reference."""
    own = folder.parent / "own.safetensors"
    shutil.copy(digits_file, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        choice = ModelChoice(checkpoint=Path("own.safetensors"))
        request = EvaluateRequest((Path("levit_digits"),), "digits", choice, limit=40)
        there, here = both(request, running.address)
    assert there == here


def test_a_killed_worker_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """A worker is killed in the middle: the other does its part, and the answers are whole."""
    with clusters.cluster(tmp_path) as found:

        class Killing:
            """A progress that kills a worker after the first group."""

            done = 0

            def plan(self, total: int) -> None:
                """Nothing."""

            def stage(self, text: str) -> None:
                """Nothing."""

            def steps(self, total: int) -> None:
                """Nothing."""

            def advance(self) -> None:
                """Kill, once."""
                if not self.done:
                    found.workers[0].kill()
                self.done += 1

        killing = Killing()
        request = EvaluateRequest((folder,), "digits", batch=4)
        there = evaluate(replace(request, scheduler=found.address), killing)
        assert found.workers[0].process.returncode == -9
        assert found.workers[1].process.poll() is None
    assert killing.done == 90
    assert there.artifacts == evaluate(replace(request, workers=1)).artifacts


def test_a_call_of_one_key_is_made_once(running: Running, tmp_path: Path) -> None:
    """Calls are known by their keys; what was done is not done again."""
    file = tmp_path / "notes"
    wanted = [Call(f"once-{i % 3}", clusters.note, (str(file), str(i % 3))) for i in range(9)]
    with connected(running.address) as found:
        outcomes = list(found.run(wanted))
    assert sorted(call.key for call, _ in outcomes) == ["once-0", "once-1", "once-2"]
    assert sorted(file.read_text().split()) == ["0", "1", "2"]


def test_parcels(running: Running, tmp_path: Path) -> None:
    """Files reach the workers under their names, and lie there once for all calls."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    sent = parcel({"x.bin": tmp_path / "a", "d/y.bin": tmp_path / "b"})
    wanted = [
        Call(f"p{i}", clusters.note, (str(tmp_path / "notes"), ""), (sent,)) for i in range(8)
    ]
    with connected(running.address) as found:
        results = [result for _, result in found.run(wanted)]
    assert results == [["d", "y.bin", "x.bin"]] * 8


def test_address_of_a_parcel(tmp_path: Path) -> None:
    """Another content, or another name, is another parcel; the folder it came from is not."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1" if name == "c" else name.encode())
    (tmp_path / "b").write_bytes(b"a")
    first = parcel({"x": tmp_path / "a"})
    assert first == parcel({"x": tmp_path / "b"})
    assert first.sha256 != parcel({"y": tmp_path / "a"}).sha256
    assert first.sha256 != parcel({"x": tmp_path / "c"}).sha256


def test_errors_cross(running: Running) -> None:
    """An error on purpose is what it was; another one is named; both leave the others alone."""
    wanted = [
        Call("refused", clusters.refuse, ("such data",)),
        Call("crashed", clusters.crash, ()),
        Call("fine", clusters.note, ("/dev/null", "")),
    ]
    with connected(running.address) as found:
        errors = {call.key: result for call, result in found.run(wanted)}
    assert isinstance(errors["refused"], DataError)
    assert errors["refused"].what == "such data"
    assert isinstance(errors["crashed"], RuntimeFailedError)
    assert "ZeroDivisionError: by nothing" in errors["crashed"].what
    assert errors["fine"] == []


def test_another_checkpoint(running: Running) -> None:
    """What a worker refuses is refused here, as what it is."""
    images = open_images("digits", labels=tuple("0123456789"))
    recipe = Preprocessing("digits", resize=(96, 96), crop=(96, 96))
    task = Workload(images, recipe, 10, (), Weights(ModelChoice(), "0" * 64), ((0,),), 1, 1)
    with pytest.raises(CheckpointError, match="000000"):
        on_cluster.run(task, running.address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "127.0.0.1:1"])
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A scheduler that cannot be reached is named, with what an address looks like."""
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    message = f"no Dask scheduler answers at {address}"
    with pytest.raises(ClusterError, match=message) as caught, connected(address):
        pass
    assert "tcp://" in caught.value.remedy


def test_status_where_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, folder: Path, tmp_path: Path
) -> None:
    """Both verbs end with status 2 and the address, and a sweep has written nothing."""
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    scheduler = ("--scheduler", "tcp://127.0.0.1:1")
    (tmp_path / "s.toml").write_text('[[models]]\nmodel = "levit_digits"\n')
    for arguments in (("evaluate", folder, "-d", "digits"), ("sweep", tmp_path / "s.toml")):
        result = cli(*arguments, *scheduler)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no Dask scheduler answers at tcp://127.0.0.1:1" in result.stderr
    assert not (tmp_path / "s-sweep").exists()


def test_no_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scheduler alone does no work, which is said at once."""
    with clusters.cluster(tmp_path, 0) as found:
        monkeypatch.setattr(cluster, "CONNECT_S", 3)
        with pytest.raises(ClusterError, match="has no workers"), connected(found.address):
            pass


def test_the_last_worker_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any worker the run ends with what is missing, and not never."""
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.1)
    monkeypatch.setattr(cluster, "POLL_S", 0.1)
    with clusters.cluster(tmp_path, 1) as found, connected(found.address) as reached:
        found.workers[0].kill()
        with pytest.raises(ClusterError, match="has had no worker"):
            list(reached.run([Call("k", clusters.note, ("/dev/null", ""))]))


def test_other_versions(tmp_path: Path) -> None:
    """A worker that might give other answers is refused by name, with both versions."""
    other = tmp_path / "path" / "onnxruntime-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 9.9\n")
    with (
        clusters.cluster(tmp_path, 1, path=other.parent) as found,
        pytest.raises(MissingDependencyError, match=r"worker tcp://.* has onnxruntime 9\.9, here"),
        connected(found.address),
    ):
        pass


class Client:
    """A client whose one worker answers as it is told."""

    def __init__(self, version: object, found: object) -> None:
        self._answers = [version, found]

    def wait_for_workers(self, *_: object, **__: object) -> None:
        """There is one."""

    def run(self, *_: object, **__: object) -> dict[str, object]:
        return {"tcp://w:1": self._answers.pop(0)}


@pytest.mark.parametrize(
    ("version", "found", "message"),
    [
        (importlib.metadata.PackageNotFoundError("x"), None, "tcp://w:1 has no levit-export"),
        ("0.1.0", AttributeError("identity"), "tcp://w:1 has another levit-export: identity"),
        ("0.1.0", {}, "tcp://w:1 has Python absent, here"),
    ],
)
def test_workers_without_the_package(version: object, found: object, message: str) -> None:
    """A worker that has no levit-export, or one that does not know the question, is refused."""
    with pytest.raises(MissingDependencyError, match=message):
        cluster._refuse_strangers(Client(version, found), "tcp://s:1")  # type: ignore[arg-type]


def test_a_worker_that_came_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that nobody looked at before refuses a call when it has other versions."""
    worker = SimpleNamespace(address="tcp://w:1", local_directory=str(tmp_path))
    monkeypatch.setattr("distributed.get_worker", lambda: worker)
    ours = dict(identity())
    file = str(tmp_path / "notes")
    cluster._perform(ours, clusters.note, (file, "done"))
    with pytest.raises(MissingDependencyError, match=r"tcp://w:1 has numpy .* here it is 9\.9"):
        cluster._perform({**ours, "numpy": "9.9"}, clusters.note, (file, "not done"))
    assert Path(file).read_text() == "done\n"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Dask is absent the extra is named."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError) as caught, connected("tcp://127.0.0.1:1"):
        pass
    assert caught.value.remedy == "pip install 'levit-export[cluster]'"


def test_workers_and_scheduler(folder: Path) -> None:
    """Processes here and a cluster contradict each other."""
    with pytest.raises(UsageError, match="--workers 2"):
        evaluate(EvaluateRequest((folder,), "digits", workers=2, scheduler="tcp://x:1"))


def test_arrays_travel_as_pixels(running: Running, folder: Path, tmp_path: Path) -> None:
    """Images of an archive are sent as pixels; a damaged archive is refused here."""
    pixels, labels = samples.held_out_digits()
    file = tmp_path / "x.npz"
    np.savez(file, images=pixels[:50], labels=labels[:50])
    there, here = both(EvaluateRequest((folder,), file), running.address)
    assert there == here
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        evaluate(EvaluateRequest((folder,), file, scheduler=running.address))
