"""What a model takes and gives, as its description says, and the arrays that fit it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from levit_export.core.errors import DataError, UnsupportedOpError, UsageError
from levit_export.formats.mil.elements import (
    BY_CODE,
    MAX_ELEMENTS,
    Array,
    Element,
    TensorType,
)
from levit_export.formats.mil.package import Package, damaged

_ARRAY_TYPES = {65552: 10, 65568: 11, 131104: 23, 131080: 21}
"""MIL element code by ``ArrayFeatureType.ArrayDataType`` (``FeatureTypes.proto``)."""

_LAYOUTS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
"""``ImageFeatureType.ColorSpace`` by code."""


Range = tuple[int, int]
"""The smallest and the largest size of an axis; a largest of -1 is none."""


@dataclass(frozen=True)
class ArrayFeature:
    """A multi-array: ``dtype`` is a MIL element type such as ``float16``.

    ``shape`` is the one that Core ML assumes. A model of flexible shape takes any of ``shapes``,
    or sizes within ``ranges``, one for each axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Range, ...] = ()

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether the model takes an array of ``shape``."""
        if self.ranges:
            return _within(shape, self.ranges)
        return shape in self.shapes if self.shapes else shape == self.shape


@dataclass(frozen=True)
class ImageFeature:
    """An image of ``height`` x ``width`` pixels; ``layout`` is RGB, BGR or GRAYSCALE.

    A model of flexible size takes any of ``sizes``, or sizes within ``ranges``; height first.
    """

    name: str
    height: int
    width: int
    layout: str
    sizes: tuple[tuple[int, int], ...] = ()
    ranges: tuple[Range, ...] = ()

    @property
    def channels(self) -> int:
        """3 for colours, 1 for grey."""
        return 3 if self.layout in ("RGB", "BGR") else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """What the program receives: ``(1, channels, height, width)``."""
        return (1, self.channels, self.height, self.width)

    def admits(self, size: tuple[int, ...]) -> bool:
        """Whether the model takes an image of ``(height, width)``."""
        if self.ranges:
            return _within(size, self.ranges)
        return size in (self.sizes or ((self.height, self.width),))


def _within(sizes: tuple[int, ...], ranges: tuple[Range, ...]) -> bool:
    return len(sizes) == len(ranges) and all(
        low <= n and (high == -1 or n <= high)
        for n, (low, high) in zip(sizes, ranges, strict=True)
    )


@dataclass(frozen=True)
class OtherFeature:
    """Anything else, such as a classifier's label (``stringType``) and probabilities."""

    name: str
    kind: str


Feature = ArrayFeature | ImageFeature | OtherFeature


def read_features(messages: Any, package: Package) -> tuple[Feature, ...]:
    """The ``FeatureDescription`` messages of a model, in order; a name has one type."""
    features = tuple(_read_feature(message, package) for message in messages)
    names = [feature.name for feature in features]
    if len(set(names)) != len(set(features)) or "" in names:
        raise damaged(
            package.root, f"the description omits a name or gives one two types, in {names}"
        )
    return features


def _read_feature(message: Any, package: Package) -> Feature:
    kind = message.type.WhichOneof("Type")
    if kind == "multiArrayType":
        array = message.type.multiArrayType
        if array.dataType not in _ARRAY_TYPES:
            raise UnsupportedOpError(
                f"{package.root}: {message.name!r} is an array of type {array.dataType}",
                remedy="Export the model with float32, float16 or int32 inputs and outputs.",
            )
        return ArrayFeature(
            message.name,
            tuple(array.shape),
            BY_CODE[_ARRAY_TYPES[array.dataType]].name,
            tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes),
            tuple((r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges),
        )
    if kind == "imageType":
        image = message.type.imageType
        if image.colorSpace not in _LAYOUTS:
            raise UnsupportedOpError(
                f"{package.root}: image {message.name!r} has no colour space that is known",
                remedy="Convert the model with RGB, BGR or grayscale images.",
            )
        sides = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        is_range = image.WhichOneof("SizeFlexibility") == "imageSizeRange"
        return ImageFeature(
            message.name,
            image.height,
            image.width,
            _LAYOUTS[image.colorSpace],
            tuple((size.height, size.width) for size in image.enumeratedSizes.sizes),
            tuple((r.lowerBound, r.upperBound) for r in sides) if is_range else (),
        )
    return OtherFeature(message.name, str(kind))


def feed(
    given: Mapping[str, Any], features: Mapping[str, Feature], declared: Mapping[str, TensorType]
) -> dict[str, Array]:
    """The arrays that a program receives for the inputs that a caller gives.

    An array, or what NumPy makes one of, is converted to the declared type where that type can
    hold its numbers: any floats for floats, whole numbers for integers. An image is

    - a Pillow image of the declared size, converted to the declared colours;
    - uint8 ``(height, width, 3)``, always red, green, blue: reordered here if the model declares
      BGR, as Core ML does; uint8 ``(height, width)`` for grayscale;
    - or numbers of the program's own shape ``(1, channels, height, width)`` and order of colours.

    Scale and bias of an image are ops of the program. Raises :class:`UsageError` for names that do
    not match and :class:`DataError` for a wrong shape or numbers that do not fit.
    """
    if not isinstance(given, Mapping):
        raise UsageError(
            f"inputs are given by name, not as a {type(given).__name__}",
            remedy=f"Give a dictionary with an array for each of {sorted(features)}.",
        )
    if set(given) != set(features):
        raise UsageError(
            f"the model takes {sorted(features)}, given {sorted(map(str, given))}",
            remedy="Give exactly one array for each input.",
        )
    return {
        name: _fed_image(given[name], feature, declared[name])
        if isinstance(feature, ImageFeature)
        else _fed_array(_as_array(given[name], name), feature, declared[name])
        for name, feature in features.items()
    }


def _fed_array(array: Array, feature: Feature, declared: TensorType) -> Array:
    """``array`` with the declared element type; its shape must be one that the model takes."""
    is_scalar = declared.is_fixed and declared.shape == () and array.shape in ((), (1,))
    admitted = declared.admits(array.shape) and (
        not isinstance(feature, ArrayFeature) or feature.admits(array.shape)
    )
    if not is_scalar and not admitted:
        accepted = feature.shape if isinstance(feature, ArrayFeature) else declared.shape
        raise DataError(
            f"input {feature.name!r} has shape {list(array.shape)}, not {list(accepted)}"
            + _choice(feature),
            remedy="Reshape the array, or export a model for this shape.",
        )
    if array.size > MAX_ELEMENTS:
        raise DataError(
            f"input {feature.name!r} has {array.size} elements, more than {MAX_ELEMENTS}",
            remedy="Give a smaller array.",
        )
    shaped = array.reshape(()) if is_scalar else array
    return _converted(shaped, feature.name, declared.element)


def _choice(feature: Feature) -> str:
    """What else a model of flexible shape takes, for a message."""
    if isinstance(feature, ArrayFeature) and feature.ranges:
        return f" or sizes within {[list(r) for r in feature.ranges]}"
    if isinstance(feature, ArrayFeature) and feature.shapes:
        return f" or one of {[list(shape) for shape in feature.shapes]}"
    if isinstance(feature, ImageFeature) and feature.ranges:
        return f" or height and width within {[list(r) for r in feature.ranges]}"
    if isinstance(feature, ImageFeature) and feature.sizes:
        return f" or one of {[list(size) for size in feature.sizes]}"
    return ""


def _converted(array: Array, name: str, element: Element) -> Array:
    """``array`` as a new array of the type that holds ``element``; numbers must survive it."""
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"input {name!r} has element type {array.dtype}, not {element.name}",
            remedy="Give an array of numbers.",
        )
    target = np.dtype(element.held_as)
    if target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        whole = array.dtype.kind != "f" or bool((array == np.trunc(array)).all())
        # As Python's numbers, because NumPy compares float32 with an integer rounded to float32.
        if not whole or array.min().item() < limits.min or array.max().item() > limits.max:
            raise DataError(
                f"input {name!r} has numbers that {element.name} cannot hold",
                remedy=f"Give whole numbers from {limits.min} to {limits.max}.",
            )
    if target.kind == "b" and not np.isin(array, (0, 1)).all():
        raise DataError(
            f"input {name!r} has numbers other than 0 and 1", remedy="Give an array of booleans."
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite there
        return array.astype(target)


def _fed_image(value: Any, feature: ImageFeature, declared: TensorType) -> Array:
    """An image as the program receives it: ``(1, channels, height, width)``, numbers 0 to 255."""
    array = _as_array(_recoloured(value, feature), feature.name)
    if array.dtype != np.uint8 or array.ndim == 4:
        if array.ndim == 4 and not feature.admits(array.shape[2:]):
            raise _wrong_size(feature, array)
        return _fed_array(array, feature, declared)
    trailing = () if feature.channels == 1 else (3,)
    if array.shape[2:] != trailing or not feature.admits(array.shape[:2]):
        raise _wrong_size(feature, array)
    if feature.layout == "BGR":
        array = array[..., ::-1]
    planes = array[np.newaxis] if feature.channels == 1 else array.transpose(2, 0, 1)
    return np.ascontiguousarray(planes[np.newaxis].astype(declared.element.held_as))


def _wrong_size(feature: ImageFeature, array: Array) -> DataError:
    trailing = [] if feature.channels == 1 else [3]
    return DataError(
        f"image {feature.name!r} has shape {list(array.shape)}, not "
        f"{[feature.height, feature.width, *trailing]}{_choice(feature)}",
        remedy="Resize the image, or export a model for this size.",
    )


def _recoloured(value: Any, feature: ImageFeature) -> Any:
    """A Pillow image in the declared colours; anything else as it is.

    Transparency is not a colour: an image with some of it is refused, not painted on a guess.
    """
    if "PIL.Image" not in sys.modules:
        return value
    from PIL import Image

    if not isinstance(value, Image.Image):
        return value
    mode = "L" if feature.channels == 1 else "RGB"
    opaque = value.mode in ("1", "L", "P", "RGB") and "transparency" not in value.info
    if not opaque and value.mode in ("LA", "RGBA"):
        opaque = value.getchannel("A").getextrema() == (255, 255)
    if not opaque:
        raise DataError(
            f"image {feature.name!r} has the Pillow mode {value.mode}, with transparency or other "
            f"colours than {mode}",
            remedy=f"Convert the image to {mode} as your application will.",
        )
    return value.convert(mode)


def _as_array(value: Any, name: str) -> Array:
    try:
        return np.asarray(value)
    # PyTorch raises RuntimeError for a tensor that cannot become an array.
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"input {name!r} is not an array: {error}", remedy="Give a NumPy array."
        ) from error
