"""Where files may be written, and what is half-written: it goes when its process is dead, and stays while it lives."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import make_scene

from deeplab_fast import files
from deeplab_fast.files import DestinationError, atomic_write, check_destination, check_folder, remove_abandoned

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ------------------------------------------------------------------------------------------------- destinations


@pytest.fixture
def places(tmp_path):
    """A folder of inputs with a file in it, links to both, and a folder for results."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(b"truth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to("../labels/a.png")
    (tmp_path / "linked").symlink_to("labels")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("labels/a.png", r"labels/a\.png is an input and would be overwritten"),
        ("out/../labels/a.png", "is an input and would be overwritten"),
        ("out/a.png", "is an input and would be overwritten"),
        ("linked/a.png", "is an input and would be overwritten"),
        ("labels/new.png", r"would lie in .*labels, which is read from: choose another folder"),
        ("linked/new.png", "which is read from"),
    ],
)
def test_inputs_are_no_destinations(places, path, message):
    inputs = [places / "labels", places / "labels" / "a.png"]
    for given in (inputs, files.Inputs(inputs)):
        with pytest.raises(DestinationError, match=message):
            check_destination(places / path, given)
    check_destination(places / "out" / "b.png", inputs)
    (places / "labels" / "inside").mkdir()
    check_destination(places / "labels" / "inside" / "b.png", inputs)


@pytest.mark.parametrize("path", ["labels", "linked", "out/../labels"])
def test_folders_of_inputs_are_no_destinations(places, path):
    with pytest.raises(DestinationError, match="is read from, nothing may be written there"):
        check_folder(places / path, [places / "labels"])
    check_folder(places / "out", [places / "labels"])
    check_folder(places / "out" / "new", [places / "labels"])


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "device", Path("/dev/null")):
        for write in (check_destination, lambda path: atomic_write(path, lambda file: file.write(b"x"))):
            with pytest.raises(DestinationError, match=r"output: is .*, a device, .* should be a regular file"):
                write(path)
    assert Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["device", "pipe"]


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder of the output not found"):
        check_destination(tmp_path / "new" / "a.png")
    check_destination(tmp_path / "new" / "a.png", new_folder=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        check_destination(tmp_path / "file" / "new" / "a.png", new_folder=True)


@pytest.mark.parametrize("folder", ["", "new"])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path, folder):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    check_destination(tmp_path / folder / ("x" * longest), new_folder=True)
    with pytest.raises(OSError, match="File name too long"):
        check_destination(tmp_path / folder / ("x" * (longest + 1)), new_folder=True)
    if not folder:
        atomic_write(tmp_path / ("x" * longest), lambda file: file.write(b"whole"))
        assert (tmp_path / ("x" * longest)).read_bytes() == b"whole"


# --------------------------------------------------------------------------------------- what killed processes left

WRITER = """
import sys, time
from pathlib import Path
from deeplab_fast.files import atomic_write, partial_folder

def write(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(100)

folder = Path(sys.argv[1])
if sys.argv[2] == "file":
    atomic_write(folder / "x", write)
else:
    with partial_folder(folder) as made:
        write(open(made / "inside", "wb"))
"""


def writing(folder, what="file"):
    """A process that is in the midst of writing."""
    words = [sys.executable, "-c", WRITER, str(folder), what]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path, what):
    with writing(tmp_path, what) as process:
        try:
            (partial,) = names(tmp_path)
            assert partial.endswith(files.PARTIAL)
            remove_abandoned(tmp_path)
            atomic_write(tmp_path / "a", lambda file: file.write(b"a"))
            assert names(tmp_path) == [partial, "a"]
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == [partial, "a"]
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a"]


def test_the_first_file_that_a_process_writes_to_a_folder_cleans_it(tmp_path):
    files._partial_name(tmp_path).write_bytes(b"half")
    atomic_write(tmp_path / "a", lambda file: file.write(b"a"))
    assert names(tmp_path) == ["a"]


def test_files_of_another_machine_wait_for_a_day(tmp_path, monkeypatch):
    """A lock may be seen on one machine only."""
    with monkeypatch.context() as patch:
        patch.setattr(files, "_machine", lambda: "0another")
        away = files._partial_name(tmp_path)
    away.write_bytes(b"half")
    remove_abandoned(tmp_path)
    assert away.exists()
    old = time.time() - files.FOREIGN_AGE - 60
    os.utime(away, (old, old))
    with open(away, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_abandoned(tmp_path)
        assert away.exists()
    remove_abandoned(tmp_path)
    assert not away.exists()


def test_other_peoples_files_and_links_stay(tmp_path):
    (tmp_path / "truth").write_bytes(b"truth")
    files._partial_name(tmp_path).symlink_to("truth")
    (tmp_path / ".x.png.partial").write_bytes(b"another program's")
    (tmp_path / "deeplab-fast-x.partial").write_bytes(b"another")
    before = names(tmp_path)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == before
    assert (tmp_path / "truth").read_bytes() == b"truth"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Then nobody can know who is alive: nothing is deleted, and writing works."""

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = files._partial_name(tmp_path)
    left.write_bytes(b"half")
    atomic_write(tmp_path / "a", lambda file: file.write(b"a"))
    assert names(tmp_path) == [left.name, "a"]


def test_a_new_file_that_is_taken_for_abandoned_before_it_is_locked(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def flock(descriptor, how):
        if not calls:
            calls.append(descriptor)
            for name in names(tmp_path):
                (tmp_path / name).unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    atomic_write(tmp_path / "a", lambda file: file.write(b"whole"))
    assert calls
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


# ------------------------------------------------------------------------------------------------------ SIGTERM

COMMAND = """
import sys, time
from deeplab_fast import crf
from deeplab_fast.commands import app

def slow(*_):
    from deeplab_fast.files import atomic_write
    atomic_write(sys.argv[-1], lambda file: (print("writing", flush=True), time.sleep(100)))

crf.build = slow
app.main()
"""


def test_sigterm_cleans_up(tmp_path):
    make_scene(tmp_path)
    before = names(tmp_path)
    words = [sys.executable, "-c", COMMAND, "crf", "photo.png", "logits.npy", "-o", "x.png"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(names(tmp_path)) == len(before) + 1
        process.terminate()
        error = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert error.splitlines()[-1] == "deeplab-fast crf: terminated"
    assert names(tmp_path) == before
