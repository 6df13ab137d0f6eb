from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from catalign.errors import CatalignError
from catalign.evaluation.base import Skipped
from catalign.evaluation.images import images, read_folder

COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (200, 30, 30)}


class Mean:
    """Describes photos by their mean colour."""

    def image_features(self, photos):
        return np.stack([np.asarray(photo, dtype=np.float32).mean((0, 1)) for photo in photos])


class Blind:
    """Describes every photo alike but for noise."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def image_features(self, photos):
        return self.generator.normal(size=(len(photos), 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """12 train and 6 test images of each of three colours, in the shape and the formats of real ones."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, colour in COLOURS.items():
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 20, (20, 30, 3)), 0, 255).astype(np.uint8)
                ending = ("png", "JPEG")[number % 2]
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.{ending}")
    (tmp_path / "data" / "train" / "red" / "notes.txt").write_text("no image")
    return tmp_path / "data"


@pytest.fixture
def run(catalogue, context, folder, monkeypatch):
    monkeypatch.setattr("catalign.evaluation.significance.DRAWS", 99)

    def make(**options):
        found = context(
            catalogue(["a"]), {"image": np.eye(1)}, name="ours", embedder=Mean(), untrained_embedder=Blind()
        )
        return images(found, folder=str(folder), **options)[0]

    return make


def test_colours_are_told_apart_by_colour_and_not_by_noise(run):
    result = run()
    for method in ("knn", "linear"):
        assert result.metrics[f"{method}/accuracy"] == result.metrics[f"{method}/macro_f1"] == [1.0]
        assert result.baselines["pixels"][f"{method}/accuracy"] == [1.0]
        assert result.baselines["majority"][f"{method}/accuracy"] == [pytest.approx(1 / 3)]
        assert result.baselines["untrained"][f"{method}/accuracy"][0] < 0.7
    assert result.protocol["name"] == "images-data"
    assert result.significance["ours"]["linear/accuracy/minus/untrained"][0] > 0.3
    counts = {key: result.details[key] for key in ("classes", "train_images", "val_images", "test_images")}
    assert counts == {"classes": 3, "train_images": 32, "val_images": 4, "test_images": 18}


def test_one_method_and_another_draw(run):
    result = run(methods=["knn"], seed=1)
    assert set(result.metrics) == {"knn/accuracy", "knn/macro_f1"}
    assert result.protocol["id"] != run(methods=["knn"]).protocol["id"]


def test_val_is_scored_where_there_is_no_test_and_chooses_where_there_is(folder):
    both = shutil.copytree(folder, folder.parent / "both")
    shutil.copytree(folder / "test" / "red", both / "val" / "red")
    read = read_folder(both)
    assert {split: len(rows) for split, rows in read.rows.items()} == {"train": 36, "val": 6, "test": 18}
    assert (read.tested, read.chosen_on) == ("test", "val")
    (folder / "test").rename(folder / "val")
    read = read_folder(folder)
    assert (read.tested, read.chosen_on) == ("val", "10% of train, held out")
    assert not set(read.rows["train"]) & set(read.rows["val"])
    assert {read.paths[row].parent.parent.name for row in read.rows["test"]} == {"val"}
    assert all(read.classes[read.labels[row]] == read.paths[row].parent.name for row in range(len(read.paths)))


def test_a_broken_image_is_named_with_what_to_do(run, folder):
    (folder / "test" / "green" / "3.JPEG").write_bytes(b"\xff\xd8 no jpeg")
    with pytest.raises(CatalignError, match=r"test/green/3\.JPEG cannot be read: .*\n.*delete it"):
        run()


def test_other_layouts_are_named_with_what_to_do(run, folder):
    (folder / "train" / "black").mkdir()
    with pytest.raises(CatalignError, match="train/black holds no image"):
        run()
    (folder / "train" / "black").rename(folder / "test" / "black")
    Image.new("RGB", (8, 8)).save(folder / "test" / "black" / "1.png")
    with pytest.raises(CatalignError, match=r"test/black is a class that .*train lacks"):
        run()
    shutil.rmtree(folder / "test")
    with pytest.raises(CatalignError, match=r"data holds train\n.*train/CLASS"):
        run()
    (folder / "test").mkdir()
    with pytest.raises(CatalignError, match="test has no class folder"):
        run()


def test_it_is_skipped_without_a_folder_or_an_encoder(catalogue, context):
    with pytest.raises(Skipped, match=r"data\.root is not set\n.*evaluation\.images\.folder=PATH"):
        images(context(catalogue(["a"]), {"image": np.eye(1)}, embedder=Mean()))
    with pytest.raises(Skipped, match="image encoder"):
        images(context(catalogue(["a"]), {"text": np.eye(1)}, embedder=Mean()))
