"""The drop-in in pydensecrf's place: in this process, in workers of every kind, in scripts that are left unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fresh_python import python

OURS = "deeplab_fast.pydensecrf.densecrf deeplab_fast.pydensecrf.utils"

# A script as other people have it. Its workers import pydensecrf again, except after a fork.
SCRIPT = """
import multiprocessing
import subprocess
import sys

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_softmax

WHERE = f"{dcrf.DenseCRF2D.__module__} {unary_from_softmax.__module__}"


def work(number):
    crf = dcrf.DenseCRF2D(6, 5, 2)
    crf.setUnaryEnergy(unary_from_softmax(np.full((2, 5, 6), 0.5)))
    crf.addPairwiseGaussian(3, number)
    assert np.isfinite(crf.inference(1)).all()
    return WHERE


def in_pool(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(work, range(3))


def in_joblib():
    import joblib

    return joblib.Parallel(n_jobs=2)(joblib.delayed(work)(number) for number in range(3))


def in_another_python():
    code = "import pydensecrf.densecrf as d, pydensecrf.utils as u; print(d.__name__, u.__name__)"
    return [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()]


def report():
    print("here", work(1))
    for method in multiprocessing.get_all_start_methods():
        print(method, *set(in_pool(method)))
    print("joblib", *set(in_joblib()))
    print("subprocess", *set(in_another_python()))
    print(sys.argv, __file__.rpartition("/")[2])
"""

TORCH_SCRIPT = (
    SCRIPT
    + """
import torch


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return work(index)


def write(rank, folder):
    with open(f"{folder}/{rank}", "w") as file:
        file.write(work(rank))


def report():
    import tempfile
    from pathlib import Path

    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Images(), num_workers=1, multiprocessing_context=method)
        print(method, *{where for batch in loader for where in batch})
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(write, (folder,), nprocs=1)
        print("torch.multiprocessing", *{path.read_text() for path in Path(folder).iterdir()})
"""
)

MAIN = """

if __name__ == "__main__":
    report()
"""

INSTALLED = "import deeplab_fast.pydensecrf\n\ndeeplab_fast.pydensecrf.install_as_pydensecrf()\n"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines_of(*arguments: object, cwd: Path | None = None) -> list[str]:
    result = run(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def script(folder: Path, text: str, name: str = "script.py") -> Path:
    path = folder / name
    path.write_text(text + MAIN)
    return path


def test_workers_of_a_process_that_called_install(tmp_path):
    """The call guards nothing in the workers: they find the package by the path that they inherit."""
    installed = "\nif __name__ == '__main__':\n" + textwrap.indent(INSTALLED, "    ")
    text = SCRIPT.replace("import numpy as np\n", "import numpy as np\n" + installed)
    *where, _ = lines_of(script(tmp_path, text))
    assert [line.partition(" ")[2] for line in where] == [OURS] * len(where)
    assert [line.partition(" ")[0] for line in where] == [
        "here", "fork", "spawn", "forkserver", "joblib", "subprocess",
    ]  # fmt: skip


def test_a_script_left_unchanged(tmp_path):
    *where, last = lines_of("-m", "deeplab_fast.pydensecrf", script(tmp_path, SCRIPT), "--flag", "value")
    assert len(where) == 6
    assert {line.partition(" ")[2] for line in where} == {OURS}
    assert last == f"{[str(tmp_path / 'script.py'), '--flag', 'value']} script.py"


def test_a_module_left_unchanged(tmp_path):
    text = SCRIPT.replace("multiprocessing.get_all_start_methods()", "['spawn']").replace('    print("joblib"', "    #")
    script(tmp_path, text, "module_of_a_test.py")
    *where, last = lines_of("-m", "deeplab_fast.pydensecrf", "-m", "module_of_a_test", "--flag", cwd=tmp_path)
    assert len(where) == 3
    assert {line.partition(" ")[2] for line in where} == {OURS}
    assert last == f"{[str(tmp_path / 'module_of_a_test.py'), '--flag']} module_of_a_test.py"


def test_workers_of_torch(tmp_path):
    pytest.importorskip("torch")
    where = lines_of("-m", "deeplab_fast.pydensecrf", script(tmp_path, TORCH_SCRIPT))
    assert where == [f"{kind} {OURS}" for kind in ("fork", "spawn", "torch.multiprocessing")]


def test_a_script_runs_as_python_runs_it(tmp_path):
    """Its folder comes first on the path, its exit code and output are kept, and what outlives it finds its names."""
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    path = tmp_path / "script.py"
    path.write_text("""
import pickle, sys, threading, time
import beside, pydensecrf


def function():
    pass


def later():
    threading.main_thread().join(0.2)
    print(pickle.loads(pickle.dumps(function)) is function, flush=True)


print(__name__, beside.NAME, pydensecrf.__name__, flush=True)
if len(sys.argv) == 1:
    threading.Thread(target=later).start()
else:
    sys.exit(int(sys.argv[1]))
""")
    assert lines_of("-m", "deeplab_fast.pydensecrf", path) == ["__main__ beside deeplab_fast.pydensecrf", "True"]
    assert run("-m", "deeplab_fast.pydensecrf", path, 7).returncode == 7


@pytest.mark.parametrize("arguments", [(), ("-m",), ("--unknown", "script.py"), ("no_such_script.py",)])
def test_wrong_use_of_the_runner(arguments):
    result = run("-m", "deeplab_fast.pydensecrf", *arguments)
    assert result.returncode in (1, 2)
    assert "python -m deeplab_fast.pydensecrf" in result.stderr
    assert "Traceback" not in result.stderr


def test_names_after_installing():
    out = python("""
        import os
        import sys
        import deeplab_fast.pydensecrf
        deeplab_fast.pydensecrf.install_as_pydensecrf()
        import pydensecrf.densecrf as dcrf
        from pydensecrf.utils import unary_from_labels
        from pydensecrf import densecrf, eigen, utils
        import pydensecrf
        before = list(sys.path), os.environ["PYTHONPATH"]
        deeplab_fast.pydensecrf.install_as_pydensecrf()
        assert before == (sys.path, os.environ["PYTHONPATH"])
        assert dcrf is densecrf is pydensecrf.densecrf and utils is pydensecrf.utils and eigen is pydensecrf.eigen
        assert dcrf is deeplab_fast.pydensecrf.densecrf and dcrf.eigen is eigen
        print(dcrf.DenseCRF2D.__module__, unary_from_labels.__module__)
    """)
    assert out == OURS


def test_other_entries_of_the_path_are_kept(tmp_path):
    out = python(
        """
        import os
        import deeplab_fast.pydensecrf
        deeplab_fast.pydensecrf.install_as_pydensecrf()
        print(os.environ["PYTHONPATH"].partition(os.pathsep)[2])
        """,
        PYTHONPATH=f"{tmp_path}{os.pathsep}/another",
    )
    assert out == f"{tmp_path}{os.pathsep}/another"


def test_a_python_that_does_not_know_deeplab_fast():
    """PYTHONPATH also reaches one that was not told where deeplab_fast is: it is the one that the folder lies in."""
    from deeplab_fast.pydensecrf import _install

    out = python(f"""
        import sys
        sys.path.insert(0, {_install.FOLDER!r})
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        import importlib.util
        sys.path_importer_cache.clear()
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "deeplab_fast" else real(name, *rest)
        from pydensecrf import densecrf, utils
        print(densecrf.__name__, utils.__name__)
    """)
    assert out == OURS


@pytest.mark.parametrize("module", ["pydensecrf", "pydensecrf.densecrf", "pydensecrf.utils"])
def test_after_the_real_one(module):
    """Later imports find this package; a warning names what cannot be changed."""
    out = python(f"""
        import sys
        import warnings
        import {module} as bound
        import pydensecrf.utils
        from pydensecrf.utils import unary_from_labels as function
        import deeplab_fast.pydensecrf
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            deeplab_fast.pydensecrf.install_as_pydensecrf()
            deeplab_fast.pydensecrf.install_as_pydensecrf()
        print([str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)])
        import pydensecrf.densecrf
        from pydensecrf.utils import unary_from_labels
        print(pydensecrf.densecrf.__name__, unary_from_labels.__module__)
    """)
    warned, where = out.splitlines()
    assert where == OURS
    assert warned.count("comes late") == 1
    assert "__main__.bound" in warned
    assert "__main__.function" in warned
    assert "site-packages" in warned
