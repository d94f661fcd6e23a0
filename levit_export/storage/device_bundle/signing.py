"""Signatures of bundles, by OpenSSF's model signing and an elliptic key; no network is needed.

A bundle vouches for itself by the hashes in it, which whoever alters it can make anew. A signature
in a file beside it says that the holder of a key made these bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from levit_export.core import files
from levit_export.core.errors import BundleError, MissingDependencyError, UsageError

SUFFIX = ".sig"
MISSING = "pip install 'levit-export[sign]'"


def signature_of(path: Path) -> Path:
    """Where the signature of the bundle at ``path`` lies."""
    return path.with_name(path.name + SUFFIX)


def refuse_key(key: Path) -> None:
    """Raise before anything is written when ``key`` cannot sign."""
    _model_signing()
    try:
        text = files.read_bytes(key)
    except OSError as error:
        raise UsageError(
            f"the key {key} cannot be read: {error.strerror or error}", remedy="Check its path."
        ) from error
    if b"PRIVATE KEY" not in text:
        raise UsageError(
            f"{key} is not a private key",
            remedy="Make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        )


def sign(path: Path, key: Path) -> Path:
    """Sign the bundle at ``path`` with a private elliptic key; gives the signature's file."""
    signing, _ = _model_signing()
    place = signature_of(path)
    with files.temporary_folder() as folder:
        made = folder / place.name
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(path, made)
        except Exception as error:
            raise UsageError(
                f"{path} cannot be signed with {key}: {error}",
                remedy="Give the PEM file of a private elliptic key without a password.",
            ) from error
        files.write(place, files.read_bytes(made))
    return place


def verify(path: Path, key: Path) -> None:
    """Raise ``BundleError`` unless the holder of the key to ``key`` signed these very bytes."""
    _, verifying = _model_signing()
    place = signature_of(path)
    try:
        files.require_regular(path)
        files.require_regular(place)
        files.require_regular(key)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be verified: {error.filename}: {error.strerror}",
            remedy=f"Give a bundle with {place.name} beside it, and the signer's public key.",
        ) from error
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(path, place)
    except Exception as error:
        raise BundleError(
            f"{path} is not what the holder of {key.name} signed",
            remedy="Do not use it: it was altered, or signed with another key.",
        ) from error


def _model_signing() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need the package model-signing", remedy=MISSING
        ) from error
    return signing, verifying
