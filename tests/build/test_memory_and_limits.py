"""What this process may have, by its control groups, and memory that goes back to the system."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from compiled import require_kernels
from fresh_python import python
from places import with_path

import deeplab_fast.pydensecrf as package
from deeplab_fast import _limits
from deeplab_fast.pydensecrf import densecrf

linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system(cgroup, mountinfo, files): a made-up tree of /proc and control groups that the limits are read from."""

    def make(cgroup: str, mountinfo: str, files: dict[str, str]) -> None:
        for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        forget()

    def forget() -> None:
        _limits.processor_quota.cache_clear()
        _limits.memory.cache_clear()

    forget()
    monkeypatch.setattr(_limits, "ROOT", tmp_path)
    monkeypatch.setattr(_limits.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(_limits.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 4096}[name])
    yield make
    forget()


UNIFIED = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup rw,nsdelegate"
FOLDER = "sys/fs/cgroup"
PHYSICAL = 2**36


def test_no_limits(system):
    system("0::/", UNIFIED, {f"{FOLDER}/cpu.max": "max 100000", f"{FOLDER}/memory.max": "max"})
    assert (_limits.processors(), _limits.memory()) == (16, PHYSICAL)
    assert _limits.most_kept() == 2**30


def test_a_container_of_version_2(system):
    system("0::/", UNIFIED, {f"{FOLDER}/cpu.max": "150000 100000", f"{FOLDER}/memory.max": str(2**31)})
    assert (_limits.processors(), _limits.memory()) == (2, 2**31)
    assert _limits.most_kept() == 2**27


@pytest.mark.parametrize("lower", [True, False])
def test_the_least_of_nested_groups(system, lower):
    own, parent = f"{FOLDER}/user.slice/job.scope", f"{FOLDER}/user.slice"
    small, large = (own, parent) if lower else (parent, own)
    files = {
        f"{small}/cpu.max": "300000 100000",
        f"{large}/cpu.max": "800000 100000",
        f"{small}/memory.max": "1000000",
        f"{large}/memory.max": "2000000",
    }
    system("0::/user.slice/job.scope", UNIFIED, files)
    assert (_limits.processors(), _limits.memory()) == (3, 1000000)


V1 = """32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""


@pytest.mark.parametrize("root", ["/", "/docker/0123"])
def test_version_1(system, root):
    """A container without a name space of its own sees the path of the host, of which its own part is mounted."""
    below = "" if root != "/" else "docker/0123/"
    files = {
        f"{FOLDER}/cpu,cpuacct/{below}cpu.cfs_quota_us": "400000",
        f"{FOLDER}/cpu,cpuacct/{below}cpu.cfs_period_us": "100000",
        f"{FOLDER}/memory/{below}memory.limit_in_bytes": "3000000",
        f"{FOLDER}/memory/memory.limit_in_bytes": "9223372036854771712" if root == "/" else "3000000",
    }
    system("4:memory:/docker/0123\n2:cpuacct,cpu:/docker/0123\n0::/", V1.format(root=root), files)
    assert (_limits.processors(), _limits.memory()) == (4, 3000000)


def test_no_quota_in_version_1(system):
    files = {f"{FOLDER}/cpu,cpuacct/cpu.cfs_quota_us": "-1", f"{FOLDER}/cpu,cpuacct/cpu.cfs_period_us": "100000"}
    system("4:memory:/\n2:cpu,cpuacct:/", V1.format(root="/"), files)
    assert (_limits.processors(), _limits.memory()) == (16, PHYSICAL)


@pytest.mark.parametrize("cgroup", ["0::/../../other", "0::/elsewhere", ""])
def test_groups_that_cannot_be_seen(system, cgroup):
    """Those above the mounted part, or none at all: what can be seen counts."""
    system(cgroup, UNIFIED, {f"{FOLDER}/memory.max": "5000000"})
    assert _limits.memory() == (5000000 if cgroup else PHYSICAL)
    assert _limits.processors() == 16


def test_a_fraction_of_a_processor(system):
    system("0::/", UNIFIED, {f"{FOLDER}/cpu.max": "10000 100000"})
    assert _limits.processors() == 1


def test_no_proc(system, tmp_path):
    assert (_limits.processor_quota(), _limits.processors()) == (math.inf, 16)
    assert _limits.available_memory() == PHYSICAL
    assert _limits.peak_memory() > 2**20  # getrusage knows as well


def test_memory_that_is_free_counts_within_the_limit(system):
    files = {"proc/meminfo": "MemTotal:       67108864 kB\nMemFree: 12 kB\nMemAvailable:   3000 kB"}
    system("0::/", UNIFIED, {f"{FOLDER}/memory.max": str(2**31), **files})
    assert _limits.available_memory() == 3000 * 1024
    system("0::/", UNIFIED, {f"{FOLDER}/memory.max": "1000000", **files})
    assert _limits.available_memory() == 1000000


def test_peak_memory_is_that_of_the_process(system):
    system("0::/", UNIFIED, {"proc/self/status": "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t    250 kB"})
    assert _limits.peak_memory() == 250 * 1024


def test_threads_and_sizes_follow_the_limits(system):
    system("0::/", UNIFIED, {f"{FOLDER}/cpu.max": "100000 100000", f"{FOLDER}/memory.max": "3000000"})
    package.set_num_threads(8)
    try:
        assert package.get_num_threads() == 1
    finally:
        package.set_num_threads(None)
    with pytest.raises(ValueError, match="memory"):
        densecrf.DenseCRF2D(400, 300, 21)


def resident() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@linux_only
def test_threads_leave_nothing_after_release_memory():
    """All that is left is what the C library cannot give back: its own way of doing so finds nothing more."""
    if package._backend.core().isa() == "numpy":
        # The compiled core is optional, and what its threads keep is looked at here.
        pytest.skip("numpy keeps nothing")
    out = python(
        """
        import ctypes, gc, threading
        import numpy as np
        from deeplab_fast.pydensecrf import densecrf, release_memory
        from test_memory_and_limits import resident

        def work():
            rng = np.random.default_rng(0)
            crf = densecrf.DenseCRF2D(300, 200, 21)
            crf.setUnaryEnergy(rng.random((21, 60000), dtype=np.float32))
            crf.addPairwiseGaussian(3, 3)
            crf.addPairwiseBilateral(20, 13, rng.integers(0, 255, (200, 300, 3), np.uint8), 10)
            crf.inference(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        before = resident()
        release_memory()
        after = resident()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)
        print(before, after, resident())
        """,
        PYTHONPATH=with_path(Path(__file__).parent)["PYTHONPATH"],
    )
    before, after, trimmed = (int(number) / 2**20 for number in out.split())
    assert after < before - 50
    assert after - trimmed < 8


@linux_only
def test_release_memory_reaches_the_ops():
    torch = pytest.importorskip("torch")
    import deeplab_fast

    require_kernels()
    unary, features = torch.rand(1, 21, 375, 500), torch.rand(1, 2, 375, 500)
    deeplab_fast.dense_crf(unary, features, 1.0, 1)
    package.release_memory()
    before = resident()
    expected = deeplab_fast.dense_crf(unary, features, 1.0, 1)
    kept = resident() - before - expected.nbytes
    package.release_memory()
    assert kept > 2**24  # Q of one image alone is as much
    assert resident() - before - expected.nbytes < kept / 2
    assert np.array_equal(deeplab_fast.dense_crf(unary, features, 1.0, 1), expected)
