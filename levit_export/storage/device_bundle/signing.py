"""Signatures by OpenSSF's model signing, with an elliptic key or a certificate; without a network.

A bundle vouches for itself by the hashes in it, which whoever alters it can make anew. A signature
in a file beside it says that the holder of a key made these bytes; with a certificate the reader
has to know an authority only, and not each signer's key. Times and revocations are not looked at:
model-signing holds a certificate to be valid at the moment from which on it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from levit_export.core import files
from levit_export.core.errors import BundleError, MissingDependencyError, UsageError

SUFFIX = ".sig"
MISSING = "pip install 'levit-export[sign]'"
NEW_KEY = "Make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def signature_of(path: Path) -> Path:
    """Where the signature of the bundle at ``path`` lies."""
    return path.with_name(path.name + SUFFIX)


def signer(key: Path, certificate: Path | None = None, chain: Path | None = None) -> Any:
    """What signs with the private ``key``, and with a certificate for it where one is given.

    ``chain`` are certificates between that one and the authority that readers know. Raises
    ``UsageError`` where the key, or it and the certificate, cannot sign, so before anything is
    written.
    """
    signing, _ = _model_signing()
    _refuse_other(key, b"PRIVATE KEY", "a private key", NEW_KEY)
    if certificate is None:
        if chain is not None:
            raise UsageError(
                "a chain of certificates leads from a certificate to its authority",
                remedy="Add --certificate, or leave out --certificate-chain.",
            )
        words, remedy = str(key), "Give the PEM file of a private elliptic key without a password."
    else:
        words = f"{key} and {certificate}"
        remedy = "Give a private elliptic key without a password, and a certificate for that key."
        for path in (certificate, *([] if chain is None else [chain])):
            _refuse_other(path, b"BEGIN CERTIFICATE", "a certificate", "Give PEM files.")
    try:
        if certificate is None:
            return signing.Config().use_elliptic_key_signer(private_key=key)
        return signing.Config().use_certificate_signer(
            private_key=key,
            signing_certificate=certificate,
            # A chain of no certificates is refused as malformed; the signer's own adds nothing.
            certificate_chain=[chain or certificate],
        )
    except Exception as error:
        raise UsageError(f"nothing can be signed with {words}: {error}", remedy=remedy) from error


def _refuse_other(path: Path, mark: bytes, kind: str, remedy: str) -> None:
    """Raise for a file that is not the PEM that it is given as."""
    try:
        text = files.read_bytes(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", remedy="Check its path."
        ) from error
    if mark not in text:
        raise UsageError(f"{path} is not {kind}", remedy=remedy)


def sign(path: Path, with_: Any) -> Path:
    """Sign the bundle at ``path`` with a :func:`signer`; gives the signature's file."""
    place = signature_of(path)
    with files.temporary_folder() as folder:
        made = folder / place.name
        try:
            with_.sign(path, made)
        except Exception as error:
            raise UsageError(
                f"{path} cannot be signed: {error}",
                remedy="Give the PEM file of a private elliptic key without a password.",
            ) from error
        files.write(place, files.read_bytes(made))
    return place


def verify(path: Path, *, key: Path | None = None, authority: Path | None = None) -> str:
    """Raise ``BundleError`` unless these very bytes, or files of a directory, were signed.

    By the holder of the key to ``key``, or by whoever has a certificate of ``authority``, which is
    a file of root certificates. Gives who that is, in words.
    """
    _, verifying = _model_signing()
    place = signature_of(path)
    known = key or authority
    if known is None:
        raise ValueError("neither a key nor an authority is known")
    try:
        for part in (place, known, *([] if path.is_dir() else [path])):
            files.require_regular(part)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be verified: {error.filename}: {error.strerror}",
            remedy=f"Give a bundle or a directory with {place.name} beside it, and the signer's "
            "public key, or the root certificate of who certified the signer.",
        ) from error
    config = verifying.Config()
    if key is not None:
        who = f"the holder of {key.name}"
    else:
        who = f"somebody whom {known.name} certifies"
    try:
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=[known])
        config.verify(path, place)
    except Exception as error:
        raise BundleError(
            f"{path} is not what {who} signed",
            remedy="Do not use it: it was altered, or signed with another key.",
        ) from error
    return who


def _model_signing() -> tuple[Any, Any]:
    try:
        from model_signing import signing, verifying
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need the package model-signing", remedy=MISSING
        ) from error
    return signing, verifying
