"""Options that several verbs take, each declared once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from levit_export.core.errors import DataError, UsageError
from levit_export.models.zoo import ACTIVATIONS, TASKS, parse_size, size_in_words

if TYPE_CHECKING:
    from levit_export.checks.reference import Overrides
    from levit_export.checks.timing import TimingPlan
    from levit_export.core.values import RunOptions
    from levit_export.models.loading import ModelChoice

    SizeType = click.ParamType[tuple[int, int]]
else:
    SizeType = click.ParamType  # generic since click 8.4 only

Options = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A decorator that declares options of a verb."""

POSITIVE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**64 - 1)
"""What PyTorch takes for a seed."""

TURNS = click.IntRange(1, 1_000_000)
"""For what is repeated or read one by one: a mistyped number is refused at once."""

LARGEST_SIDE = 4096
"""In pixels: the attention of the first stage has (side / 16)^4 entries."""
EXISTING = click.Path(path_type=Path)


class FiniteRange(click.FloatRange):
    """A number in a range; NaN, which lies in every range, is refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class ImageSize(SizeType):
    """``224``, or ``128x512`` for a height of 128 and a width of 512."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(height, width)."""
        if isinstance(value, tuple):
            return value
        try:
            size = parse_size(value)
        except ValueError as error:
            self.fail(f"{error}; give a side such as 224, or height x width: 128x512", param, ctx)
        if max(size) > LARGEST_SIDE:
            self.fail(f"{value} is more than {LARGEST_SIDE} pixels a side", param, ctx)
        return size


# Decorators are applied from the last to the first, and click lists options in that order.
def _all(*options: Options) -> Options:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_options = _all(
    click.option("-m", "--model", help="A model of the zoo; `levit-export models` lists them."),
    click.option(
        "-c",
        "--checkpoint",
        type=EXISTING,
        help="Trained weights: a .safetensors, .pth or .bin file, or a folder with its "
        "config.json.",
    ),
    click.option("--pretrained", is_flag=True, help="Fetch the weights published for --model."),
    click.option("--offline", is_flag=True, help="Take --pretrained weights from the cache."),
    click.option(
        "--random-weights",
        type=SEED,
        metavar="SEED",
        help="Seeded random weights, for a dry run of a model you have not trained yet.",
    ),
    click.option(
        "--imgsz",
        type=ImageSize(),
        help="Size of the input image in pixels: a side, or height x width such as 128x512.",
    ),
    click.option(
        "--resize-bias",
        is_flag=True,
        help="Let --imgsz interpolate what was learned per position (an approximation).",
    ),
    click.option(
        "--activation",
        type=click.Choice(ACTIVATIONS),
        help="The network's activation, which no tensor tells.  [default: as in the known "
        "model of this size]",
    ),
    click.option("--labels", type=EXISTING, help="A text file with one class name a line."),
    click.option(
        "--preprocessing",
        type=EXISTING,
        help="A JSON file that states how pictures become inputs, in place of what stands "
        "beside the weights (docs/checkpoints.md).",
    ),
    click.option(
        "--task",
        type=click.Choice(TASKS),
        help="What the outputs mean, in place of config.json's problem_type: one class, each "
        "label by itself, or numbers.",
    ),
)
"""Which weights."""


parity_options = _all(
    click.option(
        "--atol",
        type=click.FloatRange(min=0),
        help="Absolute tolerance in place of the derived one.",
    ),
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        help="Relative tolerance, of a sample's largest output, in place of the derived one. "
        "If only one of --atol and --rtol is given, the other is 0.",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True),
    click.option(
        "--allow-not-run",
        is_flag=True,
        help="Exit 0 although a check could not be run, or decides nothing.",
    ),
)
"""How far an artifact may lie from the reference."""


runtime_options = _all(
    click.option("--device", default="CPU", show_default=True, help="OpenVINO's device."),
    click.option(
        "--compute-units",
        default="cpu_only",
        show_default=True,
        help="Core ML's, on macOS: cpu_only, cpu_and_ne, cpu_and_gpu, all; comma-separated.",
    ),
    click.option(
        "--provider",
        "providers",
        multiple=True,
        metavar="NAME[,KEY=VALUE…]",
        help="ONNX Runtime's execution provider; may be repeated.  [default: cpu]",
    ),
)
"""What each runtime executes on."""


run_options = _all(
    click.option("--threads", type=POSITIVE, help="CPU threads.  [default: all cores]"),
    runtime_options,
)
"""How runtimes execute, and on how many threads."""


timing_options = _all(
    click.option("--warmup", type=click.IntRange(0, TURNS.max), default=30, show_default=True),
    click.option("--iters", type=TURNS, default=50, show_default=True),
)
"""How long to measure."""


calibration_options = _all(
    click.option(
        "-d",
        "--data",
        type=EXISTING,
        help="Images that an int8 file was calibrated on: with --checkpoint, its tolerance "
        "follows from them.",
    ),
    click.option(
        "--num-samples",
        type=TURNS,
        default=200,
        show_default=True,
        help="How many images of --data it was calibrated on; its --seed says which of them.",
    ),
)
"""The images behind an int8 file of another model than the bundled one."""


output_options = _all(
    click.option("--json", "json_file", metavar="FILE", help="Write the report; - is stdout."),
    click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and warnings."),
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
)
"""What is said, and where."""


report_options = _all(
    click.option("--junit", metavar="FILE", help="Write JUnit XML; - is stdout."),
    click.option(
        "--markdown",
        metavar="FILE",
        help="Write a summary; appended when FILE is $GITHUB_STEP_SUMMARY.",
    ),
    click.option("--html", metavar="FILE", help="Write the report as a page; - is stdout."),
)
"""Where else a verb that checks says what it found."""

DIGITS = "digits"


def refuse_missing(params: Mapping[str, Any]) -> None:
    """Raise for images that do not exist, also where nothing will look at them."""
    data = params["data"]
    if data is not None and str(data) != DIGITS and not Path(data).exists():
        raise DataError(
            f"--data {data} does not exist",
            remedy=f"Give a folder or an .npz file, or {DIGITS} for the bundled images.",
        )


def comma_separated(values: tuple[str, ...]) -> list[str]:
    """The names in the values of an option that may be repeated and may hold several each."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def read_labels(file: Path | None) -> tuple[str, ...]:
    """The lines of a label file, empty without one."""
    from levit_export.core import files

    if file is None:
        return ()
    try:
        lines = files.read_text(file, "utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read as labels: {error}", remedy="Give a UTF-8 text file."
        ) from error
    labels = tuple(line.strip() for line in lines)
    if "" in labels:
        raise DataError(
            f"line {labels.index('') + 1} of {file} is empty", remedy="Give one label a line."
        )
    return labels


def model_choice(params: dict[str, Any]) -> ModelChoice:
    """What :func:`model_options` parsed."""
    from levit_export.inputs import preprocessing
    from levit_export.models.loading import ModelChoice

    recipe = params["preprocessing"]
    return ModelChoice(
        model=params["model"],
        checkpoint=params["checkpoint"],
        pretrained=params["pretrained"],
        offline=params["offline"],
        random_seed=params["random_weights"],
        image_size=params["imgsz"],
        resize_bias=params["resize_bias"],
        activation=params["activation"],
        task=params["task"],
        labels=read_labels(params["labels"]),
        preprocessing=None if recipe is None else preprocessing.read(recipe),
    )


def same_again(params: Mapping[str, Any]) -> list[str]:
    """The options that name the same model and providers again, for a command to suggest."""
    words: list[str] = []
    for name in ("model", "checkpoint", "random_weights", "activation", "preprocessing"):
        if params[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(params[name])]
    if params["imgsz"] is not None:
        words += ["--imgsz", size_in_words(params["imgsz"])]
    flags = ("pretrained", "offline", "resize_bias")
    words += [f"--{name.replace('_', '-')}" for name in flags if params[name]]
    if params["data"] is not None:
        words += ["--data", str(params["data"]), "--num-samples", str(params["num_samples"])]
        words += ["--seed", str(params["seed"])] if params["seed"] else []  # which of them
    # How a file is executed may be what its failure is of.
    for provider in params["providers"]:
        words += ["--provider", provider]
    return words


def overrides(params: dict[str, Any]) -> Overrides:
    """What :func:`parity_options` parsed of tolerances."""
    from levit_export.checks.reference import Overrides

    for name in ("atol", "rtol"):
        value = params[name]
        if value is not None and not value < float("inf"):
            raise UsageError(f"--{name} {value} accepts anything", remedy="Give a finite number.")
    return Overrides(params["atol"], params["rtol"])


def run(params: dict[str, Any]) -> RunOptions:
    """What :func:`run_options` parsed."""
    from levit_export.core.machine import refuse_threads, usable_cores
    from levit_export.core.values import RunOptions

    if params["threads"] is not None:
        refuse_threads(params["threads"])
    units = tuple(unit.strip().lower() for unit in params["compute_units"].split(","))
    return RunOptions(
        threads=params["threads"] or usable_cores(),
        device=params["device"],
        compute_units=units,
        providers=params["providers"] or ("cpu",),
    )


def plan(params: dict[str, Any]) -> TimingPlan:
    """What :func:`timing_options` parsed."""
    from levit_export.checks.timing import TimingPlan

    return TimingPlan(warmup=params["warmup"], iterations=params["iters"])
