"""The groups of an evaluation on a Dask cluster, with the answers that this process would give.

Artifacts and a checkpoint travel as parcels (see ``workflows.cluster``), images in chunks: as the
bytes of their files where there are files, else as pixels. Decoding a file takes longer than
sending it, and a photo as pixels is several times as large, so files are decoded where they are
classified. A worker keeps the sessions of the last artifacts that it was asked about.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from levit_export.core import files
from levit_export.core.errors import LevitExportError
from levit_export.core.progress import Progress, Silent
from levit_export.inputs.images import Entry, ImageSet
from levit_export.inputs.images.decoding import decode
from levit_export.inputs.images.folders import Files
from levit_export.inputs.images.image_set import Read, Unreadable, UnreadableImageError
from levit_export.workflows.cluster import (
    Call,
    Parcel,
    checkpoint_files,
    connected,
    identity,
    parcel,
)
from levit_export.workflows.evaluate.predict import (
    Answers,
    Entrant,
    Weights,
    Workload,
    classified,
    entered,
    merge,
)

GROUPS_EACH = 2
"""Groups in a chunk: enough that sending does not count, few enough that nobody waits long."""

Content = bytes | np.ndarray


@dataclass(frozen=True)
class Carried:
    """A store (``images.image_set.Store``) that holds its images: by position, files or pixels."""

    contents: tuple[Content, ...]

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read single images, as from where they came."""
        with files.temporary_folder() as folder:
            file = folder / "image"

            def read(entry: Entry) -> np.ndarray:
                content = self.contents[entry.position]
                if isinstance(content, np.ndarray):
                    return content
                file.write_bytes(content)
                return decode(file)

            yield read


@dataclass(frozen=True)
class Chunk:
    """Some groups of images on their way. ``places`` are those that they have in the whole set.

    ``groups`` speak of places in ``images``, which has a ``Carried`` store. ``unreadable`` are
    places of images that could not even be read where they lie, and why. ``sha256`` is of the
    images' names and contents, of those that cannot be read by name and place, and of how they
    are grouped.
    """

    images: ImageSet
    groups: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]
    unreadable: tuple[tuple[int, Unreadable], ...]
    sha256: str


@dataclass(frozen=True)
class Setup:
    """A workload but for its images: the same for all of its chunks.

    The paths in it are names below the folders of its parcels: one for each row's artifact, then
    one for the checkpoint where there is one. ``sha256`` is of everything that can change an
    answer.
    """

    workload: Workload
    sha256: str


def run(workload: Workload, scheduler: str, progress: Progress | None = None) -> Answers:
    """The answers to ``workload``, worked out by the workers of the Dask cluster at ``scheduler``.

    Raises what ``cluster.connected``, ``predict.entered`` and ``predict.classified`` raise.
    """
    progress = progress or Silent()
    setup, parcels = packed(workload)
    sent: dict[str, Chunk] = {}

    def calls() -> Iterator[Call]:
        for chunk in chunks(workload.images, workload.groups, GROUPS_EACH):
            key = f"answer-{setup.sha256}-{chunk.sha256}"
            # The cluster holds the images now; what stays here is where they belong.
            sent[key] = replace(chunk, images=replace(chunk.images, store=Carried(())))
            yield Call(key, answer, (setup, chunk), parcels)

    results: dict[str, Answers] = {}
    with connected(scheduler) as cluster:
        try:
            with closing(cluster.run(calls())) as finished:
                for call, found in finished:
                    if isinstance(found, LevitExportError):
                        raise found
                    results[call.key] = found
                    for _ in sent[call.key].groups:
                        progress.advance()
        finally:
            cluster.everywhere(forget)
    parts = []
    for key, chunk in sent.items():
        part, places = results[key], np.array(chunk.places, np.int64)
        unreadable = tuple((chunk.places[row], why) for row, why in part.unreadable)
        unreadable = (*chunk.unreadable, *unreadable)
        parts.append(replace(part, rows=places[part.rows], unreadable=unreadable))
    return merge(parts)


def packed(workload: Workload) -> tuple[Setup, tuple[Parcel, ...]]:
    """A workload without its images, and the files that it names as parcels."""
    parcels, rows = [], []
    for row in workload.rows:
        path = row.artifact.path
        names = {file.relative_to(path.parent).as_posix(): file for file in row.artifact.files}
        parcels.append(parcel(names))
        rows.append(replace(row, artifact=replace(row.artifact, path=Path(path.name))))
    weights = workload.reference
    if weights is not None and (checkpoint := weights.choice.checkpoint) is not None:
        parcels.append(parcel(checkpoint_files(checkpoint)))
        own = replace(weights.choice, checkpoint=Path(checkpoint.absolute().name))
        weights = Weights(own, weights.sha256)
    nothing = ImageSet("", (), Carried(()), "")
    bare = replace(workload, images=nothing, rows=tuple(rows), reference=weights, groups=())
    addresses = [each.sha256 for each in parcels]
    text = repr((addresses, bare, sorted(identity().items())))
    return Setup(bare, hashlib.sha256(text.encode()).hexdigest()), tuple(parcels)


def unpacked(setup: Setup, folders: Sequence[Path]) -> Workload:
    """The workload with the paths that its files have on this worker."""
    workload, weights = setup.workload, setup.workload.reference
    rows = [
        replace(row, artifact=replace(row.artifact, path=folder / row.artifact.path))
        for row, folder in zip(workload.rows, folders, strict=False)  # the checkpoint's comes last
    ]
    if weights is not None and (name := weights.choice.checkpoint) is not None:
        own = replace(weights.choice, checkpoint=folders[-1] / name)
        weights = Weights(own, weights.sha256)
    return replace(workload, rows=tuple(rows), reference=weights)


def chunks(
    images: ImageSet, groups: Sequence[tuple[int, ...]], groups_each: int
) -> Iterator[Chunk]:
    """The groups of ``images``, ``groups_each`` to a chunk; images are read as chunks are taken.

    Raises ``DataError`` for a damaged store.
    """
    with images.store.open() as read:
        for start in range(0, len(groups), groups_each):
            yield _chunk(images, groups[start : start + groups_each], read)


def _chunk(images: ImageSet, groups: Sequence[tuple[int, ...]], read: Read) -> Chunk:
    entries: list[Entry] = []
    contents: list[Content] = []
    places: list[int] = []
    unreadable: list[tuple[int, Unreadable]] = []
    carried: list[tuple[int, ...]] = []
    digest = hashlib.sha256()
    for group in groups:
        first = len(entries)
        for place in group:
            entry = images.entries[place]
            try:
                content = _content(images, entry, read)
            except UnreadableImageError as error:
                unreadable.append((place, Unreadable(entry.name, str(error))))
                digest.update(f"{entry.name}\0unreadable {place}\0{error}".encode())
                continue
            digest.update(f"{entry.name}\0".encode() + _described(content))
            entries.append(replace(entry, position=len(contents)))
            contents.append(content)
            places.append(place)
        carried.append(tuple(range(first, len(entries))))
        digest.update(b"group")
    whole = replace(images, entries=tuple(entries), store=Carried(tuple(contents)))
    return Chunk(whole, tuple(carried), tuple(places), tuple(unreadable), digest.hexdigest())


def _content(images: ImageSet, entry: Entry, read: Read) -> Content:
    """The bytes of a file that has some; else what reading gives, which is mostly a reason."""
    if isinstance(images.store, Files):
        path = images.store.root / entry.name
        try:
            content = files.read_bytes(path)
        except OSError:
            content = b""
        if content:
            return content
    return read(entry)


def _described(content: Content) -> bytes:
    if isinstance(content, np.ndarray):
        head = f"pixels {content.shape} {content.dtype}"
        return head.encode() + hashlib.sha256(np.ascontiguousarray(content).data).digest()
    return b"file" + hashlib.sha256(content).digest()


_LOCK = threading.Lock()
# All chunks of an evaluation need the same sessions, so they stay open between calls.
_HELD: dict[str, tuple[ExitStack, tuple[Entrant, ...]]] = {}
"""In a worker: the sessions of the last setup, by its digest."""


def answer(setup: Setup, chunk: Chunk, *folders: Path) -> Answers:
    """The answers to one chunk; runs in a worker, one at a time whatever its threads.

    PyTorch's thread count is the process's, and not every runtime's session takes two callers.
    """
    with _LOCK:
        if setup.sha256 not in _HELD:
            _close_all()
            with ExitStack() as stack:
                opened = stack.enter_context(entered(unpacked(setup, folders)))
                _HELD[setup.sha256] = stack.pop_all(), opened
        _, entrants = _HELD[setup.sha256]
        return classified(replace(setup.workload, images=chunk.images), entrants, chunk.groups)


def forget() -> None:
    """Close a worker's sessions, unless somebody is using them."""
    if _LOCK.acquire(blocking=False):
        try:
            _close_all()
        finally:
            _LOCK.release()


def _close_all() -> None:
    while _HELD:
        _HELD.popitem()[1][0].close()
