"""The Triton kernels compiled for Hopper (sm_90) ahead of time, as their launchers would have them: no GPU is needed.

A launcher gets tensors without data, and a stand-in for the kernel takes down what it is launched with. Asserted is
what a slow kernel would give away: matrix instructions that are missing, registers that spill, too much shared memory.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from deeplab_fast._conv_arguments import Epilogue, Geometry  # noqa: E402
from deeplab_fast.kernels import aspp_sum, atrous_conv2d, choices  # noqa: E402
from deeplab_fast.kernels.choices import TILES, Tile  # noqa: E402

SHARED_MEMORY = 227 * 1024  # bytes that one program may have on Hopper
REGISTERS = 64 * 1024  # of a multiprocessor
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32
PRECISION = {"16bit": BFLOAT, "tf32": FLOAT, "ieee": FLOAT}
ON_CHIP_TILES = [("16bit", tile) for tile in TILES["16bit"]] + [("tf32", TILES["tf32"][0]), ("ieee", TILES["ieee"][0])]
ALL_TILES = [(arithmetic, tile) for arithmetic, tiles in TILES.items() for tile in tiles]


def tile_name(value: Any) -> str | None:
    return f"{value.pixels}x{value.columns}" if isinstance(value, Tile) else None


# --- Compiling -----------------------------------------------------------------------------------------------------


@dataclass
class Launch:
    """A kernel and what it was launched with."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass
class Compiled:
    ptx: str
    shared: int
    registers: int
    local: int  # bytes of a thread's memory for what does not fit in registers


class Recorder:
    """Stands in for a kernel: kernel[grid](...) is taken down, and not run."""

    def __init__(self, kernel: Any, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size > 0 for size in grid)

        def launch(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
            bound = inspect.signature(self.kernel.fn).bind(*args, **kwargs)
            self.launches.append(Launch(self.kernel, dict(bound.arguments), options))

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    recorded: list[Launch] = []
    for module in (aspp_sum, atrous_conv2d):
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorder(value, recorded))
    return recorded


def compile_for_hopper(launch: Launch) -> Compiled:
    """As at run time: None and 1 are compiled in, multiples of 16 and (aligned) tensors are known to be such."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind = kind_of(value)
        if parameter.is_constexpr or kind == "constexpr":
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = kind
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch.options)
    registers, local = resources(kernel.asm["cubin"])
    return Compiled(kernel.asm["ptx"], kernel.metadata.shared, registers, local)


def kind_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return {BFLOAT: "*bf16", HALF: "*fp16", FLOAT: "*fp32"}[value.dtype]
    if isinstance(value, int) and not isinstance(value, bool):
        return "constexpr" if value == 1 else "i32" if -(2**31) <= value < 2**31 else "i64"
    return "constexpr"


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of local memory, of the one kernel in a binary."""
    if not CUOBJDUMP.exists():  # some builds of Triton come without; registers and spills are then not to be had
        pytest.skip(f"{CUOBJDUMP} is not there")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = dict(re.findall(r"(\w+):(\d+)", text))
    return int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"])


def assert_fits(launch: Launch) -> Compiled:
    """Without spills, within a multiprocessor."""
    compiled = compile_for_hopper(launch)
    assert compiled.local == 0
    assert compiled.shared <= SHARED_MEMORY
    assert compiled.registers * 32 * launch.options["num_warps"] <= REGISTERS
    return compiled


# --- Kernels -------------------------------------------------------------------------------------------------------


def maps(*shape: int, dtype: torch.dtype = BFLOAT, last: bool = True) -> Tensor:
    made = torch.empty(shape, dtype=dtype, device="meta")
    return made.contiguous(memory_format=torch.channels_last) if last else made


def precise(monkeypatch: pytest.MonkeyPatch, arithmetic: str) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", arithmetic == "tf32")


def same(rate: int) -> Geometry:
    """Of a 3x3 kernel: with it, height and width stay."""
    return Geometry([1, 1], [rate, rate], [rate, rate])


def run_atrous(
    channels: int, columns: int, size: int, rate: int, dtype: torch.dtype, last: bool = True, tile: Tile | None = None
) -> None:
    x, residual = (maps(1, c, size, size, dtype=dtype, last=last) for c in (channels, columns))
    vector = torch.empty(columns, device="meta")
    weight = maps(columns, channels, 3, 3, dtype=dtype)
    atrous_conv2d.forward(
        x, weight, same(rate), Epilogue(vector, vector, residual, relu=True), path="triton", tile=tile
    )


@pytest.mark.parametrize(("arithmetic", "tile"), ALL_TILES, ids=tile_name)
def test_atrous_conv2d(arithmetic: str, tile: Tile, launches: list[Launch], monkeypatch: pytest.MonkeyPatch):
    precise(monkeypatch, arithmetic)
    run_atrous(512, 512, 65, 4, PRECISION[arithmetic], tile=tile)
    compiled = assert_fits(*launches)
    assert ("wgmma.mma_async" in compiled.ptx) == (arithmetic != "ieee")
    assert "cp.async" in compiled.ptx  # loads run ahead of the arithmetic


@pytest.mark.parametrize(("arithmetic", "tile"), ON_CHIP_TILES, ids=tile_name)
def test_aspp_sum_on_chip(arithmetic: str, tile: Tile, launches: list[Launch], monkeypatch: pytest.MonkeyPatch):
    precise(monkeypatch, arithmetic)
    dtype = PRECISION[arithmetic]
    weights, bias = [maps(182, 2048, 3, 3, dtype=dtype)] * 4, torch.empty(182, device="meta", dtype=dtype)
    aspp_sum.forward(maps(1, 2048, 65, 65, dtype=dtype), weights, bias, [6, 12, 18, 24], path="on_chip", tile=tile)
    compiled = assert_fits(*launches)
    assert ("wgmma.mma_async" in compiled.ptx) == (arithmetic != "ieee")


@pytest.mark.parametrize(("dtype", "last"), [(BFLOAT, True), (HALF, False), (FLOAT, False)])
def test_layouts_and_sizes(dtype: torch.dtype, last: bool, launches: list[Launch]):
    """Few output channels, channels that fill no whole step, and 64-bit offsets."""
    run_atrous(80, 21, 33, 2, dtype, last)
    run_atrous(64, 64, 8192, 2, dtype, last)
    assert [launch.arguments["WIDE"] for launch in launches] == [False, True]
    for launch in launches:
        assert_fits(launch)


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
def test_channels_without_alignment_compile_but_are_not_chosen(dtype: torch.dtype, launches: list[Launch]):
    run_atrous(70, 21, 33, 2, dtype)
    assert compile_for_hopper(launches[0]).shared <= SHARED_MEMORY
    launches.clear()
    x, weight = maps(1, 70, 33, 33, dtype=dtype), maps(21, 70, 3, 3, dtype=dtype)
    atrous_conv2d.forward(x, weight, same(2), Epilogue(relu=True))
    assert [launch.kernel.fn.__name__ for launch in launches] == ["epilogue_kernel"]


@pytest.mark.parametrize("arithmetic", list(TILES))
def test_atrous_conv2d_gradients(arithmetic: str, launches: list[Launch], monkeypatch: pytest.MonkeyPatch):
    precise(monkeypatch, arithmetic)
    dtype = PRECISION[arithmetic]
    x, grad, weight = (maps(*shape, dtype=dtype) for shape in ((1, 512, 65, 65), (1, 512, 65, 65), (512, 512, 3, 3)))
    atrous_conv2d.backward(
        grad, x, weight, torch.empty(512, device="meta"), same(4), True, True,
        path_x="triton", path_weight="triton",
    )  # fmt: skip
    assert len(launches) == 2
    for launch in launches:
        compiled = assert_fits(launch)
        if arithmetic == "16bit":
            assert "wgmma.mma_async" in compiled.ptx


@pytest.mark.parametrize(("dtype", "last"), [(BFLOAT, True), (BFLOAT, False), (FLOAT, True), (FLOAT, False)])
def test_kernels_without_products(dtype: torch.dtype, last: bool, launches: list[Launch]):
    """ReLU's gradient, what follows a stock convolution, and the shifts."""
    x, grad = (maps(2, c, 41, 41, dtype=dtype, last=last) for c in (64, 21))
    weights, vector = [maps(21, 64, 3, 3, dtype=dtype)] * 4, torch.empty(21, device="meta")
    atrous_conv2d.backward_relu(grad, grad)
    atrous_conv2d.forward(x, weights[0], same(1), Epilogue(vector, vector, grad, relu=True), path="cudnn")
    aspp_sum.forward(x, weights, vector, [6, 12, 18, 24], path="gemm")
    aspp_sum.backward_x(grad, weights, [6, 12, 18, 24])
    aspp_sum.backward_weights(grad, x, weights, [6, 12, 18, 24])
    names = [launch.kernel.fn.__name__ for launch in launches]
    copies = "shifted_copies_kernel"
    assert names == ["relu_backward_kernel", "epilogue_kernel", "shift_sum_kernel", copies, copies]
    for launch in launches[:4]:
        assert_fits(launch)


# --- Choices -------------------------------------------------------------------------------------------------------


def test_every_path_of_the_table_is_one_that_the_launchers_know():
    known = {"atrous_conv2d": {"triton", "cudnn"}, "aspp_sum": {"gemm", "on_chip"}}
    for (what, arithmetic, _), choice in choices.PATHS.items():
        assert choice.path in known[what.split("_backward")[0]]
        assert arithmetic in ("any", *TILES)


@pytest.mark.parametrize("arithmetic", list(TILES))
@pytest.mark.parametrize(
    ("what", "shapes"),
    [
        ("atrous_conv2d", ("plain", "unaligned")),
        ("atrous_conv2d_backward_x", ("plain", "dilated", "unaligned")),
        ("atrous_conv2d_backward_weight", ("plain", "dilated", "unaligned")),
        ("aspp_sum", ("plain", "large_product")),
    ],
)
def test_every_call_has_a_path(what: str, shapes: tuple[str, ...], arithmetic: str):
    for shape in shapes:
        assert choices.path_for(what, arithmetic, shape)


def test_the_first_line_that_fits_decides(monkeypatch: pytest.MonkeyPatch):
    lines = {("op", "any", "any"): "d", ("op", "tf32", "any"): "c", ("op", "any", "s"): "b", ("op", "tf32", "s"): "a"}
    for expected in ("d", "c", "b", "a"):
        chosen = {key: choices.Choice(path, "") for key, path in lines.items() if path >= expected}
        monkeypatch.setattr(choices, "PATHS", chosen)
        assert choices.path_for("op", "tf32", "s") == expected


def test_tiles_fill_the_chip():
    large, *_, small = TILES["16bit"]
    assert choices.tile_for("16bit", 10**6, 512, 132) == large
    assert choices.tile_for("16bit", 100, 512, 132) == small
    assert choices.tile_for("16bit", 10**6, 21, 132).columns < 2 * 21
    chosen = choices.tile_for("16bit", 65 * 65, 512, 132)
    assert -(-65 * 65 // chosen.pixels) * -(-512 // chosen.columns) >= 132


def test_arithmetic_follows_torch(monkeypatch: pytest.MonkeyPatch):
    x = torch.empty(1)
    for tf32, name in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        assert choices.arithmetic_of(x) == name
        assert choices.arithmetic_of(x.half()) == "16bit"
