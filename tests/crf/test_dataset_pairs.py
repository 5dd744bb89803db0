"""Whole data sets: which images belong to which scores and to which shard, and the maps of some classes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from data_sets import labels_of, make_set, names, refine, scene, set_of_six, written
from PIL import Image

from deeplab_fast import crf, pictures
from deeplab_fast.crf.dataset import Shard, find_pairs, from_environment
from deeplab_fast.scores import resize_scores

folder = set_of_six


# -------------------------------------------------------------------------------------------------------------- pairs


def pair_names(*arguments, **options):
    return {pair.name: pair.scores and pair.scores.name for pair in find_pairs(*arguments, **options)}


def test_pairs_by_name(folder):
    everything = {name: f"{name[-4:]}.npy" for name in names(6)}
    assert pair_names(folder / "images", folder / "scores") == everything
    assert pair_names(str(folder / "images/**/*.png"), folder / "scores") == everything
    assert pair_names(str(folder / "images/*.png"), str(folder / "scores/*.npy")) == {
        name: f"{name}.npy" for name in names(6) if "/" not in name
    }
    # Where folders differ, by the last part, if it is no other's.
    for path in (folder / "scores/more").iterdir():
        shutil.move(path, folder / "scores" / path.name)
    assert pair_names(folder / "images", folder / "scores") == everything
    shutil.copy(folder / "scores/0002.npy", folder / "scores/again-0002.npy")
    (folder / "scores/x").mkdir()
    shutil.copy(folder / "scores/0002.npy", folder / "scores/x/0002.npy")
    found = pair_names(folder / "images", folder / "scores")
    assert found["more/0002"] is None
    assert found["more/0005"] == "0005.npy"


def test_arrays_go_before_pictures(folder):
    """A folder of scores often has pictures to look at beside them."""
    for path in (folder / "scores").rglob("*.npy"):
        Image.new("L", (64, 48)).save(path.with_suffix(".png"))
        Image.new("L", (64, 48)).save(path.with_name(f"{path.stem}-overlay.jpg"))
    assert pair_names(folder / "images", folder / "scores") == {name: f"{name[-4:]}.npy" for name in names(6)}
    (folder / "scores/0000.npy").unlink()
    assert pair_names(folder / "images", folder / "scores")["0000"] == "0000.png"


def test_images_and_scores_in_one_folder(folder):
    for path in (folder / "scores").rglob("*.npy"):
        shutil.move(path, folder / "images" / path.relative_to(folder / "scores"))
    assert pair_names(folder / "images", folder / "images") == {name: f"{name[-4:]}.npy" for name in names(6)}


def test_pairs_of_a_list(folder, monkeypatch):
    listed = folder / "set.txt"
    lines = [f"images/{name}.png scores/{name}.npy" for name in names(6)[:4]]
    listed.write_text("\n".join(lines) + "\n\n")
    assert pair_names(listed, root=folder) == {name: f"{name[-4:]}.npy" for name in names(6)[:4]}
    monkeypatch.chdir(folder)
    assert len(pair_names("set.txt")) == 4
    listed.write_text("".join(f"images/{name}.png\n" for name in names(6)[:2]))
    assert pair_names(listed, folder / "scores", root=folder) == {"0000": "0000.npy", "0001": "0001.npy"}
    (folder / "images/with blanks.png").write_bytes((folder / "images/0000.png").read_bytes())
    listed.write_text("images/with blanks.png\tscores/0000.npy\n")
    assert pair_names(listed, root=folder) == {"with blanks": "0000.npy"}
    listed.write_text("images/with blanks.png scores/0000.npy\n")
    with pytest.raises(ValueError, match=r"set.txt, line 1: images: number of parts is 3, should be an image and its"):
        find_pairs(listed, root=folder)
    listed.write_text("images/0000.png scores/0000.npy\nimages/0001.png\n")
    with pytest.raises(ValueError, match="some with scores and some without, should be all alike"):
        find_pairs(listed, root=folder)
    listed.write_text("images/0000.png scores/0000.npy\n")
    with pytest.raises(ValueError, match="left out: the list names the scores"):
        find_pairs(listed, folder / "scores", root=folder)
    listed.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        find_pairs(listed, root=folder)
    with pytest.raises(FileNotFoundError, match="list not found"):
        find_pairs(folder / "absent.txt")
    # What a list names and is not there fails alone.
    listed.write_text(
        "images/0000.png scores/0000.npy\nimages/0001.png scores/absent.npy\nabsent.png scores/0001.npy\n"
    )
    result = crf.refine_dataset(listed, None, folder / "out", root=folder, jobs=0)
    assert result.images == 1
    assert {name: reason.split(":")[0] for name, reason in result.failed.items()} == {
        "images/0001": "input not found", "absent": "image not found",
    }  # fmt: skip


def test_pairs_that_are_given(folder):
    pairs = [(folder / f"images/{name}.png", folder / f"scores/{name}.npy") for name in names(2)]
    assert crf.refine_dataset(pairs, None, folder / "out", jobs=0).images == 2


def test_what_is_no_set(folder):
    with pytest.raises(FileNotFoundError, match="images: folder not found"):
        find_pairs(folder / "absent", folder / "scores")
    with pytest.raises(FileNotFoundError, match=r"scores: none in .* has the name of an image, such as 0000"):
        find_pairs(str(folder / "images/0*.png"), folder / "scores/more")
    with pytest.raises(ValueError, match=r"scores: is None, should be a folder or a pattern"):
        find_pairs(folder / "images")
    (folder / "images/0000.jpg").write_bytes((folder / "images/0000.png").read_bytes())
    with pytest.raises(ValueError, match=r"0000.jpg and .*0000.png, should be different ones"):
        find_pairs(folder / "images", folder / "scores")
    (folder / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no \.jpg"):
        find_pairs(folder / "nothing", folder / "scores")


# ------------------------------------------------------------------------------------------------------------- shards


def test_shards_are_parts_by_name():
    all_names = [f"folder/{number:05}" for number in range(3000)]
    parts = [{name for name in all_names if Shard(number, 16).has(name)} for number in range(1, 17)]
    assert sum(map(len, parts)) == 3000
    assert set().union(*parts) == set(all_names)
    assert min(map(len, parts)) > 140
    # Other names change nothing, and the parts stay what they are for ever: a run goes on after an update, too.
    assert [name for name in all_names[:60] if Shard(3, 16).has(name)] == ["folder/00032", "folder/00045"]


def test_four_shards_are_the_whole(folder):
    make_set(folder, 14)
    refine(folder, "whole")
    failed = folder / "scores/0003.npy"
    for number in range(1, 5):
        refine(folder, "parts", shard=(number, 4))
    assert written(folder / "parts") == written(folder / "whole")
    failed.write_bytes(b"")
    results = [refine(folder, "again", shard=f"{number}/4") for number in range(1, 5)]
    (number,) = [number for number, result in enumerate(results, 1) if result.failed]
    assert (folder / f"again/failed-{number}-of-4.txt").read_text().startswith("0003\t")
    assert sum(result.images for result in results) == 13


def slurm(**values):
    """Variables of Slurm by the ends of their names."""
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


ARRAY = slurm(ARRAY_TASK_MIN=0, ARRAY_TASK_MAX=15, ARRAY_TASK_COUNT=16)
ODD = slurm(ARRAY_TASK_MIN=1, ARRAY_TASK_MAX=9, ARRAY_TASK_STEP=2, ARRAY_TASK_COUNT=5)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, "1/1"),
        ({"RANK": "2", "WORLD_SIZE": "4"}, "3/4"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "1/1"),
        ({"RANK": "0"}, "1/1"),
        ({**ARRAY, **slurm(ARRAY_TASK_ID=0)}, "1/16"),
        ({**ARRAY, **slurm(ARRAY_TASK_ID=15)}, "16/16"),
        (slurm(ARRAY_TASK_ID=3, ARRAY_TASK_MIN=1, ARRAY_TASK_COUNT=16), "3/16"),
        ({**ODD, **slurm(ARRAY_TASK_ID=7)}, "4/5"),
        (slurm(PROCID=1, NTASKS=4), "2/4"),
        # What srun starts within a job; the batch script itself is one process, whatever tasks it may start.
        (slurm(JOB_ID=7, STEP_ID=0, PROCID=1, NTASKS=8, STEP_NUM_TASKS=4), "2/4"),
        (slurm(JOB_ID=7, PROCID=0, NTASKS=4), "1/1"),
        ({**ARRAY, **slurm(JOB_ID=7, ARRAY_TASK_ID=2, PROCID=0, NTASKS=4)}, "3/16"),
        ({**ARRAY, **slurm(ARRAY_TASK_ID=2), "RANK": "1", "WORLD_SIZE": "4"}, "10/64"),
    ],
)
def test_shards_of_job_systems(environment, shard):
    found = from_environment(environment)
    assert str(found) == shard
    assert bool(found.source) == (found.count > 1)


def test_an_array_with_gaps_cannot_be_told():
    environment = {**ARRAY, **slurm(ARRAY_TASK_ID=5, ARRAY_TASK_COUNT=3)}
    with pytest.raises(ValueError, match=r"SLURM_ARRAY_TASK_ID: is 5, should be one of evenly spaced ones.*--shard"):
        from_environment(environment)


# ------------------------------------------------------------------------------------------------- some classes' maps


def one_image(tmp_path, content):
    photo, _, logits = scene(0)
    for kind in ("images", "scores"):
        (tmp_path / kind).mkdir()
    pictures.save_image(tmp_path / "images/a.png", photo)
    np.save(tmp_path / "scores/a.npy", content(logits), allow_pickle=True)
    return photo, logits


def test_labels_of_some_classes_are_mapped_back(tmp_path):
    keys = np.array([0, 5, 9, 17])
    photo, logits = one_image(tmp_path, lambda logits: {"keys": keys, "high_res": logits})
    result = refine(tmp_path, save_probabilities=True)
    assert result.failed == {}
    Q = crf.refine(photo, crf.probabilities_from_scores(resize_scores(logits, (48, 64))))
    np.testing.assert_array_equal(labels_of(tmp_path / "out/a.png"), keys[Q.argmax(0)])
    with np.load(tmp_path / "out/a.npz") as saved:
        np.testing.assert_array_equal(saved["keys"], keys)
        assert saved["probabilities"].shape == (4, 48, 64)
    # They can be refined in their turn.
    again = crf.refine_dataset(tmp_path / "images", tmp_path / "out", tmp_path / "again", jobs=0)
    assert again.failed == {}
    assert set(np.unique(labels_of(tmp_path / "again/a.png"))) <= set(keys)


@pytest.mark.parametrize(
    ("keys", "options", "classes"),
    [
        ([5, 9, 17], {}, [0, 5, 9, 17]),  # one map more than keys: the first is class 0's
        ([4, 8, 16], {"keys": "foreground"}, [0, 5, 9, 17]),
        ([0, 8, 16], {"keys": "foreground"}, [0, 1, 9, 17]),
    ],
)
def test_the_background_may_have_a_map_without_a_key(tmp_path, keys, options, classes):
    photo, logits = one_image(tmp_path, lambda logits: {"keys": keys, "high_res": logits})
    assert refine(tmp_path, **options).failed == {}
    Q = crf.refine(photo, crf.probabilities_from_scores(resize_scores(logits, (48, 64))))
    np.testing.assert_array_equal(labels_of(tmp_path / "out/a.png"), np.array(classes)[Q.argmax(0)])


def test_activation_maps_get_a_background(tmp_path):
    """As IRN's: maps in 0..1 of foreground classes, numbered from 0."""
    column = np.arange(8)
    cams = np.stack([(column < 4) * np.ones((6, 1)), (column > 5) * np.ones((6, 1))]).astype(np.float32)
    photo, _ = one_image(tmp_path, lambda _: {"keys": np.array([3, 11]), "cam": cams[:, ::2], "high_res": cams})
    assert refine(tmp_path, keys="foreground", background=0.3, kind="sigmoid").failed == {}
    with_background = np.concatenate([np.full((1, 6, 8), 0.3, np.float32), cams])
    prob = resize_scores(with_background / with_background.sum(0), (48, 64))
    expected = np.array([0, 4, 12])[crf.refine(photo, prob).argmax(0)]
    np.testing.assert_array_equal(labels_of(tmp_path / "out/a.png"), expected)
    assert set(np.unique(expected)) == {0, 4, 12}


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ([0, 5, 9], {}, "keys: values are 0, 5, 9, should be such that 0 is free .* say --keys foreground"),
        ([1, 2], {}, "keys: number is 2, should be 4, as many as maps, or 3, without class 0's"),
        ([0, 1, 2, 3], {"keys": "foreground"}, "number of maps is 4, should be 5, .* --background"),
        ([0, 5, 9, 256], {}, "keys: largest class is 256, should be below 256"),
        ([0, 5, 9, 21], {"classes": 21}, "keys: largest class is 21, should be below 21"),
    ],
)
def test_keys_that_do_not_fit(tmp_path, keys, options, message):
    one_image(tmp_path, lambda logits: {"keys": keys, "high_res": logits})
    with pytest.raises(ValueError, match=message):
        raise ValueError(refine(tmp_path, **options).failed["a"])


def test_a_background_belongs_to_some_classes(folder):
    result = refine(folder, background=0.3)
    assert len(result.failed) == 6
    assert "--background belongs to scores of some classes" in result.failed["0000"]
