"""``levit-export bundle``: one file for the device, with its own check inside."""

from __future__ import annotations

from pathlib import Path

import click

from levit_export.cli import options
from levit_export.cli.command import Verb
from levit_export.core.errors import UsageError

NOT_PASSED = {
    "fail": "failed its check",
    "inconclusive": "has a check that decided nothing",
    "not-run": "has a check that was not run",
}


@click.command(cls=Verb)
@click.argument("folder", type=options.EXISTING)
@click.option(
    "-o", "--output", type=options.EXISTING, help="The zip to write.  [default: FOLDER.zip]"
)
@click.option(
    "-f",
    "--format",
    "formats",
    multiple=True,
    default=("all",),
    show_default=True,
    help="Formats to take; repeat it or separate with commas.",
)
@click.option(
    "--beside",
    multiple=True,
    type=options.EXISTING,
    metavar="DIR",
    help="Another export of the same model, such as one in int8, for the same bundle.",
)
@click.option(
    "--with",
    "extras",
    multiple=True,
    type=click.Choice(["web", "webgpu"]),
    help="web: a page that runs the ONNX file in a browser, offline, and checks it there; "
    "webgpu: the same page, which also runs it on the GPU (27 MB more).",
)
@click.option(
    "--ort-web",
    type=options.EXISTING,
    metavar="DIR",
    help="For --with web: the unpacked npm package onnxruntime-web.  [default: fetched, cached]",
)
@click.option("--offline", is_flag=True, help="Take onnxruntime-web from the cache.")
@click.option(
    "--sign",
    "key",
    type=options.EXISTING,
    metavar="KEY",
    help="Sign the zip with this private elliptic key (PEM) into a file .sig beside it.",
)
@click.option(
    "--certificate",
    type=options.EXISTING,
    metavar="CERTIFICATE",
    help="For --sign: the certificate (PEM) for that key, which goes into the signature.",
)
@click.option(
    "--certificate-chain",
    "chain",
    type=options.EXISTING,
    metavar="FILE",
    help="For --certificate: the certificates (PEM) between it and the root.",
)
@click.option("--allow-failed", is_flag=True, help="Bundle an export that failed its check.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and warnings.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def bundle(
    folder: Path,
    output: Path | None,
    formats: tuple[str, ...],
    extras: tuple[str, ...],
    ort_web: Path | None,
    *,
    beside: tuple[Path, ...],
    key: Path | None,
    certificate: Path | None,
    chain: Path | None,
    offline: bool,
    allow_failed: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Pack an export directory into one zip for the device, with golden vectors and verifiers.

    The same export gives the same bytes. Inside, `python verify.py` checks files, preprocessing
    and outputs with NumPy and the runtime alone.
    """
    from levit_export.core.hashing import file_entry
    from levit_export.storage.device_bundle import contents, signing, write
    from levit_export.storage.export_directory import read_manifest

    del verbose  # which Verb reads
    wanted = _wanted(formats)
    path = output or folder.absolute().with_name(folder.absolute().name + ".zip")
    if key is None and (certificate or chain):
        raise UsageError(
            "--certificate and --certificate-chain need --sign", remedy="Add --sign KEY."
        )
    signer = None if key is None else signing.signer(key, certificate, chain)
    library = _library(extras, ort_web, offline=offline, quiet=quiet)
    write(folder, path, wanted, beside=beside, allow_failed=allow_failed, library=library)
    signature = None if signer is None else signing.sign(path, signer)
    whole, _ = contents.joined({each: read_manifest(each) for each in (folder, *beside)})
    chosen = contents.choose(whole, wanted, allow_failed=allow_failed)
    if chosen.verdict != "pass":
        click.echo(
            f"notice: this export {NOT_PASSED[chosen.verdict]}; the bundle's README says so",
            err=True,
        )
    if not quiet:
        entry = file_entry(path)
        click.echo(f"{path}  {entry.bytes:,} bytes  sha256 {entry.sha256}")
        if signature is not None:
            how = "--verify-key PUBLIC_KEY" if certificate is None else "--verify-certificate ROOT"
            click.echo(f"signed: {signature}; levit-export check {path} {how}")
        click.echo(f"holds {', '.join(a.path for a in chosen.artifacts)}")
        click.echo("on the device: unzip it, then python verify.py --format NAME")
        if library is not None:
            click.echo("in a browser: python -m http.server 8000 --bind 127.0.0.1 in its folder,")
            click.echo("              then http://127.0.0.1:8000/web/")
    return 0


def _library(
    extras: tuple[str, ...], folder: Path | None, *, offline: bool, quiet: bool
) -> dict[str, bytes] | None:
    """The files of ONNX Runtime Web, if the page is wanted."""
    if not extras:
        if folder is not None or offline:
            option = "--offline" if folder is None else f"--ort-web {folder}"
            raise UsageError(
                f"{option} is about the page, which was not asked for", remedy="Add --with web."
            )
        return None
    from levit_export.reports import console
    from levit_export.storage.device_bundle.web import library

    with console.Screen(quiet=quiet).progress() as progress:
        gpu = "webgpu" in extras
        return library.find(folder, gpu=gpu, offline=offline, progress=progress)


def _wanted(formats: tuple[str, ...]) -> tuple[str, ...] | None:
    from levit_export.core.values import FORMAT_ALIASES

    names = [name.lower() for name in options.comma_separated(formats)]
    if not names or "all" in names:
        return None
    return tuple(dict.fromkeys(FORMAT_ALIASES.get(name, name) for name in names))
