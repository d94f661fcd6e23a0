"""ONNX Runtime's execution providers: its own, and those that other packages add as plug-ins.

ONNX Runtime goes on with its CPU kernels where a provider does not start or does not take an
operator, and says nothing (onnxruntime#23647). Here that is an error: what was asked of one
provider is never answered by another.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from levit_export.core import machine
from levit_export.core.errors import NotRunError, UnknownNameError, UsageError
from levit_export.core.packages import COMPUTED_IN, PRECISION_HINT
from levit_export.core.quiet import first_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

CPU = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
SUFFIX = "ExecutionProvider"
REMOTE = "AzureExecutionProvider"
"""It sends the inputs to a server, and is listed by every build of ONNX Runtime."""

PLUGINS = "onnxruntime_ep_"
"""Prefix of the module names of packages that add a provider."""

ABSENT = "it finds no device on this machine"
"""Of a plug-in that starts and offers nothing."""

DROPPED = "ONNX Runtime could not make it, as where a device of its options is not on this machine"
"""Of a provider that is not among those of the session that was asked for it."""

INTEL = "GenuineIntel"

SHOWN = 3
"""How many operators are named that another provider took."""


@dataclass(frozen=True)
class Provider:
    """What ``--provider NAME[,key=value…]`` asks for; ``name`` is the one of ONNX Runtime."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``CPU``, ``OpenVINO INFERENCE_PRECISION_HINT=f32``."""
        pairs = (f" {key}={value}" for key, value in self.options.items())
        return self.name.removesuffix(SUFFIX) + "".join(pairs)


def parse(text: str) -> Provider:
    """The provider that ``text`` names, by ONNX Runtime's name for it or by its beginning.

    Raises ``UnknownNameError`` where neither this ONNX Runtime nor an installed package has it.
    """
    name, options = _split(text)
    if "," in name or not name:
        raise UsageError(
            f"--provider {text} is not a name with key=value pairs behind it",
            remedy="Give one provider with its options, such as "
            f"openvino,{PRECISION_HINT}=f32; repeat --provider for several.",
        )
    wanted = name.lower()
    if wanted in ("cpu", CPU.lower()):  # without asking ONNX Runtime, which may not be here
        return Provider(CPU, options)
    names = {known.lower(): known for known in present()}
    for known in (wanted, wanted + SUFFIX.lower()):
        if known in names:
            provider = Provider(names[known], options)
            _told(provider)  # refuses a type that is not known
            return provider
    raise UnknownNameError(
        "execution provider", name, [known.removesuffix(SUFFIX) for known in names.values()]
    )


def _split(text: str) -> tuple[str, dict[str, str]]:
    """The name and the options of NAME[,key=value…]; a value may hold commas."""
    name, *pairs = re.split(r",(?=\s*[\w.]+\s*=)", text)
    halves = (pair.partition("=") for pair in pairs)
    return name.strip(), {key.strip(): value.strip() for key, _, value in halves}


def told_elsewhere(text: str) -> str:
    """What a provider of another machine was told to compute in, or empty.

    ``text`` is what ``parse`` takes, and is taken as untold where that would refuse it.
    """
    name, options = _split(text)
    if name.lower() not in (OPENVINO.lower(), OPENVINO.removesuffix(SUFFIX).lower()):
        return ""
    with suppress(UsageError):
        return _told(Provider(OPENVINO, options))
    return ""


def present() -> dict[str, str]:
    """The providers that this machine has, and why one does not start, or empty.

    Those of plug-ins are registered with ONNX Runtime, which is how it comes to know them.
    """
    import onnxruntime

    plugins = _plugins()
    # Once it is registered a plug-in is listed as well, and OpenVINO's with devices that stand for
    # several, as OpenVINOExecutionProvider.AUTO.
    beside = (REMOTE, *plugins)
    built_in = [
        name
        for name in onnxruntime.get_available_providers()
        if name.partition(".")[0] not in beside
    ]
    return {**plugins, **dict.fromkeys(built_in, "")}


@cache
def _plugins() -> dict[str, str]:
    """Providers of installed packages, and for each why it does not start, or empty."""
    import onnxruntime

    found = {}
    for module in pkgutil.iter_modules():
        if not module.name.startswith(PLUGINS):
            continue
        package = import_module(module.name)
        why = ""
        try:
            onnxruntime.register_execution_provider_library(
                module.name, package.get_library_path()
            )
            devices = {device.ep_name for device in onnxruntime.get_ep_devices()}
        except Exception as error:
            devices, why = set(), first_line(error)
        for name in package.get_ep_names():
            found[name] = why or ("" if name in devices else _absent(name))
    return found


def _absent(name: str) -> str:
    """Why a plug-in finds no device: for OpenVINO's on another maker's processor that is known."""
    maker = machine.vendor()
    if name == OPENVINO and maker not in (INTEL, ""):
        # onnxruntime#31981
        return f"{ABSENT}: it takes hardware of Intel alone, and the processor is {maker}"
    return ABSENT


def load(source: str | bytes, settings: SessionOptions, provider: Provider) -> InferenceSession:
    """A session of which ``provider`` executes every node.

    Raises ``NotRunError`` where it does not start, or leaves nodes to another one. What ONNX
    Runtime raises for a model that it cannot read passes.
    """
    import onnxruntime

    if provider.name == CPU:
        return onnxruntime.InferenceSession(source, settings, providers=[CPU])
    if why := present().get(provider.name, ""):
        raise _not_started(provider, why)
    knows_places = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    # Before 1.24 ONNX Runtime could only refuse other providers, and not say what they took.
    wish = "record_ep_graph_assignment_info" if knows_places else "disable_cpu_ep_fallback"
    settings.add_session_config_entry(f"session.{wish}", "1")
    try:
        if provider.name in _plugins():
            settings.add_provider_for_devices([_device(provider)], _own_options(provider))
            session = onnxruntime.InferenceSession(source, settings, enable_fallback=0)
        else:
            given = [(provider.name, _built_in_options(provider))]
            session = onnxruntime.InferenceSession(
                source, settings, providers=given, enable_fallback=0
            )
    except (NotRunError, UsageError):
        raise
    except Exception as error:
        onnxruntime.InferenceSession(source, providers=[CPU])  # raises where the model is at fault
        raise _not_started(provider, first_line(error)) from error
    if provider.name not in session.get_providers():  # 1.24 warns on standard error, and goes on
        raise _not_started(provider, DROPPED)
    if knows_places:
        _refuse_strays(session, provider)
    return session


def arithmetic(provider: Provider) -> str:
    """What a provider computes float32 in: ``fp32``, or ``bf16`` or ``fp16`` where it is coarser.

    OpenVINO takes the coarsest type that its device is fast in, unless it is told. Of a plug-in
    without a device nothing is known but that it will not start.
    """
    if provider.name != OPENVINO:
        return "fp32"
    if told := _told(provider):
        return told
    if provider.name not in _plugins():
        return _built_in_arithmetic(provider)
    devices = _devices(provider)
    if not devices:
        return "fp32"
    metadata = dict(devices[0].ep_metadata)
    able = str(metadata.get("OPTIMIZATION_CAPABILITIES", "")).split()
    if metadata.get("ov_device") == "CPU":  # one with AVX512-FP16 takes bfloat16 all the same
        return "bf16" if "BF16" in able else "fp32"
    return "fp16" if "FP16" in able else "fp32"


def _built_in_arithmetic(provider: Provider) -> str:
    """The coarsest type that OpenVINO may take where ONNX Runtime was built with it.

    It has no device that could be asked. On the CPU it asks for float32 by itself, but not where
    it is to choose or to share: of ONNX Runtime 1.21.0 and 1.24.1 on a processor with bfloat16,
    ``device_type=CPU`` computed in float32, ``AUTO:CPU`` and ``HETERO:CPU,CPU`` in bfloat16.
    """
    if _device_type(provider) == "CPU":
        return "fp32"
    return "bf16" if set(_places(provider)) == {"CPU"} else "fp16"


def is_told(provider: Provider) -> bool:
    """Whether the user said what the provider is to compute in."""
    return _told(provider) != ""


def _told(provider: Provider) -> str:
    """What OpenVINO is told to compute in, or empty.

    Raises ``UsageError`` for other types: what answers in them may differ by is not known.
    """
    hint = str(_properties(provider).get(PRECISION_HINT, "")) if provider.name == OPENVINO else ""
    if hint and hint.lower() not in COMPUTED_IN:
        raise UsageError(
            f"{PRECISION_HINT}={hint} of --provider is no type that answers can be judged in",
            remedy=f"Give one of {', '.join(COMPUTED_IN)}, or leave it out.",
        )
    return COMPUTED_IN.get(hint.lower(), "")


def _devices(provider: Provider) -> list[Any]:
    """The plug-in's devices, or the one that was asked for by its name."""
    import onnxruntime

    wanted = _wanted(provider)
    return [
        each
        for each in getattr(onnxruntime, "get_ep_devices", list)()  # 1.21 has no plug-ins
        if each.ep_name == provider.name
        and (not wanted or dict(each.ep_metadata).get("ov_device", "").upper() == wanted)
    ]


def _device(provider: Provider) -> Any:
    """The first of :func:`_devices`.

    Raises ``NotRunError`` where there is none, and where it cannot compute in what was asked for:
    OpenVINO takes another type then, and says nothing.
    """
    for device in _devices(provider):
        if (told := _told(provider)) and not _is_able(device, told):
            why = f"its device does not compute in {told}, and OpenVINO would take another type"
            raise _not_started(provider, why)
        return device
    raise _not_started(provider, f"it has no device {_wanted(provider)!r} on this machine")


def _is_able(device: Any, type_: str) -> bool:
    """Whether a device of OpenVINO's plug-in computes in a type, by all that it says of itself."""
    able = str(dict(device.ep_metadata).get("OPTIMIZATION_CAPABILITIES", "")).split()
    return not able or type_.upper() in able


def _wanted(provider: Provider) -> str:
    """The device of a plug-in that was asked for, or empty.

    OpenVINO's ignores ``device_type``, which its provider has where it is built in.
    """
    kind = provider.options.get("device_type", "") if provider.name == OPENVINO else ""
    return provider.options.get("device", kind).upper()


def _properties(provider: Provider) -> dict[str, Any]:
    """OpenVINO's own properties, such as the hint: they are in capitals, or in ``load_config``."""
    given: dict[str, Any] = {}
    try:
        for of_device in json.loads(provider.options.get("load_config", "{}")).values():
            given |= of_device
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"load_config={provider.options['load_config']} of --provider is not a JSON object "
            "of objects",
            remedy=f"Give the properties themselves, such as {PRECISION_HINT}=f32, or "
            '{"CPU": {…}}.',
        ) from error
    return given | {key: value for key, value in provider.options.items() if key.isupper()}


def _device_type(provider: Provider) -> str:
    """What OpenVINO that was built in is to run on, such as ``CPU`` or ``AUTO:GPU.0,CPU``."""
    device = provider.options.get("device", "CPU").upper()
    return provider.options.get("device_type", device)


def _places(provider: Provider) -> list[str]:
    """The devices of :func:`_device_type`: ``AUTO:GPU.0,CPU`` has GPU and CPU."""
    names = _device_type(provider).rpartition(":")[2].split(",")
    return [name.split(".")[0] for name in names]


def _built_in_options(provider: Provider) -> dict[str, str]:
    """The options as a provider takes them that ONNX Runtime was built with.

    OpenVINO has its properties in ``load_config`` by the names of single devices: by the name
    ``AUTO`` ONNX Runtime 1.21.0 did not follow the hint.
    """
    if provider.name != OPENVINO:
        return dict(provider.options)
    own = ("device", "device_type")
    options = {k: v for k, v in provider.options.items() if k not in own and not k.isupper()}
    options["device_type"] = _device_type(provider)
    if any(key.isupper() for key in provider.options):
        properties = _properties(provider)
        options["load_config"] = json.dumps(dict.fromkeys(_places(provider), properties))
    return options


def _own_options(provider: Provider) -> dict[str, str]:
    """The options as a plug-in takes them: OpenVINO's has its properties in ``load_config``."""
    options = {key: value for key, value in provider.options.items() if key != "device"}
    if provider.name != OPENVINO:
        return options
    options.pop("device_type", "")
    if not (properties := _properties(provider)):
        return options
    name = dict(_device(provider).ep_metadata).get("ov_device", "CPU")
    options = {key: value for key, value in options.items() if not key.isupper()}
    return {**options, "load_config": json.dumps({name: properties})}


def _refuse_strays(session: InferenceSession, provider: Provider) -> None:
    """Raise where nodes are placed on another provider than the one that was asked for."""
    strays = [
        (part.ep_name, node)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider.name
        for node in part.get_nodes()
    ]
    if not strays:
        return
    counts = Counter(name.removesuffix(SUFFIX) for name, _ in strays)
    where = ", ".join(f"{count} on {name}" for name, count in counts.items())
    named = ", ".join(f"{node.name} ({node.op_type})" for _, node in strays[:SHOWN])
    raise NotRunError(
        f"{provider.label} leaves {len(strays)} nodes to other providers ({where}): {named}"
        f"{', …' if len(strays) > SHOWN else ''}",
        remedy="Choose a provider that takes every operator, such as cpu, or export in another "
        "precision.",
    )


def _not_started(provider: Provider, why: str) -> NotRunError:
    return NotRunError(
        f"{provider.label} did not start: {why}",
        remedy="levit-export doctor lists the providers that start here.",
    )
