"""Evaluation of a set, in one process and two; prediction of files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_segmentation import SIZES, Colours, FakeDataset, Forgetful, scene
from PIL import Image
from torch import nn

from deeplab_fast import pictures, scores
from deeplab_fast.evaluation import Predictor, collect_images, evaluate, predict
from deeplab_fast.evaluation.batching import same_key
from deeplab_fast.evaluation.predictor import NotFiniteError


class Turned(nn.Module):
    """In place of a CRF: swaps red and green."""

    def forward(self, image: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
        return prob[:, [1, 0, 2, 3]]


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def expected_counts(dataset: FakeDataset, indices, swapped: bool = False) -> np.ndarray:
    """The confusion matrix, image by image and pixel by pixel."""
    predictor = Predictor(Colours(), 4)
    counts = np.zeros((4, 4), np.int64)
    for index in indices:
        sample = dataset[index]
        labels = predictor.labels([sample.image])[0].astype(int)
        labels = np.array([1, 0, 2, 3])[labels] if swapped else labels
        np.add.at(counts, (sample.label[sample.label != 255], labels[sample.label != 255]), 1)
    return counts


# --- Batches -------------------------------------------------------------------------------------------------------


def test_items_with_one_key_go_together_in_a_stream():
    items = list("aabacbcad")
    batches = list(same_key(items, 2, str))
    assert batches == [["a", "a"], ["b", "b"], ["c", "c"], ["a", "a"], ["d"]]


def test_the_longest_waiting_group_goes_when_too_many_wait():
    read = []

    def stream():
        for item in "abcdea":
            read.append(item)
            yield item

    batches = same_key(stream(), 2, str, look_ahead=3)
    assert next(batches) == ["a"]
    assert read == list("abcd")
    assert list(batches) == [["b"], ["c"], ["d"], ["e"], ["a"]]


# --- evaluate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_counts_every_image_once_in_batches_of_equal_shape(batch_size: int, workers: int):
    dataset, model, seen = FakeDataset(8), Colours(), []
    state = torch.get_rng_state()  # a training that evaluates now and then must not change by it
    result = evaluate(
        Predictor(model, 4),
        dataset,
        batch_size=batch_size,
        workers=workers,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(result.matrix.counts.numpy(), expected_counts(dataset, range(8)))
    assert (result.matrix_crf, result.images, result.problems) == (None, 8, [])
    assert seen == [(n, 8) for n in range(1, 9)]
    assert max(shape[0] for shape in model.seen) == batch_size
    assert sum(shape[0] for shape in model.seen) == 8


def test_scores_before_and_after_the_crf_from_one_pass(tmp_path):
    dataset, model = FakeDataset(5), Colours()
    predictor = Predictor(model, 4, crf=Turned())
    result = evaluate(predictor, dataset, save_png=tmp_path / "png")
    assert len(model.seen) == 5
    np.testing.assert_array_equal(result.matrix.counts.numpy(), expected_counts(dataset, range(5)))
    np.testing.assert_array_equal(result.matrix_crf.counts.numpy(), expected_counts(dataset, range(5), swapped=True))
    written = pictures.read_labels(tmp_path / "png" / "picture2.png")
    np.testing.assert_array_equal(written, predictor.labels([dataset[2].image])[0])

    without = evaluate(predictor, dataset, with_crf=False, save_png=tmp_path / "png")
    assert without.matrix_crf is None
    assert torch.equal(without.matrix.counts, result.matrix.counts)
    written = pictures.read_labels(tmp_path / "png" / "picture2.png")
    np.testing.assert_array_equal(written, Predictor(Colours(), 4).labels([dataset[2].image])[0])


def test_saves_palette_pictures_and_logits(tmp_path):
    dataset = FakeDataset(4)
    dataset.names[1] = "folder/one"
    evaluate(Predictor(Colours(), 4), dataset, batch_size=2, save_png=tmp_path / "p", save_logits=tmp_path / "l")
    assert files(tmp_path / "p") == ["folder", "picture0.png", "picture2.png", "picture3.png"]
    assert files(tmp_path / "l") == ["folder", "picture0.npy", "picture2.npy", "picture3.npy"]
    assert files(tmp_path / "p" / "folder") == ["one.png"]
    picture = Image.open(tmp_path / "p" / "picture3.png")
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), dataset.palette[np.array(picture)])
    logits = np.load(tmp_path / "l" / "picture3.npy")
    assert logits.dtype == np.float16
    (expected,) = Predictor(Colours(), 4).predict([dataset[3].image], logits=True)
    np.testing.assert_array_equal(logits, (expected.logits - expected.logits.max(axis=0)).astype(np.float16))
    evaluate(Predictor(Colours(), 4), dataset, save_logits=tmp_path / "l", logits_dtype=np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "l" / "picture3.npy"), expected.logits)


def in_tiles() -> Predictor:
    """A predictor that cuts even small pictures into tiles."""
    predictor = Predictor(Colours(), 4)
    predictor.tile = 16
    return predictor


def test_saved_scores_are_those_that_the_crf_reads(tmp_path):
    dataset = FakeDataset(3)
    predictor = Predictor(Colours(), 4)
    evaluate(predictor, dataset, save_scores=tmp_path / "s")
    assert files(tmp_path / "s") == ["picture0.npz", "picture1.npz", "picture2.npz"]
    (expected,) = predictor.predict([dataset[1].image], logits=True)
    size = dataset[1].image.shape[:2]
    read = scores.read_scores(tmp_path / "s/picture1.npz", size, classes=4)
    assert (read.kind, read.values.shape) == ("logits", expected.logits.shape)
    np.testing.assert_array_equal(read.values, (expected.logits - expected.logits.max(axis=0)).astype(np.float16))
    tiled = evaluate(in_tiles(), FakeDataset(1), save_scores=tmp_path / "t")
    assert tiled.problems == ["picture0: its scores were not saved, for it was cut into tiles"]


def test_images_without_labels_are_predicted_only(tmp_path):
    dataset = FakeDataset(3, unlabelled=(0, 1))
    result = evaluate(Predictor(Colours(), 4), dataset, save_png=tmp_path)
    np.testing.assert_array_equal(result.matrix.counts.numpy(), expected_counts(dataset, [2]))
    assert result.images == len(files(tmp_path)) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_problems_raise_or_are_listed(workers: int):
    dataset = FakeDataset(7, broken=(1,), wrong=(4,))
    with pytest.raises(FileNotFoundError, match=r"image not found: picture1\.jpg"):
        evaluate(Predictor(Colours(), 4), dataset, workers=workers)
    seen = []
    result = evaluate(
        Predictor(Colours(), 4), dataset, on_problem="skip", workers=workers, progress=lambda *at: seen.append(at)
    )
    assert result.problems == [
        "picture1: image not found: picture1.jpg",
        "picture4: picture4: has the labels 77, should be in 0..3, or 255",
    ]
    assert result.images == 5
    assert seen[-1] == (7, 7)
    np.testing.assert_array_equal(result.matrix.counts.numpy(), expected_counts(dataset, [0, 2, 3, 5, 6]))


def test_a_set_that_skips_by_itself_is_gone_on_with():
    from deeplab_fast.data.problems import Problem

    class Skipping(FakeDataset):
        def __getitem__(self, index):
            return Problem("picture2", "it is broken") if index == 2 else super().__getitem__(index)

    result = evaluate(Predictor(Colours(), 4), Skipping(4))
    assert (result.images, result.problems) == (3, ["picture2: it is broken"])


def test_an_image_too_large_for_memory_can_be_skipped(tmp_path):
    dataset = FakeDataset(6)
    smallest = Forgetful(20 * 20, MemoryError())
    with pytest.raises(MemoryError, match="not enough memory on cpu"):
        evaluate(Predictor(smallest, 4), dataset, batch_size=2)
    result = evaluate(Predictor(smallest, 4), dataset, batch_size=2, on_problem="skip")
    assert result.images == 2
    assert [problem[:8] for problem in result.problems] == ["picture0", "picture3", "picture1", "picture4"]
    np.testing.assert_array_equal(result.matrix.counts.numpy(), expected_counts(dataset, [2, 5]))


def test_nothing_evaluated_is_an_error():
    with pytest.raises(ValueError, match="no image could be evaluated; the first problem: picture0: image not found"):
        evaluate(Predictor(Colours(), 4), FakeDataset(2, broken=(0, 1)), on_problem="skip")


def test_a_failing_run_leaves_no_partial_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        evaluate(Predictor(Colours(), 4), FakeDataset(3, broken=(2,)), save_png=tmp_path)
    assert files(tmp_path) == ["picture0.png", "picture1.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: is 0, should be a whole number of at least 1"),
        ({"workers": -1}, "workers: is -1, should be 0 or more"),
        ({"rank": 2, "world": 2}, r"rank: is 2, should be in 0\.\.1, world being 2"),
        ({"with_crf": True}, "with_crf: is True, should be False for a predictor without a CRF"),
        ({"on_problem": "ignore"}, "on_problem: is 'ignore', should be 'raise' or 'skip'"),
        ({"logits_dtype": np.int8}, "logits_dtype: is 'int8', should be float16 or float32"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Predictor(Colours(), 4), FakeDataset(2), **options)


@pytest.mark.parametrize("name", ["../up", "/root", "picture1"])
def test_refuses_names_that_would_be_written_elsewhere_or_twice(tmp_path, name):
    dataset = FakeDataset(2)
    dataset.names[0] = name
    with pytest.raises(ValueError, match=f"dataset: name is {name!r}"):
        evaluate(Predictor(Colours(), 4), dataset, save_png=tmp_path / "out")
    assert files(tmp_path) == []


def test_refuses_sets_that_do_not_fit_the_network():
    with pytest.raises(ValueError, match="dataset: number of classes is 4, should be 5, as the network"):
        evaluate(Predictor(Colours(), 5), FakeDataset(2))
    with pytest.raises(ValueError, match="dataset: number of images is 0"):
        evaluate(Predictor(Colours(), 4), FakeDataset(0))


# --- Two processes -------------------------------------------------------------------------------------------------


def one_of_two(rank: int, folder: str) -> None:
    """A process of its own: once all goes well, once the other one fails."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    predictor = Predictor(Colours(), 4, crf=Turned())
    broken = FakeDataset(7, broken=(2, 5))
    share = {"rank": rank, "world": 2}
    result = evaluate(predictor, broken, batch_size=2, save_png=Path(folder, "png"), on_problem="skip", **share)
    try:
        evaluate(predictor, FakeDataset(7, broken=(2,)), **share)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    counts = [result.matrix.counts.tolist(), result.matrix_crf.counts.tolist()]
    told = {"counts": counts, "images": result.images, "problems": result.problems, "failure": failure}
    Path(folder, f"{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = evaluate(Predictor(Colours(), 4, crf=Turned()), FakeDataset(7, broken=(2, 5)), on_problem="skip")
    for one in told:
        assert one["counts"] == [alone.matrix.counts.tolist(), alone.matrix_crf.counts.tolist()]
        assert (one["images"], sorted(one["problems"])) == (5, alone.problems)
    assert files(tmp_path / "png") == [f"picture{n}.png" for n in (0, 1, 3, 4, 6)]
    assert told[0]["failure"] == "FileNotFoundError: image not found: picture2.jpg"
    assert told[1]["failure"] == "RuntimeError: evaluation failed in another process: image not found: picture2.jpg"


def test_shares_add_up():
    dataset, predictor = FakeDataset(7), Predictor(Colours(), 4)
    shares = [evaluate(predictor, dataset, rank=rank, world=3) for rank in range(3)]
    assert [share.images for share in shares] == [3, 2, 2]
    for other in shares[1:]:
        shares[0].matrix.merge(other.matrix)
    np.testing.assert_array_equal(shares[0].matrix.counts.numpy(), expected_counts(dataset, range(7)))


# --- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with five photos, one of them broken, and other files."""
    folder = tmp_path / "photos"
    (folder / "inside").mkdir(parents=True)
    for n, ending in enumerate(("png", "JPG", "bmp", "webp")):
        pictures.save_image(folder / f"photo{n}.{ending}", scene(SIZES[n % 2], n)[0])
    (folder / "photo9.jpeg").write_bytes(b"no picture")
    for other in ("notes.txt", ".hidden.png", "inside/photo0.png"):
        (folder / other).write_bytes(b"")
    return folder


def test_collect_images(photos):
    expected = [photos / name for name in ("photo0.png", "photo1.JPG", "photo2.bmp", "photo3.webp", "photo9.jpeg")]
    assert collect_images(photos) == expected
    assert collect_images([str(photos / "photo2.bmp"), photos, photos / "notes.txt"]) == [
        expected[2],
        *expected[:2],
        *expected[3:],
        photos / "notes.txt",  # a file that is named is taken, whatever its ending
    ]


def test_collect_images_finds_nothing(photos):
    with pytest.raises(FileNotFoundError, match=r"paths: image or folder not found: .*missing"):
        collect_images([photos, photos / "missing"])
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"paths: folder is .*empty, without images, should be one that holds \.jpg"):
        collect_images(photos / "empty")
    with pytest.raises(ValueError, match=r"paths: is \[\]"):
        collect_images([])


def test_predict_writes_labels_and_overlays(photos, tmp_path):
    (photos / "photo9.jpeg").unlink()
    out, seen = tmp_path / "new" / "out", []
    palette = np.roll(pictures.voc_palette(), 1, axis=0)
    predictor = Predictor(Colours(), 4)
    result = predict(
        predictor, [photos], out, overlay="jpg", palette=palette, batch_size=2, progress=lambda *at: seen.append(at)
    )
    assert result.images == 4
    assert result.problems == []
    assert sorted(path.name for path in result.written) == files(out)
    assert files(out) == sorted(f"photo{n}{end}" for n in range(4) for end in (".png", "-overlay.jpg"))
    assert seen == [(n, 4) for n in range(1, 5)]
    for n, ending in enumerate(("png", "JPG", "bmp", "webp")):
        photo = pictures.read_image(photos / f"photo{n}.{ending}")
        picture = Image.open(out / f"photo{n}.png")
        np.testing.assert_array_equal(np.array(picture), predictor.labels([photo])[0])
        np.testing.assert_array_equal(np.array(picture.convert("RGB")), palette[np.array(picture)])
        shown = Image.open(out / f"photo{n}-overlay.jpg")
        assert shown.width >= 3 * photo.shape[1]
        assert shown.height > photo.shape[0]


def test_predict_saves_scores(photos, tmp_path):
    predictor = Predictor(Colours(), 4)
    (photos / "photo9.jpeg").unlink()
    result = predict(predictor, photos, tmp_path / "out", save_scores=tmp_path / "scores")
    stems = sorted(path.stem for path in collect_images(photos))
    assert files(tmp_path / "scores") == [f"{stem}.npz" for stem in stems]
    assert len(result.written) == 2 * len(stems)
    path = collect_images(photos)[0]
    photo = pictures.read_image(path)
    (expected,) = predictor.predict([photo], logits=True)
    read = scores.read_scores(tmp_path / f"scores/{path.stem}.npz", photo.shape[:2])
    np.testing.assert_array_equal(read.values, (expected.logits - expected.logits.max(axis=0)).astype(np.float16))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"save_scores: is .*file', should be a folder"):
        predict(predictor, photos, tmp_path / "other", save_scores=tmp_path / "file")
    with pytest.warns(UserWarning, match=r"\.npz is not written, for the photo was cut into tiles"):
        predict(in_tiles(), path, tmp_path / "tiled", save_scores=tmp_path / "tiles")
    assert files(tmp_path / "tiles") == []


def test_predict_one_file_with_a_png_overlay(photos, tmp_path):
    result = predict(Predictor(Colours(), 4), photos / "photo0.png", tmp_path / "out", overlay=True)
    assert [path.name for path in result.written] == ["photo0.png", "photo0-overlay.png"]
    photo = pictures.read_image(photos / "photo0.png")
    shown = pictures.read_image(tmp_path / "out" / "photo0-overlay.png")
    np.testing.assert_array_equal(shown[-photo.shape[0] :, : photo.shape[1]], photo)


def test_predict_stops_at_or_lists_unreadable_photos(photos, tmp_path):
    with pytest.raises(ValueError, match=r"photo9\.jpeg is no readable picture"):
        predict(Predictor(Colours(), 4), photos, tmp_path / "out")
    result = predict(Predictor(Colours(), 4), photos, tmp_path / "out", on_error="skip")
    assert result.images == 4
    ((path, message),) = result.problems
    assert path == photos / "photo9.jpeg"
    assert "is no readable picture" in message


def test_predict_lists_photos_too_large_for_memory(photos, tmp_path):
    (photos / "photo9.jpeg").unlink()
    model = Forgetful(20 * 20)
    pictures.save_image(photos / "small.png", scene((20, 20), 0)[0])
    result = predict(Predictor(model, 4), photos, tmp_path / "out", batch_size=2, on_error="skip")
    assert files(tmp_path / "out") == ["small.png"]
    assert len(result.problems) == 4
    assert all("not enough memory" in message for _, message in result.problems)


class Broken(Colours):
    """Returns NaN for pictures of one width."""

    def forward(self, x):
        scores = super().forward(x)
        return scores * torch.nan if x.shape[3] == 32 else scores


def test_scores_that_are_not_finite_name_the_image(photos, tmp_path):
    with pytest.raises(NotFiniteError, match=r"picture0: model: returned scores that are NaN or infinite"):
        evaluate(Predictor(Broken(), 4), FakeDataset(4), batch_size=2)
    result = evaluate(Predictor(Broken(), 4), FakeDataset(4), batch_size=2, on_problem="skip")
    assert result.images == 2
    assert sorted(problem.split(":")[0] for problem in result.problems) == ["picture0", "picture3"]
    pictures.save_image(tmp_path / "wide.png", scene((24, 32), 0)[0])
    pictures.save_image(tmp_path / "tall.png", scene((32, 24), 0)[0])
    both = [tmp_path / "wide.png", tmp_path / "tall.png"]
    with pytest.raises(NotFiniteError, match=r"wide\.png: model: returned scores that are NaN"):
        predict(Predictor(Broken(), 4), both, tmp_path / "out")
    result = predict(Predictor(Broken(), 4), both, tmp_path / "out", on_error="skip")
    assert files(tmp_path / "out") == ["tall.png"]
    assert [path.name for path, _ in result.problems] == ["wide.png"]


def test_predict_photos_with_long_names(tmp_path):
    name = "写真" * 40
    pictures.save_image(tmp_path / f"{name}.jpg", scene((24, 32), 0)[0])
    predict(Predictor(Colours(), 4), tmp_path / f"{name}.jpg", tmp_path / "out", overlay=True)
    assert files(tmp_path / "out") == [f"{name}-overlay.png", f"{name}.png"]
    pictures.save_image(tmp_path / f"{'x' * 251}.jpg", scene((24, 32), 0)[0])
    model = Colours()
    with pytest.raises(OSError, match="File name too long"):
        predict(Predictor(model, 4), tmp_path / f"{'x' * 251}.jpg", tmp_path / "new", overlay=True)
    assert not model.seen
    assert not (tmp_path / "new").exists()


def test_predict_refuses_before_any_work(photos, tmp_path):
    def refused(message: str, paths, out=tmp_path / "out", **options) -> None:
        model = Colours()
        with pytest.raises(ValueError, match=message):
            predict(Predictor(model, 4), paths, out, **options)
        assert not model.seen
        assert not (tmp_path / "out").exists()

    pictures.save_image(photos / "inside" / "photo1.png", scene((20, 20), 0)[0])
    refused(
        r"photo1\.JPG and .*photo1\.png would both be written to .*photo1\.png", [photos, photos / "inside/photo1.png"]
    )
    refused(r"photo0\.png is an input and would be overwritten", photos, photos)
    link = tmp_path / "link"
    link.symlink_to(photos)
    refused("is an input and would be overwritten", photos, link)
    (tmp_path / "jpegs").mkdir()
    one = pictures.read_image(photos / "photo0.png")
    pictures.save_image(tmp_path / "jpegs" / "photo.jpg", one)
    refused("would lie in .*jpegs, which is read from", tmp_path / "jpegs", tmp_path / "jpegs")
    pictures.save_image(photos / "photo0-overlay.png", scene((20, 20), 0)[0])
    refused(r"photo0-overlay\.png and .*photo0\.png would both be written", photos, overlay=True)
    refused("overlay: is 'gif'", photos, overlay="gif")
    refused("on_error: is 'ignore'", photos, on_error="ignore")
    refused("should be a folder, not a file", photos / "photo0.png", photos / "notes.txt")
