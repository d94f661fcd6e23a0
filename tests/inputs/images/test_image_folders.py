"""Which images a folder holds, and which class each is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import claiming, picture
from PIL import Image

from levit_export.core.errors import DataError
from levit_export.inputs.class_names import imagenet_labels
from levit_export.inputs.images import Unreadable, batches, open_images, refuse_too_many
from levit_export.inputs.preprocessing import RECIPES

ANIMALS = ("bird", "dog, hound", "cat")
SQUARE = RECIPES["digits"]


def found(path: Path, labels: tuple[str, ...] = ANIMALS) -> dict[str, int]:
    """The class of each image."""
    return {entry.name: entry.label for entry in open_images(path, labels=labels).entries}


def said(path: Path, labels: tuple[str, ...] = ANIMALS) -> str:
    """What is remarked."""
    return "; ".join(open_images(path, labels=labels).remarks)


def test_folders_named_as_labels(tmp_path: Path) -> None:
    """A class folder that is called as a label, or one of its synonyms, is of that class."""
    for name in ("Cat/a.png", "hound/x/b.png", "hound/c.JPG"):
        picture(tmp_path / name)
    assert found(tmp_path) == {"Cat/a.png": 2, "hound/c.JPG": 1, "hound/x/b.png": 1}
    images = open_images(tmp_path, labels=ANIMALS)
    assert images.classes == {"Cat": 2, "hound": 1}
    assert images.labelled
    assert "1 of the model's 3 classes have no folder: bird" in said(tmp_path)


def test_sorted_folders(tmp_path: Path) -> None:
    """Other names are numbered in sorted order, as torchvision's ImageFolder does it."""
    for name in ("zebra", "ant", "Bee"):
        picture(tmp_path / name / "a.png")
    assert found(tmp_path) == {"Bee/a.png": 0, "ant/a.png": 1, "zebra/a.png": 2}
    assert "sorted order" in said(tmp_path)


def test_synset_folders(tmp_path: Path) -> None:
    """Some of ImageNet's synset folders are enough: their ids say which classes they are."""
    picture(tmp_path / "n01440764" / "a.JPEG")
    picture(tmp_path / "n15075141" / "b.JPEG")
    labels = imagenet_labels()
    assert found(tmp_path, labels) == {"n01440764/a.JPEG": 0, "n15075141/b.JPEG": 999}
    assert labels[0].startswith("tench")
    assert labels[999].startswith("toilet tissue")


def test_unknown_synset(tmp_path: Path) -> None:
    """A synset that the model cannot answer with is refused by its id."""
    picture(tmp_path / "n00000001" / "a.JPEG")
    with pytest.raises(DataError, match="n00000001"):
        open_images(tmp_path, labels=imagenet_labels())


@pytest.mark.parametrize("names", [("ant", "bee"), ("cat", "dog", "brid"), ("a", "b", "c", "d")])
def test_folders_that_fit_no_rule(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A class too few or too many, or one misspelt, is an error: it would shift the others."""
    for name in names:
        picture(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="class folders") as caught:
        open_images(tmp_path, labels=ANIMALS)
    assert names[-1] in str(caught.value)


def test_two_folders_of_one_class(tmp_path: Path) -> None:
    """Two names of one class are an error that gives both."""
    picture(tmp_path / "dog" / "a.png")
    picture(tmp_path / "hound" / "a.png")
    with pytest.raises(DataError, match="dog, hound"):
        open_images(tmp_path, labels=ANIMALS)


def test_numbers_as_names(tmp_path: Path) -> None:
    """Folders called as class numbers are these classes, and it is said where sorting differs."""
    labels = tuple(str(i) for i in range(11))
    for label in labels:
        picture(tmp_path / label / "a.png")
    assert found(tmp_path, labels)["10/a.png"] == 10
    assert "sorted as text" in said(tmp_path, labels)


def test_empty_class_folder(tmp_path: Path) -> None:
    """A class folder without images is named."""
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "bird").mkdir()
    assert "class folders without an image: bird" in said(tmp_path)


def test_plain_folder(tmp_path: Path) -> None:
    """Images beside one another have no class; other files are named, hidden ones ignored."""
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpg")
    for name in ("notes.txt", ".DS_Store", "._a.jpg"):
        (tmp_path / name).write_text("x")
    assert found(tmp_path) == {"a.jpg": -1, "b.png": -1}
    assert not open_images(tmp_path, labels=ANIMALS).labelled
    assert said(tmp_path) == "1 file is not an image by its name: notes.txt"


def test_one_image(tmp_path: Path) -> None:
    """A single image is a set of one."""
    assert found(picture(tmp_path / "a.png")) == {"a.png": -1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.txt", "sub/my cat.png 2\nb.png 0\n\n"),
        ("labels.csv", 'file,class\n"sub/my cat.png",2\nb.png,0\n'),
        ("val.txt", "\ufeffsub/my cat.png\t2\r\nb.png\t0\r\n"),
    ],
)
def test_list(tmp_path: Path, name: str, text: str) -> None:
    """A list says which class each file is of; what it leaves out is counted."""
    for image in ("sub/my cat.png", "b.png", "other.png"):
        picture(tmp_path / image)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert found(tmp_path) == {"sub/my cat.png": 2, "b.png": 0}
    assert f"1 image is not in {name}" in said(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 3", "line 1 of .*val.txt is 3, and the model has the classes 0 to 2"),
        ("a.png -1", "is -1"),
        ("a.png", "not a file and the number"),
        ("a.png cat", "not a file and the number"),
        ("../a.png 1", "lies elsewhere"),
        ("/etc/a.png 1", "lies elsewhere"),
        ("a.png 1\na.png 2", "lists a.png again"),
        ("\n", "holds no images"),
        ("a.png 1e400", "not a file and the number"),
        ("a.png --1", "not a file and the number"),
        ("a.png " + "9" * 5000, "not a file and the number"),
    ],
)
def test_bad_list(tmp_path: Path, line: str, message: str) -> None:
    """A line that cannot be meant is an error with its number."""
    picture(tmp_path / "a.png")
    (tmp_path / "val.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        open_images(tmp_path, labels=ANIMALS)


def test_list_that_is_no_text(tmp_path: Path) -> None:
    """A list that is not UTF-8 is an error."""
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        open_images(tmp_path, labels=ANIMALS)


@pytest.mark.parametrize("names", [[], ["notes.txt"]])
def test_no_images(tmp_path: Path, names: list[str]) -> None:
    """A folder without images is an error."""
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="holds no images"):
        open_images(tmp_path, labels=ANIMALS)


def test_class_folders_without_images(tmp_path: Path) -> None:
    """Nothing but empty class folders is an error too."""
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_images(tmp_path, labels=ANIMALS)


@pytest.mark.parametrize("name", ["missing", "text.txt", "digits.npz/x"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    """What is no folder, archive or image is refused by its name."""
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(DataError, match=name):
        open_images(tmp_path / name, labels=ANIMALS)


def test_mixture(tmp_path: Path) -> None:
    """Images beside class folders are an error: their class is anyone's guess."""
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png"):
        open_images(tmp_path, labels=ANIMALS)


def test_circular_links(tmp_path: Path) -> None:
    """A link to a folder above is an error, not an endless walk."""
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    with pytest.raises(DataError, match="again is a link"):
        open_images(tmp_path, labels=ANIMALS)


def test_links_are_followed(tmp_path: Path) -> None:
    """A data set made of links to folders and files is read."""
    picture(tmp_path / "store" / "a.png")
    (tmp_path / "data" / "bird").mkdir(parents=True)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "bird" / "b.png").symlink_to(tmp_path / "store" / "a.png")
    assert found(tmp_path / "data") == {"bird/b.png": 0, "cat/a.png": 2}


def test_unreadable_images_are_reported(tmp_path: Path) -> None:
    """What cannot be read is left out with its name and reason; the others keep their places."""
    picture(tmp_path / "a.png", 10)
    (tmp_path / "b.png").mkdir()
    claiming(tmp_path / "c.png", 30_000, 30_000)
    picture(tmp_path / "d.png", 200)
    images = open_images(tmp_path, labels=ANIMALS)
    (batch,) = batches(images, SQUARE, [range(4)])
    assert batch.rows == (0, 3)
    assert batch.inputs.shape == (2, 3, 96, 96)
    assert batch.inputs[0].max() < batch.inputs[1].min()
    assert [(row, each.name) for row, each in batch.unreadable] == [(1, "b.png"), (2, "c.png")]
    assert batch.unreadable[0][1].reason == "is a folder"


def test_strips_are_not_blown_up(tmp_path: Path) -> None:
    """One row of pixels, whose shorter side would be resized to gigabytes, is unreadable."""
    Image.new("L", (30_000, 1)).save(tmp_path / "a.png")
    images = open_images(tmp_path, labels=ANIMALS)
    (batch,) = batches(images, RECIPES["fair"], [[0]])
    assert batch.rows == ()
    assert batch.inputs.shape == (0, 3, 224, 224)
    assert "too long a strip" in batch.unreadable[0][1].reason


def test_too_many_unreadable() -> None:
    """A tenth may be left out; one more is an error that names the first five."""
    bad = [Unreadable(f"{i}.png", "is empty") for i in range(11)]
    refuse_too_many(bad[:10], 100, "here")
    with pytest.raises(DataError, match=r"11 of 100 .* 4.png: is empty and 6 more"):
        refuse_too_many(bad, 100, "here")


def test_limit(tmp_path: Path) -> None:
    """A limit takes images evenly spread over the list, always the same."""
    for i in range(10):
        picture(tmp_path / f"{i}.png")
    images = open_images(tmp_path, labels=ANIMALS)
    assert [e.name for e in images.limited(4).entries] == ["0.png", "2.png", "5.png", "7.png"]
    assert images.limited(10) is images.limited(None) is images
    assert images.limited(4).remarks == ("4 of 10 images are used",)


def test_fingerprint(tmp_path: Path) -> None:
    """It changes with a name, a class or a size, and with nothing else."""
    picture(tmp_path / "one" / "cat" / "a.png")
    picture(tmp_path / "two" / "cat" / "a.png")
    picture(tmp_path / "bird" / "bird" / "a.png")
    picture(tmp_path / "large" / "cat" / "a.png", side=50)
    prints = [
        open_images(tmp_path / name, labels=ANIMALS).fingerprint
        for name in ("one", "two", "bird", "large")
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_letters_of_two_cases_are_two_classes(tmp_path: Path) -> None:
    """``A`` and ``a``, as EMNIST has them, are scored as themselves; an exact name comes first."""
    letters = ("A", "B", "a", "b")
    for name in letters:
        picture(tmp_path / name / "x.png")
    assert found(tmp_path, letters) == {"A/x.png": 0, "B/x.png": 1, "a/x.png": 2, "b/x.png": 3}
    assert found(tmp_path, letters[::-1]) == {
        "A/x.png": 3,
        "B/x.png": 2,
        "a/x.png": 1,
        "b/x.png": 0,
    }


def test_a_folder_that_fits_several_classes(tmp_path: Path) -> None:
    """Where no label is exactly so called and several fit, none is guessed."""
    picture(tmp_path / "Mine" / "x.png")
    for labels in (("mine", "MINE", "yours"), ("gold, mine", "coal, mine", "yours")):
        with pytest.raises(DataError, match=r"Mine .* may be one of 2 classes: 0 "):
            open_images(tmp_path, labels=labels)
    picture(tmp_path / "yours" / "x.png")
    assert found(tmp_path, ("mine", "Mine", "yours")) == {"Mine/x.png": 1, "yours/x.png": 2}


def test_a_name_that_two_classes_share(tmp_path: Path) -> None:
    """A folder called as two classes are is refused: its images are of one of them."""
    picture(tmp_path / "crane" / "x.png")
    with pytest.raises(DataError, match=r"crane .* may be one of 2 classes: 0 \(crane\)"):
        open_images(tmp_path, labels=("crane", "dog", "crane"))
