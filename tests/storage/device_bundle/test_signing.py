"""A signature tells who made a bundle, which its own hashes cannot."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

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


USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "crl_sign"),
    *("data_encipherment", "key_agreement", "encipher_only", "decipher_only", "key_cert_sign"),
)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two roots; the first certified an authority between, and that one a signer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("authorities")
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    pem = serialization.Encoding.PEM
    keys: dict[str, ec.EllipticCurvePrivateKey] = {}
    found = {}

    def certify(name: str, by: str, *, may_certify: bool) -> None:
        keys[name] = ec.generate_private_key(ec.SECP256R1())
        usage = dict.fromkeys(USAGES, False)
        usage |= {"key_cert_sign": may_certify, "digital_signature": not may_certify}
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, by)]))
            .public_key(keys[name].public_key())
            .serial_number(len(keys))
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=may_certify, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .sign(keys[by], hashes.SHA256())
        )
        found[name] = folder / f"{name}.pem"
        found[name].write_bytes(made.public_bytes(pem))
        found[f"{name} key"] = folder / f"{name}-key.pem"
        found[f"{name} key"].write_bytes(
            keys[name].private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    certify("root", "root", may_certify=True)
    certify("stranger", "stranger", may_certify=True)
    certify("between", "root", may_certify=True)
    certify("signer", "between", may_certify=False)
    return found


def test_signed_with_a_certificate(
    cli: Cli, exported: Exported, tmp_path: Path, authorities: dict[str, Path]
) -> None:
    """Who knows the root accepts what a signer signed whom it certified, and nobody else does."""
    path = tmp_path / "a.zip"
    given = ("--sign", authorities["signer key"], "--certificate", authorities["signer"])
    result = cli(
        *("bundle", exported.folder, "-o", path, *given),
        *("--certificate-chain", authorities["between"]),
    )
    assert result.exit_code == 0, result.output
    assert f"check {path} --verify-certificate ROOT" in result.stdout
    known = cli("check", path, "--verify-certificate", authorities["root"])
    assert known.exit_code == 0, known.output
    assert "signed by somebody whom root.pem certifies" in known.stdout
    unknown = cli("check", path, "--verify-certificate", authorities["stranger"])
    assert unknown.exit_code == 2
    assert "is not what somebody whom stranger.pem certifies signed" in unknown.stderr
    altered = path.read_bytes()
    path.write_bytes(altered[:-1] + bytes([altered[-1] ^ 1]))
    assert cli("check", path, "--verify-certificate", authorities["root"]).exit_code == 2


def test_a_broken_chain(
    cli: Cli, exported: Exported, tmp_path: Path, authorities: dict[str, Path]
) -> None:
    """A signature without the certificates between leads to no root."""
    path = tmp_path / "a.zip"
    given = ("--sign", authorities["signer key"], "--certificate", authorities["signer"])
    assert cli("bundle", exported.folder, "-o", path, *given).exit_code == 0
    assert cli("check", path, "--verify-certificate", authorities["root"]).exit_code == 2


UNFIT = {
    ("--sign", "signer key", "--certificate", "root"): "does not match",
    ("--sign", "signer key", "--certificate", "root key"): "is not a certificate",
    ("--certificate", "signer"): "need --sign",
    ("--sign", "signer key", "--certificate-chain", "between"): "Add --certificate",
}


@pytest.mark.parametrize("given", UNFIT)
def test_certificates_that_cannot_sign(
    given: tuple[str, ...],
    cli: Cli,
    exported: Exported,
    tmp_path: Path,
    authorities: dict[str, Path],
) -> None:
    """They are refused before a bundle is written."""
    path = tmp_path / "a.zip"
    result = cli("bundle", exported.folder, "-o", path, *(authorities.get(g, g) for g in given))
    assert (result.exit_code, path.exists()) == (2, False)
    assert UNFIT[given] in " ".join(result.stderr.split())


def test_a_signed_directory(cli: Cli, copied: Path, keys: dict[str, Path]) -> None:
    """A directory that model-signing's own command signed passes until a file is added."""
    signature = copied.with_name(f"{copied.name}.sig")
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(copied)]
    command += ["--private_key", str(keys["signer private"]), "--signature", str(signature)]
    subprocess.run(command, check=True, capture_output=True)
    key = ("--verify-key", keys["signer public"])
    assert cli("check", copied, *key).exit_code == 0
    (copied / "report.html").write_text("all is well", "utf-8")
    result = cli("check", copied, *key)
    assert result.exit_code == 2
    assert "is not what the holder of signer-public.pem signed" in result.stderr


@pytest.mark.parametrize("who", ["itself", "checkpoint", "signature"])
def test_reports_say_who_vouches(
    who: str, cli: Cli, exported: Exported, tmp_path: Path, keys: dict[str, Path]
) -> None:
    """JSON, Markdown and JUnit say what the screen says of who vouches for a directory."""
    path = tmp_path / "a.zip"
    cli("bundle", exported.folder, "-o", path, "--sign", keys["signer private"])
    options: dict[str, tuple[object, ...]] = {
        "itself": (),
        "checkpoint": ("--model", "levit_digits"),
        "signature": ("--verify-key", keys["signer public"]),
    }
    files = {name: tmp_path / name for name in ("json", "markdown", "junit")}
    given = [part for name, file in files.items() for part in (f"--{name}", file)]
    result = cli("check", path, *options[who], *given)
    assert result.exit_code == 0, result.output
    sentence = {
        "itself": "the directory vouches for itself",
        "checkpoint": "held against a checkpoint",
        "signature": "signed by the holder of signer-public.pem",
    }[who]
    found = json.loads(files["json"].read_text("utf-8"))["vouching"]
    assert found["by"] == who
    assert found["sentence"].startswith(sentence)
    page = files["markdown"].read_text("utf-8").replace("\\", "")
    assert sentence[1:] in page
    (said,) = ET.parse(files["junit"]).iter("property")
    assert said.get("value") == found["sentence"]


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
