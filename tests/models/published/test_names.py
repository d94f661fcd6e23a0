"""From names to what is published."""

from __future__ import annotations

import pytest

from levit_export.core.errors import UnknownNameError, UsageError
from levit_export.models import zoo
from levit_export.models.published import HashedFile, HubModel, known_names, parse

PAPER = ("levit_128s", "levit_128", "levit_192", "levit_256", "levit_384")


@pytest.mark.parametrize("variant", PAPER)
def test_a_variant_is_the_authors_file(variant: str) -> None:
    """The zoo's name, in any spelling, means the authors' file and carries the licence."""
    title = zoo.variant(variant).title
    found = parse(variant)
    assert found.source == HashedFile(zoo.variant(variant).weights)
    assert (found.name, found.variant, found.licence) == (variant, variant, "Apache-2.0")
    assert parse(title) == parse(variant.replace("_", "-")) == found


@pytest.mark.parametrize("variant", PAPER)
def test_a_hub_id_is_a_repository_of_that_variant(variant: str) -> None:
    """The transformers checkpoint and timm's two are known for each model of the paper."""
    size = variant.removeprefix("levit_")
    facebook = parse(f"facebook/levit-{size.upper()}")
    assert facebook.source == HubModel(
        f"facebook/levit-{size.upper()}", ("config.json", "preprocessor_config.json")
    )
    tokens = parse(f"timm/levit_{size}.fb_dist_in1k")
    assert tokens.source == HubModel(f"timm/levit_{size}.fb_dist_in1k")
    bchw = parse(f"timm/levit_conv_{size}.fb_dist_in1k")
    assert bchw.source == HubModel(f"timm/levit_conv_{size}.fb_dist_in1k")
    assert {facebook.variant, tokens.variant, bchw.variant} == {variant}


def test_an_id_is_corrected_to_its_true_case() -> None:
    """The Hub's ids have one spelling; what was typed in another is corrected."""
    assert parse("Facebook/levit-128s").source == parse("facebook/levit-128S").source


def test_all_names_can_be_parsed() -> None:
    """Twenty names, each of which finds itself."""
    assert len(known_names()) == 20
    assert [parse(name).name for name in known_names()] == list(known_names())


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("levit_265", "levit_256"), ("facebook/levit256", "facebook/levit-256")],
)
def test_an_unknown_name_is_refused_with_the_nearest(typo: str, meant: str) -> None:
    """The error names what was probably meant."""
    with pytest.raises(UnknownNameError) as caught:
        parse(typo)
    assert f"Did you mean {meant!r}?" in caught.value.remedy


def test_a_variant_without_published_weights() -> None:
    """A known model of which nobody published weights: say how to give them."""
    unpublished = [v.name for v in zoo.VARIANTS if not v.weights]
    assert "levit_digits" in unpublished
    for name in unpublished:
        with pytest.raises(UsageError, match=f"no weights are published for {name}") as caught:
            parse(name)
        assert "--checkpoint FILE" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["weights.pth", "weights-13b5763.pth", "../weights-13b5763e.pth", "-13b5763e.pth"]
)
def test_a_file_must_carry_its_hash(name: str) -> None:
    """Without eight digits nothing could be verified, and a path could leave the cache."""
    with pytest.raises(UsageError, match="is not a file name with the start of its SHA-256"):
        HashedFile(name)


def test_the_digits_are_the_last_part_of_the_stem() -> None:
    """The digits of a hash are read off a file's name as torch.hub reads them."""
    assert HashedFile("LeViT-128S-96703c44.pth").digits == "96703c44"
