"""What artifacts on disk are held against, and what is wrong with what they say of themselves.

An export directory brings golden vectors; where a model is named, a fresh reference takes their
place. What a file says is compared with what its graph is, and with what is known from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import claims, execution, reference
from levit_export.checks.claims import Known
from levit_export.checks.reference import Reference
from levit_export.core.errors import MissingDependencyError, UsageError
from levit_export.core.packages import needs
from levit_export.core.precisions import CALIBRATED
from levit_export.core.progress import Progress
from levit_export.core.values import Artifact, Calibration, Embedded, Signature
from levit_export.formats import target
from levit_export.models import loading
from levit_export.models.loading import ModelChoice
from levit_export.storage import export_directory
from levit_export.storage.located import Located

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.storage.export_directory import Manifest
    from levit_export.workflows.check import CheckRequest


@dataclass
class CheckedModel:
    """The model that artifacts are held against, loaded and computed once for all of them."""

    request: CheckRequest
    progress: Progress
    _loaded: Checkpoint | None = field(default=None, init=False)
    _answered: reference.Answered | None = field(default=None, init=False)
    _made: dict[object, Reference] = field(default_factory=dict, init=False)
    _tensors: dict[object, dict[str, np.ndarray]] = field(default_factory=dict, init=False)

    @property
    def checkpoint(self) -> Checkpoint:
        """What the request names."""
        if self._loaded is None:
            self.progress.stage("computing the reference")
            self._loaded = loading.load(self.request.choice, self.progress)
        return self._loaded

    def reference(self, keep: Mapping[str, tuple[str, ...]]) -> Reference:
        """The answers, and tolerances for the precisions in ``keep`` and their blocks in float."""
        if self._answered is None:
            self._answered = reference.answered(self.checkpoint, seed=self.request.seed)
        for precision, blocks in keep.items():
            if (precision, blocks) not in self._made:
                self._made[precision, blocks] = reference.with_tolerances(
                    self._answered,
                    {precision},
                    overrides=self.request.overrides,
                    calibration=self._calibration() if precision in CALIBRATED else None,
                    keep={precision: blocks},
                )
        made = [self._made[of] for of in keep.items()]
        tolerances = {p: of for each in made for p, of in each.tolerances.items()}
        whole = replace(made[0], tolerances=tolerances)
        return reference.completed(whole, self.checkpoint.describe())

    def _calibration(self) -> Calibration | None:
        request = self.request
        return loading.calibration(
            self.checkpoint, request.data, count=request.calibration_images, seed=request.seed
        )

    def weights(self, passes: frozenset[str], *, raw: bool) -> dict[str, np.ndarray]:
        """The tensors that the passes make; with ``raw`` those that normalise pixels as well."""
        from levit_export.models.passes import PASSES
        from levit_export.models.preparation import capture, rewrite

        if (passes, raw) not in self._tensors:
            skip = [each.name for each in PASSES if each.name not in passes]
            rewritten = rewrite(self.checkpoint, skip=skip)
            made = capture(rewritten, 1, Embedded(preprocessing=raw))
            self._tensors[passes, raw] = dict(made.weights)
        return self._tensors[passes, raw]


@dataclass(frozen=True)
class Expectations:
    """What artifacts are held against, and what is wrong with what they say.

    ``suspects`` are artifacts as their files have them, where that is not as it was said.
    """

    reference: Reference
    claims: Mapping[Artifact, tuple[str, ...]] = field(default_factory=dict)
    suspects: Mapping[Artifact, Artifact] = field(default_factory=dict)


@dataclass(frozen=True)
class _Basis:
    """What is known of a model before the claims of its artifacts are looked at.

    ``kept`` is the share of its weights that each artifact may leave in float. ``suspects`` are
    bare files in the precision that they claim, where that holds but for the blocks in float.
    ``disputed`` is what the manifest says against the checkpoint.
    """

    known: Known
    reference: Reference
    kept: Mapping[Artifact, float]
    suspects: Mapping[Artifact, Artifact] = field(default_factory=dict)
    disputed: tuple[str, ...] = ()


def expectations_of(each: Located, model: CheckedModel) -> Expectations:
    """Golden vectors where there are any and no model was named, else a fresh reference."""
    manifest, request = each.manifest, model.request
    read: dict[Artifact, Artifact] = {}  # each artifact as its file has it
    for artifact in each.artifacts:
        # What cannot be read here is left to the audit of its weights, which then fails as well.
        with suppress(MissingDependencyError):
            read[artifact] = target(artifact.format).inspect(artifact.path)
    if manifest is not None and request.choice.is_default:
        _refuse_idle(request, each.folder)
        # Without the checkpoint nobody can tell how much is in float: all of it may be.
        kept = {artifact: 1.0 for artifact in each.artifacts if artifact.keep}
        basis = _Basis(_said(manifest), golden(each.folder, manifest, request), kept)
    else:
        basis = _of_model(each, model, read)
    suspects = dict(basis.suspects)
    found = dict.fromkeys(each.artifacts, basis.disputed)
    for artifact, seen in read.items():
        said_by = {} if manifest is None else {"the manifest": artifact.precision}
        if request.precision:
            said_by["--precision"] = request.precision
        known = replace(
            basis.known,
            signature=_interface(basis.known, seen, artifact),
            precisions=said_by,
            keep=None if manifest is None else artifact.keep,
        )
        share = basis.kept.get(artifact, 0.0)
        found[artifact] += claims.contradictions(seen, known, kept=share)
        if not share and seen.precision in basis.reference.tolerances:
            suspects[artifact] = replace(artifact, precision=seen.precision)
    return Expectations(basis.reference, found, suspects)


def _of_model(each: Located, model: CheckedModel, read: Mapping[Artifact, Artifact]) -> _Basis:
    """The model that was named: a fresh reference, and what its checkpoint says."""
    if not (torch := needs("torch")).ok:
        raise MissingDependencyError(
            f"a check against a checkpoint runs PyTorch: {torch.reason}", remedy=torch.fix
        )
    from levit_export.models.architectures.blocks import block_names

    checkpoint = model.checkpoint
    said = None if each.manifest is None else _said(each.manifest)
    known = _of_checkpoint(checkpoint, model.request.choice, said)
    tensors, blocks = _weights(model, each, read), block_names(checkpoint.config)
    kept = {a: claims.kept_share(a, tensors, blocks) for a in each.artifacts if a.keep}
    suspects: dict[Artifact, Artifact] = {}
    if said is None:
        suspects = {a: claims.but_for(a, share) for a, share in kept.items()}
    held = [suspects.get(artifact, artifact) for artifact in each.artifacts]
    expected = _fresh(model, held, read, tensors, blocks)
    disputed = () if said is None else tuple(claims.differing(said, known))
    return _Basis(known, expected, kept, suspects, disputed)


def _said(manifest: Manifest) -> Known:
    return Known(
        "the manifest",
        manifest.model.labels,
        manifest.model.preprocessing,
        manifest.embedded,
        manifest.signature,
    )


def _of_checkpoint(checkpoint: Checkpoint, choice: ModelChoice, said: Known | None) -> Known:
    """What a checkpoint says of the model; what is beside the network is known from a manifest."""
    numbers = tuple(str(index) for index in range(len(checkpoint.labels)))
    was_assumed = any("names are assumed" in each for each in checkpoint.assumptions)
    return Known(
        "the checkpoint",
        checkpoint.labels,
        checkpoint.preprocessing,
        None if said is None else said.embedded,
        None if said is None else said.signature,
        are_assumed=not choice.labels and (was_assumed or checkpoint.labels == numbers),
    )


def _interface(known: Known, seen: Artifact, artifact: Artifact) -> Signature | None:
    """The signature that a file of ours has; others may call their input as they like."""
    if known.signature is not None or artifact.claims is None:
        return known.signature
    (taken,) = seen.signature.inputs[:1]
    name = "image" if taken.dtype == "uint8" else "input"
    return Signature((replace(taken, name=name),), ())


def golden(folder: Path, manifest: Manifest, request: CheckRequest) -> Reference:
    """The reference that travels with a directory."""
    samples, outputs = export_directory.read_golden(folder, manifest)
    return Reference(
        signature=manifest.signature,
        samples=samples,
        outputs=outputs,
        weights=manifest.golden.weights,
        tolerances={
            precision: request.overrides.apply(tolerance)
            for precision, tolerance in manifest.golden.tolerances.items()
        },
        doubt=manifest.golden.doubt,
        preprocessing=manifest.model.preprocessing,
        task=manifest.model.task,
    )


def _fresh(
    model: CheckedModel,
    held: Sequence[Artifact],
    read: Mapping[Artifact, Artifact],
    tensors: Mapping[str, np.ndarray],
    blocks: Mapping[str, str],
) -> Reference:
    """A reference of the checkpoint with the weights that the artifacts must hold.

    There is a tolerance for what each artifact is said to be, and for what its graph is.
    """
    from levit_export.models.preparation import fingerprint

    measured = [replace(a, precision=read[a].precision) for a in held if a in read]
    keep: dict[str, tuple[str, ...]] = {a.precision: () for a in measured}
    for precision in {a.precision for a in held}:  # the blocks that all of them leave in float
        sets = (frozenset(a.keep) for a in held if a.precision == precision)
        keep[precision] = tuple(sorted(frozenset.intersection(*sets)))
    # What their runtimes compute in has a tolerance too.
    for row in execution.rows([*held, *measured], model.request.run, also_by_default=True):
        keep.setdefault(execution.judged_as(row), ())
    made = model.reference(keep)
    every = dict.fromkeys((*held, *measured))
    digests = {p: d for p, d in fingerprint(tensors).items() if p in made.tolerances}
    expected = replace(made, weights=digests)
    return reference.with_stored_weights(expected, tensors, every, blocks)


def _refuse_idle(request: CheckRequest, folder: Path) -> None:
    """Raise for words about a checkpoint where none is read."""
    choice = request.choice
    said = {
        "--data": request.data is not None,
        "--labels": bool(choice.labels),
        "--preprocessing": choice.preprocessing is not None,
        "--imgsz": choice.image_size is not None,
        "--activation": choice.activation is not None,
        "--resize-bias": choice.resize_bias,
    }
    if idle := [name for name, is_said in said.items() if is_said]:
        raise UsageError(
            f"{' and '.join(idle)} would change nothing: {folder} is held against its own golden "
            "vectors",
            remedy="Leave it out, or add the --checkpoint that was exported.",
        )


def _weights(
    model: CheckedModel, each: Located, read: Mapping[Artifact, Artifact]
) -> dict[str, np.ndarray]:
    """The weights that the artifacts must hold, rewritten by the passes they name.

    Files that name none are taken to be made by all of them, which the audit then confirms or
    finds to be wrong. None for files that name other passes than one another.
    """
    from levit_export.models.passes import LAY_OUT_MAPS, PASSES

    every = frozenset(each.name for each in PASSES)
    # Tensors are found whatever their layout is.
    sets = {
        every if artifact.passes is None else frozenset(artifact.passes) - {LAY_OUT_MAPS.name}
        for artifact in each.artifacts
    }
    if len(sets) != 1:
        return {}
    # Formats that normalise take pixels; a directory's artifacts all take the same.
    first = each.artifacts[0]
    raw = read.get(first, first).signature.inputs[0].dtype == "uint8"
    return model.weights(sets.pop(), raw=raw)
