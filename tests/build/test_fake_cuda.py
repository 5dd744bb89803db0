"""In a CUDA build of torch, GPU or none: fake tensors on a GPU go through everything public, up to the launch.

Shapes, strides and dtypes are compared with what real tensors on the CPU give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gpu_cases import CASES, EAGER, Case, last, rand  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._C import DispatchKey, DispatchKeySet  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import deeplab_fast  # noqa: E402
from deeplab_fast.ops import cuda, lattice  # noqa: E402

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")


def stem() -> torch.nn.Module:
    """What `patch` finds something in."""
    layers = torch.nn
    block = layers.Sequential(layers.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False), layers.BatchNorm2d(8))
    return layers.Sequential(block, layers.Sequential(layers.Conv2d(8, 8, 3, padding=1), layers.ReLU())).eval()


def run(case: Case, fake: bool, way: Callable[..., Any] = lambda module, _: module) -> list[Tensor]:
    """The tensors that come out, on a GPU that is not there or in truth on the CPU."""
    with FakeTensorMode() if fake else nullcontext(), torch.device("cuda" if fake else "cpu"), torch.no_grad():
        module, inputs = case.make(), [one() for one in case.inputs]
        return [one for one in pytree.tree_leaves(way(module, inputs)(*inputs)) if isinstance(one, Tensor)]


def formats(outputs: Sequence[Tensor]) -> list[tuple]:
    return [(tuple(one.shape), one.dtype, one.stride()) for one in outputs]


def assert_as_on_the_cpu(case: Case, outputs: Sequence[Tensor]) -> None:
    assert outputs
    assert formats(outputs) == formats(run(case, fake=False))
    assert {str(one.device) for one in outputs} == {"cuda:0"}


@pytest.mark.parametrize("name", [*CASES, *EAGER])
def test_called(name: str):
    case = (CASES | EAGER)[name]
    assert_as_on_the_cpu(case, run(case, fake=True))


@pytest.mark.parametrize("name", CASES)
def test_compiled(name: str):
    torch.compiler.reset()
    compiled = lambda module, _: torch.compile(module, backend="aot_eager", fullgraph=True)  # noqa: E731
    assert_as_on_the_cpu(CASES[name], run(CASES[name], fake=True, way=compiled))


@pytest.mark.parametrize("name", CASES)
def test_exported(name: str):
    exported = lambda module, inputs: torch.export.export(module, tuple(inputs)).module()  # noqa: E731
    assert_as_on_the_cpu(CASES[name], run(CASES[name], fake=True, way=exported))


def test_patched():
    """Probed with real values on the CPU; the fused forward then runs with parameters of the GPU."""
    model = stem()
    report = deeplab_fast.patch(model)
    assert len(report.replaced) == 2, str(report)
    state = model.state_dict()
    with FakeTensorMode() as mode, torch.no_grad():
        state = {name: mode.from_tensor(one).to("cuda") for name, one in state.items()}
        out = torch.func.functional_call(model, state, (torch.rand(2, 3, 17, 17, device="cuda"),))
    assert (tuple(out.shape), out.device.type) == ((2, 8, 17, 17), "cuda")


def test_patch_says_that_fake_parameters_have_no_values():
    with FakeTensorMode(), torch.device("cuda"):
        report = deeplab_fast.patch(stem())
    assert report.replaced == []
    assert {entry.why for entry in report.left_alone} == {
        "its parameters are fake and have no values, so it cannot be probed"
    }


# --- Gradients -----------------------------------------------------------------------------------------------------


class Context(SimpleNamespace):
    """What torch.autograd gives to an op's functions, as torch has no engine for a GPU without a driver."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, _: bool) -> None:
        pass


PUBLIC = torch.ops.deeplab_fast
GRADIENTS: dict[str, tuple[str, Callable[[], tuple]]] = {
    "aspp_sum": ("aspp_sum", lambda: (last(2, 8, 9, 9), [rand(4, 8, 3, 3), rand(4, 8, 3, 3)], rand(4), [1, 2])),
    "atrous_conv2d": (
        "atrous_conv2d",
        lambda: (
            rand(2, 8, 9, 9), rand(4, 8, 3, 3), rand(4), rand(4), rand(2, 4, 5, 5), [2, 2], [2, 2], [2, 2], True
        ),
    ),
    "permutohedral_filter": ("permutohedral_filter", lambda: (rand(2, 4, 9, 9), rand(2, 3, 9, 9), False)),
    "dense_crf": (
        "dense_crf",
        lambda: (rand(2, 4, 9, 9), [rand(2, 5, 9, 9), rand(2, 2, 9, 9)], [rand(1)[0], rand(4, 4)], 2, [3, 1]),
    ),
    "dense_crf_history": ("dense_crf", lambda: (rand(2, 4, 9, 9), [rand(2, 5, 9, 9)], [rand(4)], 2, [3])),
    "pairwise_energy": (
        "pairwise_energy", lambda: (rand(2, 4, 9, 9), rand(2, 5, 4, 4), rand(2, 1, 4, 4), 0.5)
    ),
    "upsample_softmax": ("upsample", lambda: (last(2, 4, 9, 9), 20, 21)),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str):
    """Of every tensor but `inside`, in its shape and dtype."""
    stem, make = GRADIENTS[name]
    formulas = import_module(f"deeplab_fast.ops.{stem}")
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        arguments = make()
        context = Context(needs_input_grad=pytree.tree_map(lambda one: isinstance(one, Tensor), arguments))
        output = getattr(PUBLIC, name)(*arguments)
        formulas._setup_context(context, arguments, output)
        grads = [torch.rand_like(one) for one in (output if isinstance(output, tuple) else (output,))]
        gradients = formulas._backward(context, *grads)
    assert len(gradients) == len(arguments)
    for to, gradient in zip(arguments, gradients, strict=True):
        inside = name == "pairwise_energy" and to is arguments[2]
        tensors = [one for one in pytree.tree_leaves(to) if isinstance(one, Tensor) and not inside]
        found = [one for one in pytree.tree_leaves(gradient) if one is not None]
        assert [(one.shape, one.dtype, one.device) for one in found] == [
            (one.shape, one.dtype, one.device) for one in tensors
        ]


# --- Dispatch ------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the compiled kernels and launchers that are called on fake tensors, instead of calling them."""
    names: list[str] = []

    def noted(name: str, returns: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            return returns(*arguments, **options)

        return call

    fakes = {f"{name}_kernel": getattr(PUBLIC, name) for name in CRF_OPS}
    fakes["permutohedral_filter_both_ways_cuda"] = PUBLIC.permutohedral_filter
    fakes |= {"lattice_tables_cuda": lambda one: [one], "lattice_filter_cuda": lambda one, *_: torch.empty_like(one)}
    fakes |= {f"upsample_{name}_into": lambda *_: None for name in ("argmax", "softmax", "softmax_backward")}
    launcher = lambda stem: SimpleNamespace(  # noqa: E731
        pack=lambda *_: None,
        is_packed=lambda *_: False,
        **{
            name: noted(f"{stem}.{name}", returns)
            for name, returns in {
                "forward": lambda x, *_, **__: x,
                "backward_x": lambda x, *_, **__: x,
                "backward_weights": lambda x, *_: [x],
                "backward_relu": lambda x, *_: (x, x),
            }.items()
        },
    )
    monkeypatch.setattr(cuda, "_module", launcher)
    with torch.library._scoped_library("deeplab_fast", "FRAGMENT") as library:
        for name, fake in fakes.items():
            torch.library.register_fake(f"deeplab_fast::{name}", noted(name, fake), lib=library)
        yield names


def test_a_lattice_on_a_gpu_is_built_once(launched: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lattice, "may_look_at_values", lambda _: True)
    with FakeTensorMode(), torch.device("cuda"):
        kept = deeplab_fast.Lattice(rand(2, 3, 9, 9))
        outputs = [kept.filter(last(2, 4, 9, 9), reverse) for reverse in (False, True)]
    assert launched == ["lattice_tables_cuda", "lattice_filter_cuda", "lattice_filter_cuda"]
    assert [(out.shape, out.stride()) for out in outputs] == [((2, 4, 9, 9), last(2, 4, 9, 9).stride())] * 2


CRF_OPS = (
    "permutohedral_filter", "permutohedral_filter_backward_features", "dense_crf", "dense_crf_history",
    "dense_crf_backward",
)  # fmt: skip
LAUNCHES: dict[str, tuple[Callable[[], tuple], str]] = {
    **{
        name: (make, {"aspp_sum": "aspp_sum.forward", "atrous_conv2d": "atrous_conv2d.forward"}.get(name, ""))
        for name, (_, make) in GRADIENTS.items()
    },
    "upsample_argmax": (lambda: (rand(2, 4, 9, 9), 20, 21), ""),
    "upsample_softmax_backward": (lambda: (rand(2, 4, 20, 21), rand(2, 4, 20, 21), 9, 9), ""),
    "permutohedral_filter_backward_features": (
        lambda: (rand(2, 4, 9, 9), rand(2, 4, 9, 9), rand(2, 3, 9, 9), False), ""
    ),
    "dense_crf_backward": (
        lambda: (
            rand(2, 4, 9, 9), rand(2, 4, 9, 9), [rand(2, 5, 9, 9)], [rand(4)], 2, [3], rand(2, 2, 81, 4), True, True
        ),
        "",
    ),
    "aspp_sum_inference": (
        lambda: (rand(2, 8, 9, 9), [rand(4, 8, 3, 3)], None, [2]), "aspp_sum.forward"
    ),
    "aspp_sum_backward_x": (lambda: (rand(2, 4, 9, 9), [rand(4, 8, 3, 3)], [2]), "aspp_sum.backward_x"),
    "aspp_sum_backward_weights": (
        lambda: (rand(2, 4, 9, 9), rand(2, 8, 9, 9), [rand(4, 8, 3, 3)], [2]), "aspp_sum.backward_weights"
    ),
    "atrous_conv2d_backward_relu": (lambda: (rand(2, 4, 9, 9), rand(2, 4, 9, 9)), "atrous_conv2d.backward_relu"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_kernel_of_the_gpu_is_the_one_that_is_called(name: str, launched: list[str]):
    """Once, and so one lattice a call."""
    make, expected = LAUNCHES[name]
    if not expected:
        of_energy = "permutohedral_filter_both_ways_cuda"
        expected = {"pairwise_energy": of_energy}.get(
            name, f"{name}_into" if name.startswith("upsample") else f"{name}_kernel"
        )
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        arguments = make()
        getattr(PUBLIC, name).default.redispatch(DispatchKeySet(DispatchKey.CUDA), *arguments)
    assert launched == [expected]
