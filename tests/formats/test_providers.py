"""ONNX Runtime's execution providers: the one that was asked for executes everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import subjects
from onnx import TensorProto, helper

from levit_export.core import machine
from levit_export.core.errors import NotRunError, UnknownNameError, UsageError
from levit_export.core.packages import PRECISION_HINT as HINT
from levit_export.core.values import Artifact, ExportOptions, RunOptions
from levit_export.formats import target
from levit_export.formats.onnx import providers
from levit_export.formats.onnx.providers import CPU, OPENVINO, Provider, parse
from levit_export.storage.device_bundle.verifiers import verify as verifier

here = pytest.mark.skipif(
    providers.present().get(OPENVINO) != "",
    reason="onnxruntime-ep-openvino is not installed or does not start on this machine",
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small model as float32."""
    folder = tmp_path_factory.mktemp("providers") / "m"
    return subjects.export(subjects.tiny(), folder, "onnx", ExportOptions())


def answers(artifact: Artifact, provider: str) -> np.ndarray:
    """Logits for eight seeded images, by the provider called ``provider``."""
    images = np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)
    options = RunOptions(providers=(provider,))
    with target("onnx").open(artifact, options) as session:
        return np.concatenate([session.run({"input": image[None]})["logits"] for image in images])


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("cpu", "CPUExecutionProvider", {}),
        ("CPUExecutionProvider", "CPUExecutionProvider", {}),
        ("cpu, a=1 ,b=x,y", "CPUExecutionProvider", {"a": "1", "b": "x,y"}),
    ],
)
def test_names_and_options(text: str, name: str, options: dict[str, str]) -> None:
    """A provider is named as ONNX Runtime does or by the beginning; values may hold commas."""
    assert parse(text) == Provider(name, options)


def test_an_unknown_provider() -> None:
    """A provider that is not here is refused, with those that are."""
    with pytest.raises(UnknownNameError, match="cuda") as raised:
        parse("cuda")
    assert "CPU" in raised.value.remedy


@pytest.mark.parametrize("text", ["", "cpu,fast", ",a=1"])
def test_text_that_is_not_a_provider(text: str) -> None:
    """What is not a name with pairs is refused, with an example."""
    with pytest.raises(UsageError, match="--provider") as raised:
        parse(text)
    assert f"openvino,{HINT}=f32" in raised.value.remedy


def test_each_provider_is_a_row() -> None:
    """Two providers give two ways to execute, each with one of them."""
    options = RunOptions(providers=("cpu", "cpu,x=1"))
    ways = target("onnx").runs(options)
    assert [way.providers for way in ways] == [("cpu",), ("cpu,x=1",)]


def test_a_plug_in_is_itself_when_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists a registered plug-in and its AUTO: neither is built in and starts."""
    listed = [OPENVINO, f"{OPENVINO}.AUTO", providers.REMOTE, CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(providers, "_plugins", lambda: {OPENVINO: "it finds no device"})
    assert providers.present() == {OPENVINO: "it finds no device", CPU: ""}


@here
def test_openvino_in_float32(artifact: Artifact) -> None:
    """OpenVINO's provider gives the CPU's answers where it is told to compute in float32."""
    told = answers(artifact, f"openvino,{HINT}=f32")
    assert distance(told, answers(artifact, "cpu")) < 1e-5
    assert providers.arithmetic(parse(f"openvino,{HINT}=f32")) == "fp32"
    config = 'openvino,load_config={"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'
    np.testing.assert_array_equal(answers(artifact, config), told)


@here
def test_what_openvino_computes_in(artifact: Artifact) -> None:
    """Its arithmetic is that of its answers: bfloat16 is as far off as no float32 is."""
    plain, told = parse("openvino"), parse(f"openvino,{HINT}=bf16")
    assert providers.arithmetic(told) == "bf16"
    assert (providers.is_told(told), providers.is_told(plain)) == (True, False)
    is_coarse = distance(answers(artifact, "openvino"), answers(artifact, "cpu")) > 1e-4
    assert providers.arithmetic(plain) == ("bf16" if is_coarse else "fp32")


@here
def test_the_runtime_names_provider_and_options(artifact: Artifact) -> None:
    """A report can tell one provider's row from another's."""
    options = RunOptions(providers=(f"openvino,{HINT}=f32",))
    with target("onnx").open(artifact, options) as session:
        assert session.runtime.endswith(f"(OpenVINO {HINT}=f32)")


@here
def test_nodes_on_another_provider(tmp_path: Path) -> None:
    """Nodes that the provider does not take are counted and named, and nothing is executed."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["y"], "rest"),
            helper.make_node("Det", ["y"], ["z"], "det"),
        ],
        "determinant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "determinant.onnx"
    opsets = [helper.make_opsetid("", 18)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    with pytest.raises(NotRunError, match=r"leaves \d nodes? to other providers .*on CPU.*det"):
        providers.load(str(path), onnxruntime.SessionOptions(), parse("openvino"))


@here
@pytest.mark.parametrize("option", ["device=npu", "device_type=NPU"])
def test_a_device_that_is_not_here(artifact: Artifact, option: str) -> None:
    """A device of the provider that this machine lacks is not run, and the device is named.

    The plug-in itself would ignore ``device_type`` and take the CPU.
    """
    with pytest.raises(NotRunError, match="no device 'NPU'") as raised:
        answers(artifact, f"openvino,{option}")
    assert raised.value.exit_status == 3


@pytest.mark.parametrize(
    ("able", "told", "runs"),
    [
        ("BF16 FP32 FP16 INT8", "f16", True),
        ("BF16 FP32 INT8", "f16", False),
        ("FP32 INT8", "bf16", False),
        ("FP32 INT8", "f32", True),
        ("", "bf16", True),
    ],
)
def test_a_type_that_a_device_does_not_compute_in(
    monkeypatch: pytest.MonkeyPatch, able: str, told: str, *, runs: bool
) -> None:
    """A device that would silently take another type than it is told to is not run."""
    metadata = {"ov_device": "CPU", "OPTIMIZATION_CAPABILITIES": able}
    device = SimpleNamespace(ep_name=OPENVINO, ep_metadata=metadata)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [device], raising=False)
    monkeypatch.setattr(providers, "_plugins", lambda: {OPENVINO: ""})
    monkeypatch.setattr(verifier, "plugin_providers", lambda: (OPENVINO,))
    unit = f"openvino,{HINT}={told}"
    message = "has no file" if runs else "its device does not compute in"

    class Settings:
        """Options that a session is never made with."""

        def add_session_config_entry(self, *_: str) -> None:
            """Take what is not looked at."""

        def add_provider_for_devices(self, *_: object) -> None:
            """Stop where a session would be made."""
            raise RuntimeError("it has no file")

    monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: None)
    with pytest.raises(NotRunError, match=message):
        providers.load("m.onnx", Settings(), parse(unit))  # type: ignore[arg-type]
    with pytest.raises(verifier.NotStartedError, match=message):
        verifier.onnx(Path("m.onnx"), {}, unit)


@here
def test_a_device_by_either_name(artifact: Artifact) -> None:
    """A device that is here is taken under both names."""
    told = f"{HINT}=f32"
    found = answers(artifact, f"openvino,device_type=CPU,{told}")
    np.testing.assert_array_equal(found, answers(artifact, f"openvino,device=cpu,{told}"))


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize("given", ["{}=f64", 'load_config={{"CPU": {{"{}": "dynamic"}}}}'])
def test_a_type_that_is_not_known(given: str) -> None:
    """What OpenVINO computes in has to be a type that a tolerance can be derived for."""
    with pytest.raises(UsageError, match=f"{HINT}=(f64|dynamic) of --provider") as raised:
        parse(f"openvino,{given.format(HINT)}")
    assert "f32, bf16, f16" in raised.value.remedy


def test_a_provider_that_does_not_start(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in whose library does not load is not run, with the loader's reason."""
    broken = {"WebGpuExecutionProvider": "libvulkan.so.1 is missing"}
    monkeypatch.setattr(providers, "_plugins", lambda: broken)
    with pytest.raises(NotRunError, match=r"WebGpu did not start: libvulkan.so.1 is missing"):
        answers(replace(artifact), "webgpu")


@pytest.mark.skipif(OPENVINO not in providers.present(), reason="the plug-in is not installed")
@pytest.mark.parametrize("maker", ["AuthenticAMD", "GenuineIntel", ""])
def test_openvino_without_a_device(monkeypatch: pytest.MonkeyPatch, maker: str) -> None:
    """That OpenVINO's provider takes Intel's hardware alone is said only on other processors."""
    monkeypatch.setattr(machine, "vendor", lambda: maker)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    found = providers._plugins.__wrapped__()
    known = "it takes hardware of Intel alone, and the processor is AuthenticAMD"
    absent = "it finds no device on this machine"
    assert found[OPENVINO] == (f"{absent}: {known}" if maker == "AuthenticAMD" else absent)


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that OpenVINO is built into, and that is too old to list devices."""
    monkeypatch.setattr(providers, "_plugins", dict)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [OPENVINO, CPU])
    monkeypatch.delattr(onnxruntime, "get_ep_devices", raising=False)


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "fp32"),
        (",device_type=CPU", "fp32"),
        (",device_type=AUTO:CPU", "bf16"),
        (f",device_type=AUTO:CPU,{HINT}=f32", "fp32"),
        (",device=gpu", "fp16"),
        (",device_type=HETERO:GPU.0,CPU", "fp16"),
        (f",{HINT}=bf16", "bf16"),
    ],
)
def test_what_openvino_computes_in_where_it_is_built_in(options: str, expected: str) -> None:
    """Where it lists no devices it is the coarsest type that it may take, unless it is told."""
    assert providers.arithmetic(parse(f"openvino{options}")) == expected


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {"device_type": "CPU"}),
        (",device=gpu", {"device_type": "GPU"}),
        (
            ",device_type=AUTO:GPU.0,CPU,cache_dir=x",
            {"device_type": "AUTO:GPU.0,CPU", "cache_dir": "x"},
        ),
        (f",{HINT}=f32", {"device_type": "CPU", "load_config": f'{{"CPU": {{"{HINT}": "f32"}}}}'}),
        (
            f",device_type=AUTO:CPU,{HINT}=f32",
            {"device_type": "AUTO:CPU", "load_config": f'{{"CPU": {{"{HINT}": "f32"}}}}'},
        ),
    ],
)
def test_options_of_openvino_where_it_is_built_in(
    monkeypatch: pytest.MonkeyPatch, options: str, expected: dict[str, str]
) -> None:
    """Its device is an option of ONNX Runtime's own there, and its properties are the device's."""
    asked = []

    def refuse(*_: object, **given: object) -> None:
        asked.append(given["providers"])
        raise RuntimeError("no file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(RuntimeError, match="no file"):
        providers.load("nothing.onnx", onnxruntime.SessionOptions(), parse(f"openvino{options}"))
    assert asked[0] == [(OPENVINO, expected)]


@pytest.mark.usefixtures("built_in")
def test_a_provider_that_onnx_runtime_drops(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session without the provider that it was asked for did not start it, whatever it runs."""
    make = onnxruntime.InferenceSession

    def drop(source: object, _: object, **given: object) -> onnxruntime.InferenceSession:
        assert given["providers"] == [(OPENVINO, {"device_type": "NPU"})]
        return make(source, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", drop)
    with pytest.raises(NotRunError, match="device_type=NPU did not start: ONNX Runtime could not"):
        answers(artifact, "openvino,device_type=NPU")


@pytest.mark.skipif(OPENVINO not in providers.present(), reason="the plug-in is not installed")
def test_a_plug_in_where_onnx_runtime_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that is too old for plug-ins has the provider as one that will not start."""
    for name in ("register_execution_provider_library", "get_ep_devices"):
        monkeypatch.delattr(onnxruntime, name, raising=False)
    found = providers._plugins.__wrapped__()
    monkeypatch.setattr(providers, "_plugins", lambda: found)
    assert "register_execution_provider_library" in found[OPENVINO]
    assert providers.arithmetic(Provider(OPENVINO)) == "fp32"


@here
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A damaged file is the file's fault, not the provider's."""
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(Exception, match=r"damaged\.onnx") as raised:
        providers.load(str(path), onnxruntime.SessionOptions(), parse("openvino"))
    assert not isinstance(raised.value, NotRunError)
