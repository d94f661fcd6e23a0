"""What ``transformers``' image processors do with their settings, as a recipe.

Read off the sources of versions 4.57 and 5.24. A class exists up to three times: computed by
Pillow (version 4's slow one, version 5's ``…Pil``) and by torchvision (version 4's ``…Fast``,
version 5's without a suffix). A file that names ``LevitImageProcessor`` may mean either, and is
followed where both make the same picture of it. Every rule here is held against the libraries'
own transforms in ``tests/models/checkpoints/test_transforms.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from levit_export.core.values import Interpolation, Preprocessing, Resize, Size
from levit_export.inputs.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    sides_of,
    three_of,
)
from levit_export.models.checkpoints.dialect import Settled

ASSUMED = "LevitImageProcessor"
SHORTER_SIDE = 256 / 224
"""What LevitImageProcessor multiplies ``size.shortest_edge`` with before it resizes."""
WARPED_FROM = 384
"""From this size on ConvNextImageProcessor resizes without a crop."""

Backend = Literal["pillow", "torchvision", "either"]
FILTERS: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Pillow's numbers of filters, which ``resample`` holds."""
USABLE: dict[Backend, tuple[int, ...]] = {
    "pillow": tuple(FILTERS),
    "torchvision": (2, 3),
    # torchvision has neither box nor hamming, so a file that asks for them means Pillow. The other
    # two it has, and picks other pixels with them.
    "either": (2, 3, 4, 5),
}

HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_SHORT, _SQUARE = {"shortest_edge": 224}, {"height": 224, "width": 224}


@dataclass(frozen=True)
class Processor:
    """What a class does where its file says nothing; None where its versions do different things.

    ``square`` is what a single number as ``size`` means: both sides, or the shorter one.
    ``pillow_crops`` says whether the class crops when Pillow computes, too.
    """

    size: Mapping[str, int] | None
    resample: int | None
    numbers: tuple[tuple[float, ...], tuple[float, ...]]
    centre_crop: bool | None
    square: bool | None
    crop: int = 224
    pillow_crops: bool = True


PROCESSORS = {
    "BeitImageProcessor": Processor(None, 3, HALF, None, square=True),
    "BitImageProcessor": Processor(_SHORT, 3, CLIP, True, square=False),
    "CLIPImageProcessor": Processor(_SHORT, 3, CLIP, True, square=False),
    "ConvNextImageProcessor": Processor(
        {"shortest_edge": 384}, None, HALF, False, square=False, pillow_crops=False
    ),
    "DeiTImageProcessor": Processor({"height": 256, "width": 256}, 3, HALF, True, square=True),
    "EfficientNetImageProcessor": Processor(
        {"height": 346, "width": 346}, None, HALF, False, square=True, crop=289
    ),
    "LevitImageProcessor": Processor(_SHORT, 3, IMAGENET, True, square=False),
    "MobileNetV1ImageProcessor": Processor({"shortest_edge": 256}, 2, HALF, True, square=False),
    "MobileNetV2ImageProcessor": Processor({"shortest_edge": 256}, 2, HALF, True, square=False),
    "MobileViTImageProcessor": Processor(_SHORT, None, HALF, True, square=False, crop=256),
    "PoolFormerImageProcessor": Processor(_SHORT, 3, IMAGENET, True, square=False),
    "PvtImageProcessor": Processor(
        _SQUARE, None, IMAGENET, False, square=True, pillow_crops=False
    ),
    "SiglipImageProcessor": Processor(_SQUARE, 3, HALF, False, square=None, pillow_crops=False),
    "ViTImageProcessor": Processor(_SQUARE, 2, HALF, False, square=True, pillow_crops=False),
}
PILLOW_TAKES_BOTH_SIDES = (
    "BeitImageProcessor",
    "DeiTImageProcessor",
    "EfficientNetImageProcessor",
    "PvtImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)
"""With ``size.shortest_edge`` these fail when Pillow computes, so torchvision is meant."""

READ = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "crop_pct",
    "do_rescale",
    "rescale_factor",
    "rescale_offset",
    "do_normalize",
    "image_mean",
    "image_std",
    "include_top",
    "do_flip_channel_order",
    "do_pad",
    "data_format",
    "default_to_square",
    "use_square_size",
)
"""Settings that change the picture, or may."""
WITHOUT_EFFECT = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "transformers_version",
    "_valid_processor_keys",
    "do_convert_rgb",  # pictures are RGB before they come here
    "do_reduce_labels",  # of segmentation maps
    "pad_size",  # nothing without do_pad
    "input_data_format",
    "device",
    "disable_grouping",
    "return_tensors",
    "model_input_names",
    "num_labels",
    "id2label",
    "label2id",
)
"""Settings that do not change the picture of an RGB image."""


def recipe(said: Mapping[str, Any], taken: Size) -> Settled[Preprocessing]:
    """The recipe of ``preprocessor_config.json``, and what was assumed.

    ``taken`` is what the weights take. Raises ``ValueError``, which names the setting, for what
    this toolchain has no step for or what versions of the library do differently.
    """
    name = said.get("image_processor_type") or str(
        said.get("feature_extractor_type") or ""
    ).replace("FeatureExtractor", "ImageProcessor")
    assumed = () if name else (f"the file does not name its processor: {ASSUMED} is assumed",)
    settings = _settings(said, name or ASSUMED)
    mode, resize, backend = settings.resize()
    crop = settings.crop(mode, resize, backend)
    if crop != taken:
        raise ValueError(
            f"it gives {crop[0]} x {crop[1]} pixels, the weights take {taken[0]} x {taken[1]}"
        )
    mean, std = settings.mean_and_std()
    found = Preprocessing(
        "transformers",
        resize=resize,
        crop=crop,
        resize_mode=mode,
        interpolation=settings.interpolation(backend),
        mean=mean,
        std=std,
        # The two differ where the crop reaches beyond the picture by an odd number of pixels.
        centre="truncated" if backend == "torchvision" else "floored",
    )
    return Settled(found, assumptions=assumed)


def _settings(said: Mapping[str, Any], name: str) -> _Settings:
    backend: Backend = "either"
    if name.endswith("Fast"):
        name, backend = name.removesuffix("Fast"), "torchvision"
    elif name.endswith("Pil"):
        name, backend = name.removesuffix("Pil"), "pillow"
    if name not in PROCESSORS:
        known = ", ".join(PROCESSORS)
        raise ValueError(f"image_processor_type {name!r} is not one of {known}")
    if said.get("auto_map"):
        raise ValueError("auto_map names a processor whose code is not transformers'")
    given = [key for key, value in said.items() if value is not None]
    if strange := [key for key in given if key not in (*READ, *WITHOUT_EFFECT, "auto_map")]:
        raise ValueError(f"{strange[0]} is not a setting that this version knows")
    if said.get("data_format") not in (None, "channels_first"):
        raise ValueError(f"data_format is {said['data_format']!r}")
    for key in ("do_pad", "use_square_size"):
        if said.get(key):
            raise ValueError(f"{key} is {said[key]!r}")
    return _Settings(said, name, PROCESSORS[name], backend)


@dataclass(frozen=True)
class _Settings:
    """The settings of one file, with what its class does where they say nothing."""

    said: Mapping[str, Any]
    name: str
    usual: Processor
    backend: Backend

    def value(self, key: str, usual: Any) -> Any:
        """A setting, or what its class does without; null is not the same as silence.

        A step that is null is not taken, but by version 5; other settings that are null stop the
        torchvision processors.
        """
        value = self.said.get(key)
        if value is not None:
            return value
        is_step = key.startswith("do_") or key in ("resample", "crop_pct")
        if key in self.said and usual and (is_step or self.backend == "torchvision"):
            raise ValueError(f"{key} is null, which versions of transformers read differently")
        return usual

    def flag(self, key: str, *, usual: bool | None) -> bool:
        """Whether a step is taken."""
        value = self.value(key, usual)
        if not isinstance(value, bool):
            raise TypeError(f"{key} is {_shown(value)}")
        return value

    def number(self, key: str, usual: float) -> float:
        """A positive number."""
        value = self.value(key, usual)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"{key} is {value!r}")
        return float(value)

    def resize(self) -> tuple[Resize, Size, Backend]:
        """How to resize and to what, and who must be computing for that."""
        backend = self.backend
        if not self.flag("do_resize", usual=True):
            if backend == "either":
                raise ValueError(
                    "do_resize is False, and slow and fast processors pad small pictures "
                    "differently"
                )
            return "none", self._crop_size(), backend
        size = self._size()
        if self.name == "ConvNextImageProcessor":
            edge = size.get("shortest_edge", 0)
            if edge < WARPED_FROM:
                raise ValueError(
                    f"size is {size}: versions of {self.name} crop differently below "
                    f"shortest_edge {WARPED_FROM}"
                )
            return "exact", (edge, edge), backend
        if self.name == "PoolFormerImageProcessor":
            return (*self._poolformer(size), backend)
        if "height" in size:
            return "exact", (size["height"], size["width"]), backend
        if self.name in PILLOW_TAKES_BOTH_SIDES:
            # Pillow's classes raise here, so a file that does not say which was made by the other.
            if backend == "pillow":
                raise ValueError(f"size is {size}; {self.name} needs height and width")
            backend = "torchvision"
        edge = size["shortest_edge"]
        if self.name == "LevitImageProcessor":
            edge = int(SHORTER_SIDE * edge)
        return "shorter-side", (edge, edge), backend

    def _poolformer(self, size: Mapping[str, int]) -> tuple[Resize, Size]:
        share = self.number("crop_pct", 0.9)
        height, width = size.get("height"), size.get("width")
        if height and width and height != width:
            return "exact", (int(height / share), int(width / share))
        edge = int((height or size["shortest_edge"]) / share)
        return "shorter-side", (edge, edge)

    def _size(self) -> dict[str, int]:
        """``size`` as the library understands it, with two keys or ``shortest_edge`` alone."""
        value = self.value("size", self.usual.size)
        if isinstance(value, int) and not isinstance(value, bool):
            square = self.said.get("default_to_square")
            if square not in (None, self.usual.square) or self.usual.square is None:
                raise ValueError(f"size is {value}, and default_to_square is {square!r}")
            value = dict.fromkeys(_SQUARE if self.usual.square else _SHORT, value)
        if isinstance(value, list) and len(value) == 2:
            value = dict(zip(_SQUARE, value, strict=True))
        if isinstance(value, Mapping):
            given = {key: side for key, side in value.items() if side is not None}
            whole = all(type(side) is int and side > 0 for side in given.values())
            if whole and given.keys() in (_SQUARE.keys(), _SHORT.keys()):
                return given
        raise ValueError(f"size is {_shown(value)}")

    def _crop_size(self) -> Size:
        value = self.value("crop_size", self.usual.crop)
        if isinstance(value, Mapping):
            value = [value.get("height"), value.get("width")]
        return sides_of("crop_size", value)

    def crop(self, mode: Resize, resize: Size, backend: Backend) -> Size:
        """The size of the crop, which is the whole picture where nothing is cropped."""
        crops = self.flag("do_center_crop", usual=self.usual.centre_crop)
        if not crops:
            if mode in ("shorter-side", "none"):
                raise ValueError("do_center_crop is False, and pictures keep their aspect ratio")
            return resize
        crop = self._crop_size()
        if crop != resize and not self.usual.pillow_crops and backend != "torchvision":
            raise ValueError(
                f"do_center_crop is True, which {self.name} does only when torchvision computes"
            )
        for side, cut in zip(resize, crop, strict=True):
            is_odd = mode == "shorter-side" or (cut - side) % 2
            if cut > side and is_odd and backend == "either":
                raise ValueError(
                    f"crop_size {cut} exceeds the {side} pixels that are resized to, and slow and "
                    "fast processors pad differently"
                )
        return crop

    def interpolation(self, backend: Backend) -> Interpolation:
        """The filter of ``resample``."""
        value = self.value("resample", self.usual.resample)
        if type(value) is int and value in FILTERS and value not in USABLE[backend]:
            raise ValueError(
                f"resample is {value} ({FILTERS[value]}), with which Pillow and torchvision make "
                "different pictures"
            )
        if type(value) is not int or value not in FILTERS:
            raise ValueError(f"resample is {_shown(value)}")
        return FILTERS[value]

    def mean_and_std(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and deviation on the 0-1 scale that give what the steps give.

        A step turns x = p / 255 into ``(x - mean) / std``; where the values are scaled by another
        factor than 1/255, moved or divided twice, mean and deviation take that up.
        """
        normalises = False  # MobileViTImageProcessor has no such step
        if self.name != "MobileViTImageProcessor":
            normalises = self.flag("do_normalize", usual=True)
        elif self.flag("do_flip_channel_order", usual=True):
            raise ValueError("do_flip_channel_order is True: its pictures are BGR")
        scale, moved = 255.0, 0.0
        if self.flag("do_rescale", usual=True):
            scale = 255 * self.number("rescale_factor", 1 / 255)
            scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-12) else scale
            if self.name == "EfficientNetImageProcessor":
                moved = float(self.flag("rescale_offset", usual=False))
        given = self._three("image_mean", 0), self._three("image_std", 1)
        mean, std = given if normalises else ((0.0,) * 3, (1.0,) * 3)
        if self.name == "EfficientNetImageProcessor" and self.flag("include_top", usual=True):
            std = tuple(one * again for one, again in zip(std, given[1], strict=True))
        low, middle, high = ((one + moved) / scale for one in mean)
        narrow, usual, wide = (one / scale for one in std)
        return (low, middle, high), (narrow, usual, wide)

    def _three(self, key: str, place: int) -> tuple[float, ...]:
        value = self.value(key, self.usual.numbers[place])
        return three_of(key, [value] * 3 if isinstance(value, int | float) else value)


def _shown(value: Any) -> str:
    return (
        "not said, and versions of transformers take different values"
        if value is None
        else repr(value)
    )
