"""The command over a data set: options, what it says, and runs that are killed, stopped or share the work."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import killed_runs
import numpy as np
import pytest
from command import succeeds
from data_sets import make_set, names, set_of_six, written
from PIL import Image
from places import with_path
from typer.testing import CliRunner

from deeplab_fast.commands import app

folder = set_of_six


def run(folder, *options, images="images", scores="scores", out="out", **environment):
    words = ["crf", folder / images, *[folder / one for one in (scores,) if one], "-o", folder / out, *options]
    return CliRunner().invoke(app.app, [str(word) for word in words], env=environment)


def fails(code, message, result):
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output
    return result


def test_a_folder(folder):
    result = succeeds(run(folder, "--jobs", 2))
    assert "2 worker processes, threads of each: 1; at most" in result.stderr
    assert "refined: 6 of 6," in result.stderr
    assert "the scores were taken as logits" in result.stderr
    assert re.search(r"^6 images refined in \d+\.\d s, \d+\.\d\d a second$", result.stdout, re.M)
    assert re.search(r"^memory: at most \d+ MB in a process, 2 at once$", result.stdout, re.M)
    assert set(written(folder / "out")) == {"settings.json", *(f"{name}.png" for name in names(6))}
    again = succeeds(run(folder, "--jobs", 2))
    assert "note: 6 of 6 images are there already" in again.stderr
    assert "0 images refined" in again.stdout
    assert "6 images refined" in succeeds(run(folder, "--jobs", 0, "--no-skip-existing")).stdout


def test_patterns_lists_and_what_is_written(folder):
    succeeds(run(folder, "--jobs", 0, images="images/*.png", scores="scores/*.npy"))
    assert set(written(folder / "out")) == {"settings.json", *(f"{name}.png" for name in names(6) if "/" not in name)}
    (folder / "set.txt").write_text("".join(f"images/{name}.png scores/{name}.npy\n" for name in names(6)))
    options = ["--jobs", 0, "--root", folder, "--save-probabilities", "--overlay"]
    succeeds(run(folder, *options, images="set.txt", scores=None, out="listed"))
    endings = (".png", ".npz", "-overlay.jpg")
    assert set(written(folder / "listed")) == {
        "settings.json",
        *(f"{name}{end}" for name in names(6) for end in endings),
    }
    for name in written(folder / "out"):
        assert (folder / "out" / name).read_bytes() == (folder / "listed" / name).read_bytes()


def test_failures_are_listed_and_the_exit_code_is_1(folder):
    (folder / "scores/0001.npy").write_bytes(b"")
    (folder / "images/0003.png").unlink()
    result = fails(1, r"2 failed, all listed in .*out/failed\.txt; 000\d: ", run(folder, "--jobs", 1))
    assert "4 images refined" in result.stdout
    assert [line.split("\t")[0] for line in (folder / "out/failed.txt").read_text().splitlines()] == ["0001", "0003"]
    (folder / "scores/0001.npy").unlink()
    result = succeeds(run(folder, "--jobs", 1, "--skip-missing"))
    assert "2 left out, without counterpart" in result.stdout
    assert not (folder / "out/failed.txt").exists()


def test_evaluation_on_the_way(folder):
    pytest.importorskip("matplotlib")
    (folder / "labels/0004.png").unlink()
    result = succeeds(run(folder, "--jobs", 2, "--labels", folder / "labels", "--compare"))
    report = json.loads((folder / "out/report/evaluation.json").read_text())
    assert report["after"]["mean_iou"] > report["before"]["mean_iou"] > 0.3
    after = f"{100 * report['after']['mean_iou']:.2f}"
    assert re.search(rf"mean IoU +\d+\.\d+ +{after}", result.stdout)
    assert (folder / "out/report/evaluation.svg").read_text().count("<path") > 20
    page = (folder / "out/report/compare.html").read_text()
    assert page.count("<section>") == 6
    assert page.count("data:image/jpeg;base64,") == 5 * 5 + 4  # photo, before, after, truth, changed
    assert 'src="http' not in page
    shares = [float(share) for share in re.findall(r"<p>([\d.]+) % changed", page)]
    assert shares == sorted(shares, reverse=True)
    # What is there counts, too, and the results are no images when the folder is read from.
    (folder / "out/0000.png").unlink()
    succeeds(run(folder, "--jobs", 2, "--labels", folder / "labels"))
    assert json.loads((folder / "out/report/evaluation.json").read_text()) == report


def test_names_are_text_in_the_page(folder):
    shutil.copy(folder / "images/0000.png", folder / "images/<b>&.png")
    shutil.copy(folder / "scores/0000.npy", folder / "scores/<b>&.npy")
    succeeds(run(folder, "--jobs", 0, "--compare"))
    page = (folder / "out/report/compare.html").read_text()
    assert "<h2>&lt;b&gt;&amp;</h2>" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", -1], "wrong use: --jobs: is -1, should be at least 0"),
        (["--shard", "5"], "wrong use: --shard: is '5', should be like 3/16"),
        (["--shard", "0/4"], "wrong use: --shard: is '0/4', should be one of 1/N to N/N"),
        (["--memory", 0], "wrong use: --memory: is 0"),
        (["--keys", "some"], "wrong use: --keys: is 'some', should be classes or foreground"),
        (["--overlay-to", "a.png"], "wrong use: --overlay-to belongs to one photo"),
        (["--preset", "best"], "wrong use: --preset: is 'best'"),
        (["--threads", 0], "wrong use: --threads: is 0"),
    ],
)
def test_wrong_use(folder, options, message):
    fails(2, message, run(folder, *options))
    assert not (folder / "out").exists()


def test_wrong_use_of_a_photo(folder):
    for option in (["--jobs", 1], ["--labels", "x"], ["--compare"], ["--shard", "1/2"], ["--no-skip-existing"]):
        result = run(folder, *option, images="images/0000.png", scores="scores/0000.npy", out="a.png")
        if option != ["--no-skip-existing"]:
            fails(2, rf"{option[0]} belongs to a data set", result)
    fails(2, "SCORES is missing", run(folder, images="images/0000.png", scores=None, out="b.png"))


def test_a_folder_that_is_not_there(folder):
    fails(1, r"images: folder not found: .*imagse", run(folder, images="imagse"))


def test_other_parameters_need_another_folder(folder):
    succeeds(run(folder, "--jobs", 0))
    fails(1, r"with results of .*\(--no-skip-existing\)", run(folder, "--jobs", 0, "--preset", "psa"))
    fails(2, "wrong use: .* is read from", run(folder, out="scores"))


def test_a_photo_has_probabilities_and_some_classes_too(folder):
    np.savez(folder / "some.npz", keys=[0, 3, 7, 9], logits=np.load(folder / "scores/0000.npy"))
    words = {"images": "images/0000.png", "scores": "some.npz", "out": "a.png"}
    succeeds(run(folder, "--save-probabilities", **words))
    with np.load(folder / "a.npz") as saved:
        np.testing.assert_array_equal(saved["keys"], [0, 3, 7, 9])
    with Image.open(folder / "a.png") as picture:
        assert set(np.unique(np.array(picture))) <= {0, 3, 7, 9}


def test_the_colours_of_a_palette(folder):
    own = Image.new("P", (2, 2))
    own.putpalette([9, 8, 7, 60, 50, 40, 1, 2, 3, 200, 100, 0])
    own.save(folder / "own.png")
    given = {"images": "images/0000.png", "scores": "scores/0000.npy", "out": "a.png"}
    for words, result in (({}, folder / "out/0000.png"), (given, folder / "a.png")):
        succeeds(run(folder, "--palette", folder / "own.png", "--classes", 4, **words))
        with Image.open(result) as picture:
            assert picture.getpalette()[:9] == [9, 8, 7, 60, 50, 40, 1, 2, 3]
    fails(
        1, r"palette .*0000\.png: mode is RGB, should be palette", run(folder, "--palette", folder / "images/0000.png")
    )


# -------------------------------------------------------------------------------------------------- several machines


def test_shards_of_the_option_and_of_job_systems(folder):
    make_set(folder, 12)
    succeeds(run(folder, "--jobs", 0, out="whole"))
    environments = [{}, {"RANK": "1", "WORLD_SIZE": "4"}, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5",
                    "SLURM_ARRAY_TASK_COUNT": "4"}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}]  # fmt: skip
    sources = ["", r" \(RANK, WORLD_SIZE\)", r" \(SLURM_ARRAY_TASK_ID\)", r" \(SLURM_PROCID, SLURM_NTASKS\)"]
    for number, (environment, source) in enumerate(zip(environments, sources, strict=True), 1):
        options = ["--shard", "1/4"] if number == 1 else []
        result = succeeds(run(folder, "--jobs", 0, *options, out="parts", **environment))
        assert re.search(rf"note: shard {number}/4{source}: ", result.stderr)
    assert written(folder / "parts") == written(folder / "whole")
    assert "shard" not in succeeds(run(folder, "--shard", "1/1", "--jobs", 0, RANK="1", WORLD_SIZE="4")).stderr


def test_shards_at_the_same_time_share_a_folder(tmp_path):
    make_set(tmp_path, 24)
    succeeds(run(tmp_path, "--jobs", 0, out="whole"))
    running = [killed_runs.command(tmp_path, "out", "--shard", f"{number}/4") for number in range(1, 5)]
    for process in running:
        killed_runs.finished(process)
    assert written(tmp_path / "out") == written(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------- killed and stopped


def test_killed_runs_go_on_to_the_same_results(tmp_path):
    said = killed_runs.check_killed_runs(tmp_path, 60, 5, seed=random.randrange(2**32), height=64, width=96)
    assert "60 images, 5 kills: all equal" in said


# Python imports this in every process that it starts.
CUSTOM = """
import os, signal, sys

def crash(name):
    {crash}

if sys.argv == ["-c"]:  # a worker
    from deeplab_fast.crf.dataset import work

    finish = work.finish

    def finish_or_crash(loaded, *rest, **options):
        crash(loaded.pair.name)
        return finish(loaded, *rest, **options)

    work.finish = finish_or_crash
"""
SCRIPT = """
import sys
from deeplab_fast import crf

root = sys.argv[1]
result = crf.refine_dataset(root + "/images", root + "/scores", root + "/out", jobs=2)
print(result.images, result.failed)
"""


def with_crashes(folder, custom):
    """Run a script, which has no guard against being imported, with a `sitecustomize` module."""
    (folder / "sitecustomize.py").write_text(custom)
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, str(folder / "script.py"), str(folder)],
        env=with_path(folder), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
def test_an_image_at_which_workers_die_fails_and_the_others_do_not(folder, ending):
    done = with_crashes(folder, CUSTOM.format(crash=f"if name == '0001': {ending}"))
    assert done.returncode == 0, done.stderr
    said = "SIGKILL, as of a system that is out of memory" if "kill" in ending else "exit code 3"
    assert done.stdout.strip() == f"5 {{'0001': 'its worker process ended 2 times: {said}'}}"
    assert (folder / "out/failed.txt").read_text() == f"0001\tits worker process ended 2 times: {said}\n"


def test_an_image_is_tried_again_when_its_worker_dies_once(folder):
    mark = folder / "mark"
    crash = f"if name == '0001' and not os.path.exists({str(mark)!r}): open({str(mark)!r}, 'w'); os._exit(1)"
    done = with_crashes(folder, CUSTOM.format(crash=crash))
    assert done.stdout.strip() == "6 {}", done.stderr
    assert not (folder / "out/failed.txt").exists()


def test_workers_that_cannot_start_end_the_run(folder):
    done = with_crashes(folder, "import os, sys\nif sys.argv == ['-c']: os._exit(5)\n")
    assert "RuntimeError: worker processes cannot be started: exit code 5" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_stopped_runs_say_how_far_they_are_and_leave_nothing_half_done(tmp_path, number, code):
    make_set(tmp_path, 40, 96, 128)
    process = killed_runs.command(tmp_path, "out")
    while not killed_runs.results(tmp_path / "out").keys() - {"settings.json"}:
        time.sleep(0.005)
    children = killed_runs.workers(process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == code, text
    assert re.search(r"note: stopped at \d+ of 40 images; the same command goes on with the others", text)
    assert not any(child.is_running() for child in children)
    assert not any(killed_runs.is_partial(name) for name in written(tmp_path / "out"))


def test_memory_is_shared(folder):
    """With next to none, images are refined one after the other; the results are the same."""
    succeeds(run(folder, "--jobs", 2, out="whole"))
    assert "at most 0.0 GB of memory together" in succeeds(run(folder, "--jobs", 2, "--memory", 1e-6)).stderr
    assert written(folder / "out") == written(folder / "whole")


def test_the_command_and_its_workers_import_no_torch(folder):
    code = (
        "import sys; from deeplab_fast import crf\n"
        "crf.refine_dataset(*(sys.argv[1] + one for one in ('/images', '/scores', '/out')), jobs=0)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
