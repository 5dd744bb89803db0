"""Settings of all tests, and the fixture that chooses between compiled kernels and the reference."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Where processors are shared, threads of OpenMP that wait for each other by spinning slow small operations down a lot.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    import torch
except ImportError:  # the numpy tests run without it
    torch = None

# Machines that run tests are slow at times, so no example has a deadline. A failing example is printed in a form that
# repeats it. HYPOTHESIS_PROFILE=thorough looks at many more examples.
settings.register_profile("default", deadline=None, print_blob=True, max_examples=60)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> str:
    """What the numbers of this run depend on."""
    from deeplab_fast import doctor

    return doctor.numbers_depend_on()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch is not None and torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory():
    """New tensors without content are full of NaN, so an element that a kernel forgets to write shows."""
    if torch is None:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().item()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["kernels", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test twice: with compiled kernels where they are loaded, and with the reference throughout."""
    from compiled import require_kernels

    from deeplab_fast.ops import define, lattice

    if request.param == "reference":
        monkeypatch.setattr(define, "kernels_wanted", lambda: False)
        monkeypatch.setattr(lattice._core, "compiled", lambda: None)
    else:
        require_kernels()
    return request.param
