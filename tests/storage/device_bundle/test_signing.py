"""A signature tells who made a bundle, which its own hashes cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Cli, Exported

pytest.importorskip("model_signing", reason="the extra [sign] is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A signer's pair of keys, and the public key of somebody else."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    pem = serialization.Encoding.PEM
    found = {}
    for name in ("signer", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            pem, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for kind, content in {"private": private, "public": public}.items():
            found[f"{name} {kind}"] = folder / f"{name}-{kind}.pem"
            found[f"{name} {kind}"].write_bytes(content)
    return found


def test_signed_and_verified(
    cli: Cli, exported: Exported, tmp_path: Path, keys: dict[str, Path]
) -> None:
    """What was signed passes with the signer's key, and with no other."""
    path = tmp_path / "a.zip"
    result = cli("bundle", exported.folder, "-o", path, "--sign", keys["signer private"])
    assert result.exit_code == 0, result.output
    assert f"signed: {path}.sig" in result.stdout
    assert cli("check", path, "--verify-key", keys["signer public"]).exit_code == 0
    other = cli("check", path, "--verify-key", keys["other public"])
    assert other.exit_code == 2
    assert "is not what the holder of other-public.pem signed" in other.stderr


def test_another_bundle_under_the_signature(
    cli: Cli, exported: Exported, tmp_path: Path, keys: dict[str, Path], copied: Path
) -> None:
    """A bundle that is whole in itself, but is not the one that was signed, is refused."""
    path = tmp_path / "a.zip"
    cli("bundle", exported.folder, "-o", path, "--sign", keys["signer private"])
    (copied / "report.json").unlink()
    changed = tmp_path / "b.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        assert cli("bundle", copied, "-o", changed).exit_code == 0
    assert cli("check", changed).exit_code == 0
    changed.replace(path)
    result = cli("check", path, "--verify-key", keys["signer public"])
    assert result.exit_code == 2
    assert "was altered, or signed with another key" in result.stderr


def test_no_signature(cli: Cli, exported: Exported, tmp_path: Path, keys: dict[str, Path]) -> None:
    """A bundle without a signature does not pass where one is asked for."""
    path = tmp_path / "a.zip"
    cli("bundle", exported.folder, "-o", path)
    result = cli("check", path, "--verify-key", keys["signer public"])
    assert result.exit_code == 2
    assert "a.zip.sig beside it" in result.stderr


def test_a_key_that_cannot_sign(
    cli: Cli, exported: Exported, tmp_path: Path, keys: dict[str, Path]
) -> None:
    """A public key is refused before a bundle is written."""
    path = tmp_path / "a.zip"
    result = cli("bundle", exported.folder, "-o", path, "--sign", keys["signer public"])
    assert (result.exit_code, path.exists()) == (2, False)
    assert "is not a private key" in result.stderr
