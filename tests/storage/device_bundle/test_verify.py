"""``verify.py`` of a bundle, run where nothing but NumPy and a runtime can be imported."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tiny_exports import COREML, ONNX, RECIPE, RESIZES, fed, make_export, named

from levit_export.checks import execution
from levit_export.core.values import Preprocessing
from levit_export.formats.onnx import providers
from levit_export.inputs import preprocessing
from levit_export.storage import device_bundle
from levit_export.storage.device_bundle.verifiers import verify as verifier

RUN = (
    "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv = sys.argv[2:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
PACKAGES = {
    "onnx": ("numpy", "onnxruntime", "flatbuffers", "packaging", "google"),
    "openvino": ("numpy", "openvino", "openvino_telemetry"),
    "bare": ("numpy",),
    "pillow": ("numpy", "PIL"),
}
"""What ``pip install`` of the runtime brings, and nothing else."""

Verify = Callable[..., "tuple[int, str]"]


@pytest.fixture(scope="session")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Verify:
    """Run a bundle's ``verify.py``: ``verify(folder, "onnx", "--format", "onnx")``."""
    root = tmp_path_factory.mktemp("environments")

    def run(folder: Path, environment: str, *arguments: object) -> tuple[int, str]:
        packages = root / environment
        if not packages.exists():
            packages.mkdir()
            for name in PACKAGES[environment]:
                link(packages, name)
        command = [sys.executable, "-I", "-S", "-c", RUN, packages, folder / "verify.py"]
        done = subprocess.run(
            [*map(str, command), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


def link(folder: Path, name: str) -> None:
    """Make an installed package, with the libraries that its wheel brought, importable there."""
    spec = find_spec(name)
    if spec is None:
        return  # openvino needs its telemetry package in some versions only
    (place,) = list(spec.submodule_search_locations or [])[:1]
    site = Path(place).parent
    for part in (name, f"{name}.libs", "pillow.libs" if name == "PIL" else ""):
        if part and (site / part).exists():
            (folder / part).symlink_to(site / part)


def vouch(folder: Path) -> None:
    """Let ``bundle.json`` say that every file is as it should be, as a forger would."""
    content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    for name in content["files"]:
        raw = (folder / name).read_bytes()
        content["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")


def change_inputs(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Alter every golden input that has pixels behind it."""
    path = folder / "golden" / "input.npy"
    inputs = np.load(path)
    inputs[4:] = [change(row) for row in inputs[4:]]
    np.save(path, inputs)
    vouch(folder)


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """Change parsed JSON in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_whole_bundle(verify: Verify, unpacked: Path, runtime: str) -> None:
    """A whole bundle passes with NumPy and the runtime alone: status 0, a line for each check."""
    status, said = verify(unpacked, runtime, "--format", runtime)
    assert status == 0, said
    assert said.splitlines()[-1] == "pass"
    assert f"outputs of {runtime}-fp32" in said
    assert "12 samples" in said
    assert "Pillow is not installed" in said


def test_every_format(verify: Verify, unpacked: Path) -> None:
    """Formats whose runtime is absent are not run, which is not a pass: status 3."""
    status, said = verify(unpacked, "onnx")
    assert status == 3
    assert "pass    outputs of onnx-fp32" in said
    assert "not run outputs of openvino-fp32" in said
    assert "not run outputs of coreml-fp16" in said
    assert said.splitlines()[-2] == "not run"


def test_no_runtime(verify: Verify, unpacked: Path) -> None:
    """With NumPy alone the pixels are checked and nothing is run: status 3."""
    status, said = verify(unpacked, "bare", "--format", "onnx")
    assert status == 3
    assert "pass    pixels" in said
    assert "onnxruntime" in said


def test_resize_with_pillow(verify: Verify, unpacked: Path) -> None:
    """Where Pillow is installed the resize is repeated as well, and a wrong one is found."""
    _, said = verify(unpacked, "pillow", "--format", "onnx")
    assert "pass    pixels" in said
    assert "Pillow" not in said
    path = unpacked / "golden" / "pixels" / "real-0.npy"
    np.save(path, np.load(path)[::-1])
    vouch(unpacked)
    status, said = verify(unpacked, "pillow", "--format", "onnx")
    assert status == 1
    assert "fail    resize: real-0: differs by up to" in said


def test_labels_that_moved(verify: Verify, unpacked: Path) -> None:
    """A name of two lines in ``labels.txt`` would shift those behind it: the lines are counted."""
    path = unpacked / "labels.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(["two", "lines", *lines[1:]]) + "\n", encoding="utf-8")
    vouch(unpacked)
    status, said = verify(unpacked, "onnx", "--format", "onnx")
    assert status == 1
    count = len(lines)
    assert f"fail    labels: labels.txt has {count + 1} lines, not the {count} names" in said


def test_flipped_byte_of_a_weight(verify: Verify, unpacked: Path) -> None:
    """One flipped byte of a weight is found by the file's hash, and the file is not loaded."""
    content = bytearray((unpacked / ONNX).read_bytes())
    content[len(content) // 2] ^= 0x40
    (unpacked / ONNX).write_bytes(content)
    status, said = verify(unpacked, "onnx", "--format", "onnx")
    assert status == 1
    assert f"fail    files: {ONNX} was altered" in said
    assert "outputs" not in said


def test_flipped_byte_of_a_weight_with_its_hash(verify: Verify, unpacked: Path) -> None:
    """One flipped exponent bit whose file is vouched for is found by the outputs."""
    model = onnx.load(unpacked / ONNX)
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.view(np.uint8).reshape(-1)[3] ^= 0x01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, unpacked / ONNX)
    vouch(unpacked)
    status, said = verify(unpacked, "onnx", "--format", "onnx")
    assert status == 1
    assert "fail    outputs of onnx-fp32" in said
    assert "logits: error" in said
    assert "exceeds the tolerance" in said


MEAN, STD = (np.array(v).reshape(3, 1, 1) for v in (RECIPE.mean, RECIPE.std))
MISTAKES: list[tuple[Callable[[np.ndarray], np.ndarray], str]] = [
    (lambda row: ((row * STD + MEAN)[::-1] - MEAN) / STD, "channels look swapped: BGR"),
    (lambda row: row[::-1], "channels look swapped: BGR; mean and std are in BGR order"),
    (lambda row: (row - MEAN) / STD, "normalised twice"),
    (lambda row: (row / 255 - MEAN) / STD, "normalised twice, divided by 255 both times"),
    (lambda row: (row * STD + MEAN) * 255, "not normalised: values are 0 to 255"),
    (lambda row: row * STD + MEAN, "divided by 255, but mean and std are not applied"),
    (lambda row: (row * STD + MEAN) * 2 - 1, "scaled to -1..1"),
    (lambda row: row[:, ::-1], "upside down"),
    (lambda row: row[:, :, ::-1], "mirrored left to right"),
    (lambda row: row.transpose(0, 2, 1), "rows and columns are exchanged"),
    (lambda row: row.transpose(1, 2, 0).reshape(row.shape), "laid out as NHWC"),
    (lambda row: row.astype(np.float16), "computed in float16"),
    (lambda row: row * np.nan, "holds NaN"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES[:3:2], ids=["swapped", "twice"])
def test_golden_inputs_with_a_mistake(
    verify: Verify, unpacked: Path, mistake: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    """Swapped channels and a second normalisation are called by name, beside the outputs."""
    change_inputs(unpacked, mistake)
    status, said = verify(unpacked, "onnx", "--format", "onnx")
    assert status == 1
    assert f"fail    normalisation: gradient: {message}" in said
    assert "fail    outputs of onnx-fp32" in said
    assert "pass    pixels" not in said


@pytest.fixture(scope="session")
def diagnose() -> Any:
    """The functions of ``verify.py``, for what needs no process of its own."""
    from levit_export.storage.device_bundle.verifiers import verify as module

    return module


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[each[1] for each in MISTAKES])
def test_what_an_app_fed(
    diagnose: Any,
    unpacked: Path,
    mistake: Callable[[np.ndarray], np.ndarray],
    message: str,
) -> None:
    """Each mistake in the tensor that an app fed is called by its name."""
    cropped = np.load(unpacked / "golden" / "cropped" / "gradient.npy")
    np.save(unpacked / "fed.npy", mistake(fed(cropped)))
    line = check_input(diagnose, unpacked, "gradient")
    assert line.verdict == "fail"
    assert line.detail.startswith(f"gradient: {message}")


def check_input(module: Any, folder: Path, name: str) -> Any:
    """``--input fed.npy --sample name``, in this process."""
    described = module.read_description(folder)
    manifest = module.read_json(folder / "manifest.json")
    return module.check_input(folder, described, manifest, folder / "fed.npy", name)


@pytest.mark.parametrize("name", ["gradient", "noise", "real-0", "resize-landscape"])
def test_what_an_app_fed_rightly(diagnose: Any, unpacked: Path, name: str) -> None:
    """The right tensor passes, with or without a batch, computed in float32 in another order."""
    pixels = np.load(unpacked / "golden" / "cropped" / f"{name}.npy").astype(np.float32)
    scale = (1 / (255 * STD)).astype(np.float32)
    shift = (MEAN / STD).astype(np.float32)
    np.save(unpacked / "fed.npy", (pixels.transpose(2, 0, 1) * scale - shift)[None])
    assert check_input(diagnose, unpacked, name).verdict == "pass"


def test_grey_image_cannot_show_swapped_channels(diagnose: Any, unpacked: Path) -> None:
    """A pass on a grey image says what it does not show."""
    np.save(unpacked / "fed.npy", fed(np.full((16, 16, 3), 255, np.uint8)))
    line = check_input(diagnose, unpacked, "white")
    assert (line.verdict, "cannot show swapped channels" in line.detail) == ("pass", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "bilinear"}, "resized with bilinear in place of bicubic"),
        ({"interpolation": "nearest"}, "resized with nearest"),
        ({"resize_mode": "exact", "resize": (16, 16)}, "the aspect ratio was not kept"),
        ({"resize": (16, 16)}, "resized straight to the crop's size"),
        ({"resize": (18, 18)}, "other pixels: up to"),
    ],
)
def test_another_resize(
    diagnose: Any, unpacked: Path, change: dict[str, Any], message: str
) -> None:
    """A wrong resize is told from a wrong normalisation, and named where it is a usual one."""
    pixels = np.load(unpacked / "golden" / "pixels" / "resize-landscape.npy")
    recipe = {**vars(RECIPE)}
    np.save(unpacked / "fed.npy", fed(diagnose.resize(recipe, pixels, **change)))
    line = check_input(diagnose, unpacked, "resize-landscape")
    assert line.verdict == "fail"
    assert line.detail.startswith(f"resize-landscape: {message}")


@pytest.mark.parametrize("recipe", RESIZES, ids=named)
def test_resize_is_the_toolchains(diagnose: Any, recipe: Preprocessing) -> None:
    """``verify.py`` spells the preprocessing out again; both give the same pixels and tensors.

    79 * (21 / 79) is less than 21 in float64.
    """
    spec = {"dtype": "float32", "shape": [1, 3, *recipe.crop]}
    generator = np.random.default_rng(0)
    for shape in ((37, 22, 3), (9, 40), (16, 16, 3), (90, 79, 3)):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        cropped = diagnose.resize(vars(recipe), pixels)
        np.testing.assert_array_equal(cropped, preprocessing.resize_and_crop(recipe, pixels))
        np.testing.assert_array_equal(
            diagnose.feed(vars(recipe), spec, cropped), preprocessing.apply(recipe, pixels)
        )


def test_layout_with_its_shape(diagnose: Any, unpacked: Path) -> None:
    """A tensor of shape (H, W, 3) is called NHWC, together with what else is wrong."""
    cropped = np.load(unpacked / "golden" / "cropped" / "gradient.npy")
    np.save(unpacked / "fed.npy", cropped.astype(np.float32))
    line = check_input(diagnose, unpacked, "gradient")
    assert "NHWC" in line.detail
    assert "not normalised" in line.detail
    np.save(unpacked / "fed.npy", np.zeros((3, 4, 5), np.float32))
    assert "shape (3, 4, 5)" in check_input(diagnose, unpacked, "gradient").detail


def test_fed_on_the_command_line(verify: Verify, unpacked: Path) -> None:
    """``--input`` takes raw numbers too: 0 where they are right, 1 where not, 2 for a bad name."""
    file = unpacked.parent / "fed.bin"
    right = fed(np.load(unpacked / "golden" / "cropped" / "noise.npy"))
    right.astype("<f4").tofile(file)
    assert verify(unpacked, "bare", "--input", file, "--sample", "noise")[0] == 0
    status, said = verify(unpacked, "bare", "--input", file, "--sample", "gradient")
    assert (status, "fail    input: gradient: " in said) == (1, True)
    status, said = verify(unpacked, "bare", "--input", file, "--sample", "cat")
    assert (status, "known: black" in said) == (2, True)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_model_that_normalises_by_itself(diagnose: Any, unpacked: Path, dtype: str) -> None:
    """A model with a uint8 input takes the pixels as they are; normalised ones are called that."""
    edit_json(
        unpacked / "manifest.json", lambda m: m["signature"]["inputs"][0].update(dtype="uint8")
    )
    cropped = np.load(unpacked / "golden" / "cropped" / "gradient.npy")
    planes = np.ascontiguousarray(cropped.transpose(2, 0, 1))
    np.save(unpacked / "fed.npy", planes if dtype == "uint8" else fed(cropped))
    line = check_input(diagnose, unpacked, "gradient")
    if dtype == "uint8":
        assert line.verdict == "pass"
    else:
        assert "normalised, which the model does by itself" in line.detail


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The unpacked bundle of a model that takes uint8 pixels."""
    export = make_export(tmp_path / "raw", raw=True)
    shutil.unpack_archive(device_bundle.write(export, tmp_path / "raw.zip"), tmp_path / "u", "zip")
    return tmp_path / "u"


def test_bundle_of_a_model_that_normalises_by_itself(verify: Verify, raw: Path) -> None:
    """A model with a uint8 input is fed the cropped pixels; its card says not to normalise."""
    status, said = verify(raw, "onnx", "--format", "onnx")
    assert status == 0, said
    assert "8 samples" in said
    assert "do not divide" in (raw / "README.md").read_text(encoding="utf-8")
    path = raw / "golden" / "input.npy"
    np.save(path, np.load(path)[:, ::-1])
    vouch(raw)
    status, said = verify(raw, "onnx", "--format", "onnx")
    assert (status, "gradient: channels look swapped: BGR" in said) == (1, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "labels.txt").unlink(), "labels.txt is missing"),
        (lambda f: (f / "new.txt").write_text("x"), "new.txt does not belong"),
        (lambda f: (f / "labels.txt").write_text("x"), "labels.txt was altered"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "link does not belong"),
    ],
)
def test_damaged_files(
    diagnose: Any, unpacked: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Missing, strange, altered and linked files fail, and nothing else is checked."""
    damage(unpacked)
    lines = list(diagnose.verify(unpacked, ["onnx"], {}))
    assert [(line.verdict, line.check) for line in lines] == [("fail", "files")]
    assert message in lines[0].detail
    assert diagnose.conclude(lines) == "fail"


def test_link_in_place_of_a_file(diagnose: Any, unpacked: Path) -> None:
    """A link is no file of a bundle, even where it leads to the right bytes."""
    (unpacked / "labels.txt").rename(unpacked.parent / "labels.txt")
    (unpacked / "labels.txt").symlink_to(unpacked.parent / "labels.txt")
    (line,) = diagnose.verify(unpacked, [], {})
    assert line == ("fail", "files", "labels.txt is not a regular file")


def test_nothing_checked_is_no_pass(diagnose: Any) -> None:
    """No line at all is not run; one failure among passes is a failure."""
    assert diagnose.conclude([]) == "not run"
    assert diagnose.conclude([diagnose.Line("note", "resize")]) == "not run"
    kinds = [diagnose.Line(verdict, "x") for verdict in ("pass", "not run", "fail")]
    assert diagnose.conclude(kinds) == "fail"
    assert diagnose.conclude(kinds[:2]) == "not run"


def test_unknown_schema(verify: Verify, unpacked: Path) -> None:
    """A bundle of another format is refused: status 2."""
    edit_json(unpacked / "bundle.json", lambda content: content.update(schema=2))
    status, said = verify(unpacked, "bare")
    assert (status, "bundle format 1" in said) == (2, True)


def test_outputs_that_are_wrong(diagnose: Any, unpacked: Path) -> None:
    """A missing output, another shape or type, NaN, and an error above the bound all fail."""
    manifest = diagnose.read_json(unpacked / "manifest.json")
    reference = np.load(unpacked / "golden" / "logits.npy").astype(np.float64)
    allowed = np.full(len(reference), 1e-3)

    def problems(candidate: np.ndarray | None) -> list[str]:
        return list(diagnose.compare(reference, candidate, allowed, manifest))

    right = reference.astype(np.float32)
    broken = right.copy()
    broken[3, 1] = np.nan
    shifted = right.copy()
    shifted[5] += 2e-3
    assert problems(right) == []
    assert problems(None) == ["the output is missing"]
    assert problems(right[:, :2]) == [f"shape {right[:, :2].shape}, expected {right.shape}"]
    assert problems(right.astype(np.int64)) == ["type int64, expected floating point"]
    assert problems(broken) == ["holds NaN or infinity"]
    (said,) = problems(shifted)
    assert "on white exceeds the tolerance 1.00e-03" in said
    allowed[:] = np.inf
    assert "NaN or infinity" in problems(right)[0]


def test_classifier(diagnose: Any, unpacked: Path) -> None:
    """A classifier's probabilities are held against the softmax of the golden logits."""
    manifest = diagnose.read_json(unpacked / "manifest.json")
    manifest["signature"]["outputs"] = manifest["signature"]["outputs"][:1]
    logits = np.load(unpacked / "golden" / "logits.npy").astype(np.float64)
    powers = np.exp(logits)
    given = {"probabilities": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)}
    reference, allowed = diagnose.expected(unpacked, manifest, "fp16", given)
    distance = diagnose.distances(reference["probabilities"], given["probabilities"])
    assert (distance <= allowed["probabilities"]).all()
    assert (allowed["probabilities"] < 0.01).all()
    # A quantised classifier rounds its probabilities to float16 at the coarsest.
    manifest["golden"]["tolerances"]["int8"] = manifest["golden"]["tolerances"]["fp16"]
    _, of_int8 = diagnose.expected(unpacked, manifest, "int8", given)
    np.testing.assert_array_equal(of_int8["probabilities"], allowed["probabilities"])


HINT = "INFERENCE_PRECISION_HINT"
OPENVINO_PROVIDER = "OpenVINOExecutionProvider"


@pytest.mark.parametrize(
    "options",
    [
        "",
        ",device=gpu",
        ",device_type=AUTO:GPU.0,CPU,cache_dir=x",
        f",{HINT}=f32",
        f",device_type=AUTO:CPU,{HINT}=f32",
        f',load_config={{"CPU": {{"NUM_STREAMS": 1, "{HINT}": "bf16"}}}},{HINT}=f32',
        f',load_config={{"CPU": {{"{HINT}": "f32"}}}}',
    ],
)
def test_openvino_that_is_built_in_is_asked_as_by_check(
    diagnose: Any, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    """ONNX Runtime with OpenVINO inside is given the device and properties that check gives it."""
    asked = []

    def refuse(*_: object, **given: object) -> None:
        asked.append(given["providers"])
        raise RuntimeError("no file")

    monkeypatch.setattr(providers, "_plugins", dict)
    monkeypatch.setattr(diagnose, "plugin_providers", tuple)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [OPENVINO_PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    unit = f"openvino{options}"
    with pytest.raises(RuntimeError, match="no file"):
        providers.load("m.onnx", onnxruntime.SessionOptions(), providers.parse(unit))
    expected = asked[0]
    with pytest.raises(diagnose.NotStartedError, match="no file"):
        diagnose.onnx(Path("m.onnx"), {}, unit)
    assert asked[-1] == expected
    assert "device_type" in expected[0][1]


def test_a_plug_in_is_known_by_its_name_alone(
    diagnose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime lists of a plug-in beside it cannot be asked for."""
    listed = [OPENVINO_PROVIDER, f"{OPENVINO_PROVIDER}.AUTO", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(diagnose, "plugin_providers", lambda: (OPENVINO_PROVIDER,))
    known = f"known: CPUExecutionProvider, {OPENVINO_PROVIDER}$"
    with pytest.raises(diagnose.NotStartedError, match=known):
        diagnose.onnx(Path("m.onnx"), {}, f"{OPENVINO_PROVIDER}.AUTO")


@pytest.mark.parametrize(
    ("unit", "precision", "judged"),
    [
        ("openvino", "fp32", "fp32"),
        (f"openvino,{HINT}=f32", "fp32", "fp32"),
        (f"openvino,{HINT}=bf16", "fp32", "bf16"),
        (f"OpenVINOExecutionProvider,device=GPU,{HINT}=F16", "fp32", "fp16"),
        (f"openvino,{HINT}=f16", "int8", "int8"),
        (f'openvino,load_config={{"CPU": {{"{HINT}": "bf16"}}}}', "fp16", "bf16"),
        (f"cuda,{HINT}=bf16", "fp32", "fp32"),
    ],
)
def test_what_a_provider_is_told_to_compute_in(
    diagnose: Any, unit: str, precision: str, judged: str
) -> None:
    """Answers are judged by the coarser of the file and what OpenVINO was told, as by check."""
    assert diagnose.judged_as({"format": "onnx", "precision": precision}, unit) == judged
    told = providers.told_elsewhere(unit) or "fp32"
    assert execution.coarser_of(precision, told) == judged


def a_little_off(diagnose: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime answer what bfloat16 might."""
    manifest = diagnose.read_json(folder / "manifest.json")
    names = [spec["name"] for spec in manifest["signature"]["outputs"]]
    rows = {name: list(np.load(folder / f"golden/{name}.npy")) for name in names}

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        at = [np.array_equal(batch[0], row) for row in inputs].index(True)
        return {name: rows[name][at][None] * np.float32(1 + 2.0**-8) for name in names}

    inputs = np.load(folder / "golden/input.npy")
    monkeypatch.setitem(diagnose.RUNTIMES, "onnx", lambda *_: ("onnxruntime", run))


def test_openvino_that_was_not_told(
    diagnose: Any, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where OpenVINO's provider fails and was not told to compute in float32, a note says it."""
    a_little_off(diagnose, unpacked, monkeypatch)
    manifest = diagnose.read_json(unpacked / "manifest.json")
    artifact = {"format": "onnx", "precision": "fp32", "path": ONNX}

    def last(unit: str) -> Any:
        return list(diagnose.check_artifact(unpacked, manifest, artifact, unit))[-1]

    told = last("openvino,device=CPU")
    assert (told.verdict, f"openvino,device=CPU,{HINT}=f32" in told.detail) == ("note", True)
    assert {last(unit).verdict for unit in ("cpu", f"openvino,{HINT}=f32")} == {"fail"}


def test_a_type_that_the_bundle_has_no_tolerance_for(
    diagnose: Any, unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers in bfloat16 are judged by its tolerance, and not run where the bundle has none."""
    a_little_off(diagnose, unpacked, monkeypatch)
    manifest = diagnose.read_json(unpacked / "manifest.json")
    artifact = {"format": "onnx", "precision": "fp32", "path": ONNX}
    tolerances = manifest["golden"]["tolerances"]
    tolerances.pop("bf16", None)

    def check() -> Any:
        (line,) = diagnose.check_artifact(unpacked, manifest, artifact, f"openvino,{HINT}=bf16")
        return line

    line = check()
    assert (line.verdict, line.detail.endswith("no tolerance for bf16")) == ("not run", True)
    rtol = {"atol": 0.0, "rtol": [2.0**-7] * len(manifest["golden"]["samples"])}
    tolerances["bf16"] = dict.fromkeys(tolerances["fp32"], rtol)
    assert check().verdict == "pass"


@pytest.mark.parametrize(
    ("provider", "said"),
    [
        ("openvino,fast", "then KEY=VALUE pairs"),
        ("openvino,load_config=[1]", "a JSON object of objects"),
        (f"openvino,{HINT}=f64", "is one of f32, bf16, f16"),
    ],
)
def test_a_provider_that_cannot_be_read(
    verify: Verify, unpacked: Path, provider: str, said: str
) -> None:
    """What is not a provider with its options is bad usage: status 2."""
    status, printed = verify(unpacked, "bare", "--provider", provider)
    assert (status, said in printed) == (2, True), printed


def test_batches(diagnose: Any) -> None:
    """A model of fixed batch is fed full batches, of which only the real rows count."""
    manifest = {"signature": {"inputs": [{"shape": [4, 3]}]}}
    sizes = []

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(batch))
        return {"sums": batch.sum(axis=1, keepdims=True)}

    inputs = np.arange(18.0).reshape(6, 3)
    outputs = diagnose.collect(run, inputs, manifest)
    assert sizes == [4, 4]
    np.testing.assert_array_equal(outputs["sums"], inputs.sum(axis=1, keepdims=True))
    with pytest.raises(ValueError, match="batch of 4"):
        diagnose.collect(lambda batch: {"one": batch[:1]}, inputs, manifest)


def test_file_that_is_no_model(verify: Verify, unpacked: Path) -> None:
    """An artifact that the runtime cannot load fails; it is not merely not run."""
    (unpacked / ONNX).write_bytes(b"nothing")
    vouch(unpacked)
    status, said = verify(unpacked, "onnx", "--format", "onnx")
    assert status == 1
    assert "cannot be loaded" in said


def test_format_that_is_not_inside(verify: Verify, unpacked: Path) -> None:
    """A format that the bundle does not hold is bad usage: status 2, with those it holds."""
    status, said = verify(unpacked, "bare", "--format", "tflite")
    assert (status, "known: " in said) == (2, True)


def test_core_ml_elsewhere(diagnose: Any, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off macOS Core ML is not run, and the line says why."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    manifest = diagnose.read_json(unpacked / "manifest.json")
    artifact = {"format": "coreml", "precision": "fp16", "path": COREML}
    (line,) = diagnose.check_artifact(unpacked, manifest, artifact, "cpu_only")
    assert (line.verdict, line.detail) == ("not run", "Core ML runs on macOS only")


def test_the_reason_of_a_runtime_is_not_cut() -> None:
    """Behind a long path the end of what a runtime says is shown, where the reason stands."""
    said = f"[ONNXRuntimeError] : 1 : FAIL : Load model from {'/deep' * 200}/m.onnx failed: "
    cause = "Unsupported model IR version: 12, max supported IR version: 11"
    assert verifier.reason(RuntimeError(f"first\n{said}{cause}\n")).endswith(cause)
    assert verifier.reason(RuntimeError("")) == "RuntimeError"
