"""Threads: how many are used, the GIL while computing, several Python threads, fork."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fresh_python import python
from photos import photo, unary
from places import with_path

import deeplab_fast.pydensecrf as package
import deeplab_fast.pydensecrf.densecrf as dcrf
from deeplab_fast import _limits

SIZE = (90, 71)
IMAGE = photo("coffee", SIZE[1], SIZE[0])


def model(seed: int = 0, image: np.ndarray = IMAGE, labels: int = 5) -> dcrf.DenseCRF2D:
    height, width = image.shape[:2]
    crf = dcrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(unary(image, labels, seed=seed))
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(50, 5, image, 10)
    return crf


@pytest.fixture(autouse=True)
def _own_thread_count():
    yield
    package.set_num_threads(None)


def test_other_python_threads_run_while_computing():
    image = photo("coffee", 300, 400)
    crf = model(image=image, labels=21)
    started, stop = threading.Event(), threading.Event()
    longest_gap = 0.0

    def watch():
        nonlocal longest_gap
        last = time.monotonic()
        started.set()
        while not stop.is_set():
            time.sleep(0.0005)
            now = time.monotonic()
            longest_gap, last = max(longest_gap, now - last), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    started.wait()
    begin = time.monotonic()
    crf.inference(20)
    took = time.monotonic() - begin
    stop.set()
    watcher.join()
    # Holding the GIL makes one gap as long as the call. A busy machine makes gaps too, but not that long.
    assert longest_gap < 0.8 * took, f"another thread stood still for {longest_gap:.3f} of {took:.3f} s"


def test_separate_objects_in_parallel():
    expected = [model(seed).inference(5) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = pool.map(lambda seed: model(seed).inference(5), range(8))
            assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_one_object_from_several_threads():
    crf = model()
    energies = [unary(IMAGE, 5, seed=seed) for seed in range(4)]
    expected = {model(seed).inference(3).tobytes() for seed in range(4)}
    errors = []

    def use(seed):
        try:
            for _ in range(5):
                crf.setUnaryEnergy(energies[seed])
                assert crf.inference(3).tobytes() in expected  # of one unary or another, never of a mixture
                q, *scratch = crf.startInference()
                crf.stepInference(q, *scratch)
                crf.klDivergence(q)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_kernels_added_while_computing():
    crf = model()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(crf.inference, 3) for _ in range(4)]
        jobs += [pool.submit(crf.addPairwiseGaussian, 2 + i, 0.1) for i in range(4)]
        for job in jobs:
            job.result()
    assert np.isfinite(crf.inference(2)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_number_of_threads_hardly_changes_the_result(count, monkeypatch):
    monkeypatch.setattr(_limits, "processors", lambda: 7)
    package.set_num_threads(1)
    expected = model().inference(10)
    package.set_num_threads(count)
    assert package.get_num_threads() == count
    result = model().inference(10)
    assert np.abs(result - expected).max() <= 1e-4
    assert np.array_equal(result, model().inference(10))


def test_no_more_threads_than_processors():
    if package._backend.core().isa() == "numpy":
        pytest.skip("numpy has one thread")
    out = python(
        """
        import os
        from deeplab_fast import _limits
        import test_pydensecrf_threads as t
        before = len(os.listdir("/proc/self/task"))
        t.package.set_num_threads(10**9)
        t.model().inference(2)
        started = len(os.listdir("/proc/self/task")) - before
        used = t.package._backend.core().get_num_threads()
        print(t.package.get_num_threads() == used == _limits.processors(), started)
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
        print(t.package.get_num_threads(), _limits.processors())
    """,
        PYTHONPATH=with_path(Path(__file__).parent)["PYTHONPATH"],
    )
    first, second = out.splitlines()
    agree, started = first.split()
    assert agree == "True"
    assert int(started) <= _limits.processors() - 1
    assert second == "1 1"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes as Linux has them")
def test_where_the_system_refuses_threads():
    """RLIMIT_NPROC, or pids.max of a container: the threads at hand compute, later ones are tried again."""
    out = python(
        """
        import os, resource, threading, time
        import numpy as np
        from deeplab_fast import _limits
        import test_pydensecrf_threads as t
        t.package.set_num_threads(1)
        expected = t.model().inference(3)
        if os.geteuid() == 0:  # whom the limit does not hold
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        try:
            threading.Thread(target=print).start()
            print("a thread was started")
        except RuntimeError:
            pass
        _limits.processors = lambda: 3
        t.package.set_num_threads(3)
        threads = lambda: len(os.listdir("/proc/self/task"))
        before = threads()
        for _ in range(3):
            assert np.array_equal(t.model().inference(3), expected)
        assert threads() == before
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        time.sleep(1.1)
        assert np.array_equal(t.model().inference(3), expected)
        print(threads() - before)
    """,
        PYTHONPATH=with_path(Path(__file__).parent)["PYTHONPATH"],
    )
    if out.startswith("a thread"):
        pytest.skip("this system does not keep the limit")
    assert out == ("0" if package._backend.core().isa() == "numpy" else "2")


@pytest.mark.parametrize("count", [0, -1, 2.0, "2"])
def test_bad_thread_counts(count):
    with pytest.raises((ValueError, TypeError)):
        package.set_num_threads(count)


REPORT = """
from deeplab_fast.pydensecrf import get_num_threads, densecrf, set_num_threads
from deeplab_fast.pydensecrf._backend import core
densecrf.DenseCRF(8, 2).inference(1)
print(get_num_threads(), core().get_num_threads())
"""


def threads_in(code: str, **environment: str) -> list[int]:
    wanted, used = map(int, python(code, **environment).split())
    if package._backend.core().isa() != "numpy":  # which has one thread
        assert used == wanted
    return wanted


def test_omp_num_threads():
    available = _limits.processors()
    for setting, expected in (("1", 1), ("3", 3), ("2,4", 2), ("1000000", available)):
        assert threads_in(REPORT, OMP_NUM_THREADS=setting) == min(expected, available)
    for ignored in ("", "0", "many"):
        assert threads_in(REPORT, OMP_NUM_THREADS=ignored) == available


def test_torch_num_threads():
    pytest.importorskip("torch")
    available = _limits.processors()
    for number in (1, 3):
        report = f"import torch; torch.set_num_threads({number})" + REPORT
        assert threads_in(report) == min(number, available)
    report = "import torch; torch.set_num_threads(1)" + REPORT.replace("densecrf.D", "set_num_threads(2); densecrf.D")
    assert threads_in(report) == min(2, available)


def _child(queue):
    queue.put(model().inference(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads, which is the point
def test_a_forked_child_computes():
    """Workers are commonly forked after the parent has computed, whose threads do not exist in the child."""
    expected = model().inference(3)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,), daemon=True)
    child.start()
    try:
        assert np.array_equal(queue.get(timeout=30), expected)
    finally:
        child.kill()
        child.join()
    assert np.array_equal(model().inference(3), expected)
