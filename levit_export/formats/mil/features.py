"""What a model takes and gives, as its description says, and the arrays that fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from levit_export.core.errors import DataError, UnsupportedOpError, UsageError
from levit_export.formats.mil.elements import BY_CODE, Array, TensorType
from levit_export.formats.mil.package import Package, damaged

_ARRAY_TYPES = {65552: 10, 65568: 11, 131104: 23, 131080: 21}
"""MIL element code by ``ArrayFeatureType.ArrayDataType`` (``FeatureTypes.proto``)."""

_LAYOUTS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
"""``ImageFeatureType.ColorSpace`` by code."""


@dataclass(frozen=True)
class ArrayFeature:
    """A multi-array: ``dtype`` is a MIL element type such as ``float16``."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ImageFeature:
    """An image of ``height`` x ``width`` pixels; ``layout`` is RGB, BGR or GRAYSCALE."""

    name: str
    height: int
    width: int
    layout: str

    @property
    def shape(self) -> tuple[int, ...]:
        """What the program receives: ``(1, channels, height, width)``."""
        return (1, 3 if self.layout in ("RGB", "BGR") else 1, self.height, self.width)


@dataclass(frozen=True)
class OtherFeature:
    """Anything else, such as a classifier's label (``stringType``) and probabilities."""

    name: str
    kind: str


Feature = ArrayFeature | ImageFeature | OtherFeature


def read_features(messages: Any, package: Package) -> tuple[Feature, ...]:
    """The ``FeatureDescription`` messages of a model, in order; names must differ."""
    features = tuple(_read_feature(message, package) for message in messages)
    names = [feature.name for feature in features]
    if len(set(names)) != len(names) or "" in names:
        raise damaged(package.root, f"the description repeats or omits a name in {names}")
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
        if array.WhichOneof("ShapeFlexibility"):
            raise UnsupportedOpError(
                f"{package.root}: {message.name!r} has a flexible shape",
                remedy="Convert the model with fixed input shapes.",
            )
        element = BY_CODE[_ARRAY_TYPES[array.dataType]]
        return ArrayFeature(message.name, tuple(array.shape), element.name)
    if kind == "imageType":
        image = message.type.imageType
        if image.WhichOneof("SizeFlexibility") or image.colorSpace not in _LAYOUTS:
            raise UnsupportedOpError(
                f"{package.root}: image {message.name!r} has a flexible size or no colour space",
                remedy="Convert the model with a fixed image size and RGB, BGR or grayscale.",
            )
        return ImageFeature(message.name, image.height, image.width, _LAYOUTS[image.colorSpace])
    return OtherFeature(message.name, str(kind))


def feed(
    given: Mapping[str, Any], features: Mapping[str, Feature], declared: Mapping[str, TensorType]
) -> dict[str, Array]:
    """The arrays that a program receives for the inputs that a caller gives.

    Raises :class:`UsageError` for names that do not match and :class:`DataError` for a wrong shape
    or element type.
    """
    if set(given) != set(features):
        raise UsageError(
            f"the model takes {sorted(features)}, given {sorted(map(str, given))}",
            remedy="Give exactly one array for each input.",
        )
    return {
        name: _fed_image(given[name], feature, declared[name])
        if isinstance(feature, ImageFeature)
        else _fed_array(given[name], name, declared[name])
        for name, feature in features.items()
    }


def _fed_array(value: Any, name: str, declared: TensorType) -> Array:
    """An array of the declared shape; any float type for floats, the exact type otherwise.

    A scalar input of a program is an array of shape ``(1,)`` to a caller.
    """
    array = _as_array(value, name)
    accepted = (1,) if declared.shape == () else declared.shape
    if array.shape not in (accepted, declared.shape):
        raise DataError(
            f"input {name!r} has shape {list(array.shape)}, not {list(accepted)}",
            remedy="Reshape the array, or export a model for this shape.",
        )
    is_float = declared.element.kind == "f"
    if (
        (array.dtype not in (np.float32, np.float16))
        if is_float
        else (array.dtype != declared.element.held_as)
    ):
        raise DataError(
            f"input {name!r} has element type {array.dtype}, not {declared.element.name}",
            remedy=f"Convert the array with astype({declared.element.held_as!r}).",
        )
    return array.reshape(declared.shape).astype(declared.element.held_as)


def _fed_image(value: Any, feature: ImageFeature, declared: TensorType) -> Array:
    """An image as the program receives it: ``(1, channels, height, width)``, numbers 0 to 255.

    - uint8 ``(height, width, 3)``, always red, green, blue: reordered here if the model declares
      BGR, as Core ML does; uint8 ``(height, width)`` for grayscale.
    - float32 or float16 of the program's own shape: taken as it is, already in the declared order.

    Scale and bias are ops of the program.
    """
    array = _as_array(value, feature.name)
    if array.dtype != np.uint8:
        return _fed_array(array, feature.name, declared)
    grey = feature.shape[1] == 1
    expected = (feature.height, feature.width) if grey else (feature.height, feature.width, 3)
    if array.shape != expected:
        raise DataError(
            f"image {feature.name!r} has shape {list(array.shape)}, not {list(expected)}",
            remedy="Resize the image, or export a model for this size.",
        )
    if feature.layout == "BGR":
        array = array[..., ::-1]
    planes = array[np.newaxis] if grey else array.transpose(2, 0, 1)
    return np.ascontiguousarray(planes[np.newaxis].astype(declared.element.held_as))


def _as_array(value: Any, name: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(
            f"input {name!r} is not an array: {error}", remedy="Give a NumPy array."
        ) from error
