"""The page of a bundle in headless Chromium, on Python's own file server.

Needs chromium and chromedriver (Debian: ``chromium``, ``chromium-driver``), and the files of
onnxruntime-web: an unpacked npm package named by ``ONNXRUNTIME_WEB``, or the tarball in the cache.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, PATIENCE, Browser, browsing, served
from PIL import Image
from support import Cli, Exported
from tiny_exports import make_export

from levit_export.checks import reference
from levit_export.core.errors import DownloadError
from levit_export.inputs import preprocessing, samples
from levit_export.inputs.images.decoding import decode
from levit_export.models import loading
from levit_export.storage import device_bundle, export_directory
from levit_export.storage.device_bundle import golden
from levit_export.storage.device_bundle import web as page_files
from levit_export.storage.device_bundle.golden import picture
from levit_export.storage.device_bundle.web import library

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium with chromedriver (apt-get install chromium chromium-driver)",
)

DIGITS = slice(0, 360, 6)
"""60 of the held-out digits."""

READ, RESIZED, FED, ANSWERED, WHOLE = CHECKS = (
    "Pictures are read as they were saved",
    "Pictures are resized and cropped as in training",
    "The model is fed the same numbers",
    "The model gives PyTorch's answers",
    "No file was changed",
)

TAB, ENTER = "\ue004", "\ue007"
"""Keys as WebDriver calls them."""


@pytest.fixture(scope="session")
def runtime() -> dict[str, bytes]:
    """The files of onnxruntime-web."""
    folder = os.environ.get("ONNXRUNTIME_WEB")
    try:
        return library.find(Path(folder) if folder else None, offline=True)
    except DownloadError as error:
        pytest.skip(f"no onnxruntime-web: set ONNXRUNTIME_WEB to an unpacked package ({error})")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def laid_out(
    export: Path, folder: Path, runtime: dict[str, bytes], beside: Sequence[Path] = ()
) -> Path:
    """The unpacked bundle, with its page, of an export and those ``beside`` it."""
    zipped = device_bundle.write(
        export, folder / "b.zip", ("onnx",), beside=beside, library=runtime
    )
    shutil.unpack_archive(zipped, folder / "unpacked", "zip")
    return folder / "unpacked"


@pytest.fixture(scope="session")
def digits(
    exported: Exported, runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundled model's bundle, unpacked; do not change its files."""
    return laid_out(exported.folder, tmp_path_factory.mktemp("digits"), runtime)


@pytest.fixture(scope="session")
def address(digits: Path) -> Iterator[str]:
    """The address of the digits' page."""
    with served(digits) as found:
        yield f"{found}/web/"


@pytest.fixture
def page(browser: Browser, address: str) -> Browser:
    """The browser with the digits' page, loaded anew and ready."""
    browser.open(address)
    browser.complaints()
    assert browser.settle() == "ready", browser.text("body")
    return browser


@pytest.fixture
def modules(browser: Browser, address: str) -> Browser:
    """The browser at the page's origin, where its modules can be imported, without the page."""
    browser.open(address.replace("/web/", "/labels.txt"))
    return browser


def verdicts(browser: Browser) -> dict[str, str]:
    """The verdict of each check that the page shows."""
    script = """return [...document.querySelectorAll('#checks li')].map((item) =>
        [item.querySelector('span:last-child').firstChild.data, item.dataset.verdict])"""
    return dict(browser.run(script))


def answers(browser: Browser) -> list[tuple[int, float]]:
    """The classes that the page shows, best first, with their probabilities."""
    script = """return [...document.querySelectorAll('#classes li')].map((item) =>
        [Number(item.dataset.place), Number(item.dataset.share)])"""
    return [(int(place), float(share)) for place, share in browser.run(script)]


def test_golden_vectors_pass(browser: Browser, address: str) -> None:
    """Every check passes, nothing is complained of, and no other host is asked for anything."""
    browser.requests()
    browser.complaints()
    browser.open(address)
    assert browser.settle() == "ready"
    assert verdicts(browser) == dict.fromkeys(CHECKS, "pass")
    assert browser.text("#verdict").startswith("Yes. All 5 checks pass")
    assert browser.complaints() == []
    asked = browser.requests()
    assert address in asked
    root = address.removesuffix("web/")
    assert [each for each in asked if not each.startswith((root, f"blob:{root}"))] == []


def test_digits_get_pytorchs_answers(
    page: Browser, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out digits, chosen as files, get PyTorch's classes and its probabilities.

    ``|dp| <= max|dz| / 2`` for p = softmax(z), and ``max|dz|`` is what the export allows.
    """
    manifest = export_directory.read_manifest(digits)
    checkpoint = loading.load(loading.ModelChoice())
    images = samples.held_out_digits()[0][DIGITS]
    inputs = np.stack([preprocessing.apply(manifest.model.preprocessing, i) for i in images])
    session = reference.eager_session(checkpoint, threads=1)
    logits = session.run({"input": inputs})["logits"].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    tolerance = manifest.golden.tolerances["fp32"]["logits"]
    allowed = (tolerance.atol + max(tolerance.rtol) * np.abs(logits).max(axis=1)) / 2
    same, furthest = 0, 0.0
    for row, image in enumerate(images):
        path = tmp_path / f"{row}.png"
        Image.fromarray(image).save(path)
        page.give("#file", path)
        assert page.settle() == "ready"
        found = answers(page)
        assert len(found) == 5
        same += found[0][0] == logits[row].argmax()
        apart = max(abs(share - shares[row, place]) for place, share in found)
        furthest = max(furthest, apart / allowed[row])
    with capsys.disabled():
        sys.stdout.write(
            f"\nbrowser and PyTorch agree on {same} of {len(images)} held-out digits; "
            f"probabilities lie within {furthest:.0%} of what is allowed\n"
        )
    assert same == len(images)
    assert furthest <= 1
    assert "median of" in page.text("#latency")
    assert page.complaints() == []


def test_a_model_that_normalises_by_itself(
    browser: Browser, runtime: dict[str, bytes], tmp_path: Path
) -> None:
    """A model with a uint8 input is fed pixels, and has more outputs than one."""
    export = make_export(tmp_path / "tiny", raw=True)
    with served(laid_out(export, tmp_path, runtime)) as place:
        browser.open(f"{place}/web/")
        assert browser.settle() == "ready"
        assert set(verdicts(browser).values()) == {"pass"}
        assert len(verdicts(browser)) == 5


def test_known_answers_stand_side_by_side(page: Browser, digits: Path) -> None:
    """Each golden picture is seen with PyTorch's answer and with the one given here."""
    manifest = export_directory.read_manifest(digits)
    described = json.loads((digits / "bundle.json").read_text("utf-8"))["images"]
    logits = np.load(digits / "golden" / "logits.npy")
    script = """return [...document.querySelectorAll('#examples li')].map((item) =>
        [item.querySelector('img').alt, item.querySelector('img').naturalWidth,
         ...[...item.querySelectorAll('.told span')].map((each) => each.innerText)])"""
    shown = page.run(script)
    assert len(shown) == min(16, sum(each["row"] is not None for each in described.values()))
    for name, width, expected, given in shown:
        assert width > 0
        best = manifest.model.labels[logits[described[name]["row"]].argmax()]
        assert expected.startswith(f"PyTorch: {best}, ")
        assert given == expected.replace("PyTorch", "here")


def test_results_that_the_page_saves(
    page: Browser, digits: Path, cli: Cli, tmp_path: Path
) -> None:
    """What this browser measured is a row with its latency; an altered file is refused."""
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.querySelector('#sustain').value = '0.2'")
    page.run("document.querySelector('#save').click()")
    assert page.settle() == "ready", page.text("body")
    file = tmp_path / "levit_digits-results.json"
    end = time.monotonic() + PATIENCE
    while not file.exists():
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.02)
    result = cli("check", digits, "--results", file, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert "onnx-fp32 (browser, wasm)" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    (row,) = [each for each in report["artifacts"] if each["device"]]
    assert (row["parity"]["verdict"], row["parity"]["samples"]) == ("pass", 26)
    assert len(row["timing"]["seconds"]) >= 50
    assert row["timing"]["regimes"]["sustained_seconds"]
    altered = bytearray(file.read_bytes())
    altered[len(altered) // 2] ^= 1
    file.write_bytes(altered)
    refused = cli("check", digits, "--results", file)
    assert (refused.exit_code, "cannot be taken for results" in refused.stderr) == (2, True)


def test_a_changed_answer_stands_out(browser: Browser, digits: Path, tmp_path: Path) -> None:
    """Where the answer given here is another, both are there and the second is marked."""
    folder = shutil.copytree(digits, tmp_path / "copy", copy_function=os.link)
    described = json.loads((folder / "bundle.json").read_text("utf-8"))["images"]
    name = next(name for name in described if name.startswith("real-"))
    logits = np.load(folder / "golden" / "logits.npy")
    row = described[name]["row"]
    logits[row] = np.roll(logits[row], 1)
    replace(folder / "golden/logits.npy", golden.encode_array(logits))
    with served(folder) as place:
        browser.open(f"{place}/web/")
        assert browser.settle() == "ready"
        script = """const marked = [...document.querySelectorAll('#examples .fail')];
            return marked.map((each) => each.closest('li').querySelector('img').alt)"""
        assert browser.run(script) == [name]


@pytest.fixture(scope="session")
def several(cli: Cli, runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two ONNX files of one model, and the runtime for GPUs."""
    folder = tmp_path_factory.mktemp("several")
    for precision in ("fp32", "fp16"):  # one after the other: golden vectors have to be the same
        options = ("--format", "onnx", "--precision", precision, "--no-bench")
        result = cli("export", *options, "--output", folder / precision)
        assert result.exit_code == 0, result.output
    return laid_out(folder / "fp32", folder, {**runtime, **GPU}, beside=(folder / "fp16",))


GPU = dict.fromkeys(library.GPU_FILES, b"throw new Error('this runtime does not start');")
"""Stands for the runtime for GPUs where none is to be had: it does not start."""


def test_files_are_compared(browser: Browser, several: Path) -> None:
    """Several files are run on one picture: answer, latency, size, and whether they are right."""
    with served(several) as place:
        browser.open(f"{place}/web/")
        assert browser.settle() == "ready"
        browser.run("document.querySelector('#compare').click()")
        assert browser.settle() == "ready"
        script = """return [...document.querySelectorAll('#files tr')].map((row) =>
            [...row.children].map((cell) => cell.innerText))"""
        found = browser.run(script)
        assert [row[0] for row in found] == [
            f"onnx-{precision}/levit_digits.onnx" for precision in ("fp32", "fp16")
        ]
        assert len({row[1] for row in found}) == 1
        for name, _, share, median, size, judged in found:
            assert share.endswith(" %")
            assert median.endswith(" ms")
            assert size == f"{(several / name).stat().st_size / 1e6:.2f} MB"
            assert judged.startswith("pass ")
        # The file that was chosen is the one that goes on.
        browser.run(
            """const chosen = document.querySelector('#variant');
            chosen.selectedIndex = 1; chosen.dispatchEvent(new Event('change'));"""
        )
        assert browser.settle() == "ready"
        assert verdicts(browser) == dict.fromkeys(CHECKS, "pass")


def test_without_a_gpu(browser: Browser, several: Path) -> None:
    """A page that could use a GPU says why it does not, and passes on the CPU."""
    with served(several) as place:
        browser.open(f"{place}/web/")
        assert browser.settle() == "ready"
        assert "CPU" in browser.text("#about")
        assert "CPU" in browser.text("#fallback")
        assert verdicts(browser) == dict.fromkeys(CHECKS, "pass")


@pytest.fixture(scope="session")
def with_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that has a GPU, which is computed."""
    with browsing(tmp_path_factory.mktemp("profile"), gpu=True) as found:
        yield found


def refuse_gpu(browser: Browser) -> None:
    """Skip where the browser computes no GPU after all."""
    if "no GPU" in browser.text("#fallback") or "no WebGPU" in browser.text("#fallback"):
        pytest.skip(f"no WebGPU in this Chromium: {browser.text('#fallback')}")


def test_on_a_gpu(with_gpu: Browser, tiny: Path, tmp_path: Path) -> None:
    """Where the browser has a GPU the model runs on it, and the same checks pass there."""
    folder = os.environ.get("ONNXRUNTIME_WEB")
    try:
        library_files = library.find(Path(folder) if folder else None, gpu=True, offline=True)
    except DownloadError as error:
        pytest.skip(f"no onnxruntime-web: set ONNXRUNTIME_WEB to an unpacked package ({error})")
    with served(laid_out(tiny, tmp_path, library_files)) as place:
        with_gpu.complaints()
        with_gpu.open(f"{place}/web/")
        assert with_gpu.settle() == "ready", with_gpu.text("body")
        refuse_gpu(with_gpu)
        assert "(GPU)" in with_gpu.text("#about")
        assert verdicts(with_gpu) == dict.fromkeys(CHECKS, "pass")
        assert with_gpu.complaints() == []
        with_gpu.run(
            """const unit = document.querySelector('#unit');
            unit.value = 'wasm'; unit.dispatchEvent(new Event('change'));"""
        )
        assert with_gpu.settle() == "ready"
        assert "(CPU" in with_gpu.text("#about")
        assert verdicts(with_gpu) == dict.fromkeys(CHECKS, "pass")


def test_a_gpu_that_fails(with_gpu: Browser, several: Path) -> None:
    """What does not start on the GPU is left with its reason, and the CPU takes over."""
    with served(several) as place:
        with_gpu.open(f"{place}/web/")
        assert with_gpu.settle() == "ready"
        refuse_gpu(with_gpu)
        assert "tried and left" in with_gpu.text("#fallback")
        assert "does not start" in with_gpu.text("#fallback")
        assert "(CPU" in with_gpu.text("#about")
        assert verdicts(with_gpu) == dict.fromkeys(CHECKS, "pass")


def test_threads_where_the_page_may_have_them(browser: Browser, digits: Path) -> None:
    """A server that isolates the page gives it threads, and the answers stay PyTorch's."""
    headers = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
    }
    with served(digits, headers) as place:
        browser.complaints()
        browser.open(f"{place}/web/")
        assert browser.settle() == "ready", browser.text("body")
        count = min(browser.run("return navigator.hardwareConcurrency"), 8)
        words = "one thread" if count == 1 else f"{count} threads"
        assert words in browser.text("#about")
        assert verdicts(browser) == dict.fromkeys(CHECKS, "pass")
        assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nobody_is_kept_out(page: Browser, *, dark: bool) -> None:
    """axe-core finds nothing, with an answer shown and everything unfolded, on a telephone."""
    page.show(390, 800, dark=dark)
    page.run("document.querySelector('#examples button').click()")
    assert page.settle() == "ready"
    page.run("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert page.barriers() == []
    assert page.run("return document.documentElement.scrollWidth") <= 390


# A check that cannot fail is none


def altered_cropped(folder: Path) -> None:
    """One level in one pixel of what a resize gives."""
    path = folder / "golden/cropped/resize-landscape.npy"
    pixels = np.load(path)
    pixels[3, 4, 1] ^= 1
    replace(path, golden.encode_array(pixels))


def altered_input(folder: Path) -> None:
    """The last bit of one number of the golden input."""
    path = folder / "golden/input.npy"
    inputs = np.load(path)
    row = export_directory.read_manifest(folder).golden.samples.index("gradient")
    inputs[row, 0, 5, 5] = np.nextafter(inputs[row, 0, 5, 5], np.float32(9))
    replace(path, golden.encode_array(inputs))


def altered_image(folder: Path) -> None:
    """One level in one pixel of a PNG."""
    pixels = np.load(folder / "golden/pixels/gradient.npy")
    pixels[0, 0, 0] ^= 1
    replace(folder / "golden/images/gradient.png", golden.encode_png(pixels))


def altered_reference(folder: Path) -> None:
    """One answer of PyTorch, by twice what is allowed."""
    logits = np.load(folder / "golden/logits.npy")
    allowed = np.load(folder / "golden/allowed/fp32/logits.npy")
    logits[-1, 0] += 2 * allowed[-1]
    replace(folder / "golden/logits.npy", golden.encode_array(logits))


def not_a_number(folder: Path) -> None:
    """NaN among PyTorch's answers."""
    logits = np.load(folder / "golden/logits.npy")
    logits[0, 0] = np.nan
    replace(folder / "golden/logits.npy", golden.encode_array(logits))


def replace(path: Path, content: bytes) -> None:
    """Another file in the place of ``path``, which is a link to one that must not change."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("alter", "check"),
    [
        (altered_cropped, RESIZED),
        (altered_input, FED),
        (altered_image, READ),
        (altered_reference, ANSWERED),
        (not_a_number, ANSWERED),
    ],
)
def test_what_is_wrong_fails(
    browser: Browser, digits: Path, tmp_path: Path, alter: Any, check: str
) -> None:
    """A golden file that is off by the least fails the check that is about it, and the hash."""
    folder = shutil.copytree(digits, tmp_path / "copy", copy_function=os.link)
    alter(folder)
    with served(folder) as place:
        browser.open(f"{place}/web/")
        assert browser.settle() == "ready"
        assert verdicts(browser)[check] == "fail"
        assert verdicts(browser)[WHOLE] == "fail"
        assert "checks failed" in browser.text("#status")


def test_a_damaged_model(browser: Browser, digits: Path, tmp_path: Path) -> None:
    """A model that cannot be loaded is said to be so, and no image is taken."""
    folder = shutil.copytree(digits, tmp_path / "copy", copy_function=os.link)
    (path,) = folder.glob("onnx-fp32/*.onnx")
    replace(path, path.read_bytes()[:5000])
    with served(folder) as place:
        browser.open(f"{place}/web/")
        assert browser.settle() == "failed"
        assert browser.text("#status")
        assert browser.run("return document.querySelector('#file').disabled")
        assert verdicts(browser) == {}


# Using it


def test_opened_as_a_file(browser: Browser) -> None:
    """Opened without a server, the page says what to do."""
    path = Path(str(resources.files(page_files.__name__) / "index.html"))
    browser.open(path.as_uri())
    browser.until(
        "getComputedStyle(document.getElementById('not-started')).visibility == 'visible'"
    )
    assert "python -m http.server" in browser.text("main")
    assert browser.run("return document.getElementById('app').hidden")


def test_a_file_is_dropped(page: Browser, tmp_path: Path) -> None:
    """An image dropped anywhere is classified; the page is not left for it."""
    image = samples.held_out_digits()[0][0]
    Image.fromarray(image).save(tmp_path / "digit.png")
    raw = base64.b64encode((tmp_path / "digit.png").read_bytes()).decode()
    script = """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], 'digit.png', { type: 'image/png' }));
        const fields = { dataTransfer, bubbles: true, cancelable: true };
        return document.querySelector('h1').dispatchEvent(new DragEvent('drop', fields));"""
    is_left_to_the_browser = page.run(script, raw)
    assert not is_left_to_the_browser
    assert page.settle() == "ready"
    assert page.text("#status").startswith("Answer: ")
    assert len(answers(page)) == 5


def test_a_picture_is_pasted(page: Browser, tmp_path: Path) -> None:
    """An image from the clipboard is classified; pasted text is left to the browser."""
    Image.fromarray(samples.held_out_digits()[0][0]).save(tmp_path / "digit.png")
    raw = base64.b64encode((tmp_path / "digit.png").read_bytes()).decode()
    script = """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const clipboardData = new DataTransfer();
        if (arguments[1]) clipboardData.setData('text/plain', 'words');
        else clipboardData.items.add(new File([bytes], 'digit.png', { type: 'image/png' }));
        const fields = { clipboardData, bubbles: true, cancelable: true };
        return document.body.dispatchEvent(new ClipboardEvent('paste', fields));"""
    assert page.run(script, raw, "text")
    assert page.run("return document.querySelector('#answer').hidden")
    assert not page.run(script, raw, "")
    assert page.settle() == "ready"
    assert page.text("#status").startswith("Answer: ")


def test_the_camera(page: Browser) -> None:
    """A picture of the camera is classified, and the camera is off afterwards."""
    page.run("document.querySelector('#camera').click()")
    assert page.settle() == "ready", page.text("#status")
    assert page.run("return document.querySelector('#video').srcObject.active")
    page.run("document.querySelector('#take').click()")
    page.until("document.querySelector('#status').innerText.startsWith('Answer: ')")
    assert len(answers(page)) == 5
    assert page.run("return document.querySelector('#video').srcObject") is None
    assert page.run("return document.querySelector('#viewfinder').hidden")
    page.run("document.querySelector('#camera').click()")
    assert page.settle() == "ready"
    page.run("document.querySelector('#close').click()")
    assert page.run("return document.querySelector('#video').srcObject") is None
    assert page.complaints() == []


def test_by_keyboard(page: Browser) -> None:
    """Every control is reached with Tab; a golden image is classified and keeps the focus."""
    for name in ("file", "camera"):
        page.press(TAB)
        assert page.run("return document.activeElement.id") == name
    page.press(TAB)
    in_examples = "return document.activeElement.closest('#examples') !== null"
    assert page.run(in_examples)
    page.press(ENTER)
    page.until("document.querySelectorAll('#classes li').length == 5")
    assert page.settle() == "ready"
    assert page.run(in_examples)


def test_a_file_that_is_no_image(page: Browser, tmp_path: Path) -> None:
    """It is refused in words, no earlier answer stays, and the next image is taken."""
    Image.fromarray(samples.held_out_digits()[0][0]).save(tmp_path / "digit.png")
    page.give("#file", tmp_path / "digit.png")
    assert page.settle() == "ready"
    assert not page.run("return document.querySelector('#answer').hidden")
    (tmp_path / "notes.png").write_text("no image", encoding="utf-8")
    page.give("#file", tmp_path / "notes.png")
    assert page.settle() == "failed"
    assert "cannot read that file as an image" in page.text("#status")
    assert page.run("return document.querySelector('#answer').hidden")
    page.give("#file", tmp_path / "digit.png")
    assert page.settle() == "ready"


def test_transparency_is_told_of(page: Browser, tmp_path: Path) -> None:
    """An image with transparent pixels comes with a remark, an opaque one without."""
    for alpha, is_told in ((100, True), (255, False)):
        Image.new("RGBA", (30, 20), (200, 100, 50, alpha)).save(tmp_path / "image.png")
        page.give("#file", tmp_path / "image.png")
        assert page.settle() == "ready"
        assert ("transparent" in page.text("#remark")) is is_told


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(modules: Browser, tmp_path: Path, orientation: int) -> None:
    """A photograph is turned as its EXIF says: of all eight ways Python's is the nearest."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"{orientation}.jpg"
    Image.fromarray(picture(48, 80)).save(path, exif=exif, quality=95)
    raw = base64.b64encode(path.read_bytes()).decode()
    script = """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        return import('/web/decode.js')
            .then(({ decode }) => decode(new Blob([bytes], { type: 'image/jpeg' })))
            .then(({ width, height, data }) => [width, height, [...data]])"""
    width, height, data = modules.run(script, raw)
    found = np.reshape(data, (height, width, 3)).astype(float)
    wanted = decode(path)
    assert found.shape == wanted.shape
    others = [np.rot90(side, turns) for side in (wanted, wanted[:, ::-1]) for turns in range(4)]
    off = [np.abs(found - o).mean() for o in others if o.shape == found.shape]
    assert off.index(min(off)) == 0
    assert off[0] < min(off[1:])


def test_without_a_secure_context(browser: Browser, address: str) -> None:
    """Where the browser does not hash, files count as not checked, and the rest passes."""
    browser.open(address.replace("127.0.0.1", "insecure.test"))
    assert browser.settle() == "ready"
    assert verdicts(browser).pop(WHOLE) == "not run"
    assert "others were not run" in browser.text("#verdict")
    assert list(verdicts(browser).values()).count("pass") == 4
