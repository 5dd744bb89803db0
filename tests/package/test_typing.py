"""The types that a user's type checker sees."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from places import ROOT

import deeplab_fast

# Each line with what mypy says of it; "" for a right use, of which it must say nothing.
USES = {
    "assert_type(deeplab_fast.aspp_sum(x, [x, x], None, (1, 2)), Tensor)": "",
    "assert_type(deeplab_fast.atrous_conv2d(x, x, padding='same', dilation=(2, 2), relu=True), Tensor)": "",
    "assert_type(deeplab_fast.dense_crf(x, [x, x], [3, 4], 5, 'symmetric'), Tensor)": "",
    "assert_type(deeplab_fast.Lattice(x).filter(x), Tensor)": "",
    "assert_type(deeplab_fast.patch(net).entries[0].path, str)": "",
    "assert_type(deeplab_fast.ops.upsample_argmax(x, (9, 9)), Tensor)": "",
    "assert_type(deeplab_fast.reference.aspp_sum(x, [x]), Tensor)": "",
    "assert_type(deeplab_fast.nn.DenseCRF.preset('irn'), deeplab_fast.nn.DenseCRF)": "",
    "assert_type(deeplab_fast.models.load_weights(net, 'file'), deeplab_fast.models.WeightsReport)": "",
    "assert_type(deeplab_fast.crf.batched_crf(x, x), Tensor)": "",
    "assert_type(deeplab_fast.crf.batched_crf(x, [x, x], 'toco'), list[Tensor])": "",
    "assert_type(deeplab_fast.compat.stego.batched_crf(None, x, x), Tensor)": "",
    "assert_type(deeplab_fast.permutohedral_filter(x, x, query_features=x), Tensor)": "",
    "deeplab_fast.aspp_sum('no', [x])": "arg-type",
    "deeplab_fast.aspp_sum(x, 3)": "arg-type",
    "deeplab_fast.aspp_sum(x, [x], rates='6')": "arg-type",
    "deeplab_fast.atrous_conv2d(x)": "call-arg",
    "deeplab_fast.atrous_conv2d(x, x, dilation=0.5)": "arg-type",
    "deeplab_fast.dense_crf(x, x, 3, '5')": "arg-type",
    "deeplab_fast.permutohedral_filter(x)": "call-arg",
    "deeplab_fast.upsample_softmax(x, 'twice')": "arg-type",
    "deeplab_fast.patch(3)": "arg-type",
    "deeplab_fast.unpatch('net')": "arg-type",
    "deeplab_fast.accelerate(net, dtype='half')": "arg-type",
    "deeplab_fast.nn.ASPP('2048', 21)": "arg-type",
    "deeplab_fast.crf.parameters(3)": "arg-type",
    "deeplab_fast.compat.toco.DenseCRF(10, 3)": "call-arg",
    "deeplab_fast.no_such_name": "attr-defined",
}
HEAD = [
    "from typing_extensions import assert_type",
    "import deeplab_fast",
    "from torch import Tensor, nn",
    "x = Tensor()",
    "net = nn.ReLU()",
]


def test_wrong_uses_are_refused_by_mypy(tmp_path, monkeypatch):
    """And right ones are not, with the types that they should have."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed: the extra dev has it")
    (tmp_path / "uses.py").write_text("\n".join([*HEAD, *USES]) + "\n")
    monkeypatch.chdir(ROOT)  # where mypy finds its settings, the package, and what `make lint` kept of torch's types
    text, errors, _ = api.run([str(tmp_path / "uses.py")])
    said: dict[int, set[str]] = {}
    for line, code in re.findall(r"uses\.py:(\d+): error: .*\[([a-z-]+)\]$", text, re.MULTILINE):
        said.setdefault(int(line), set()).add(code)
    found = {use: said.get(line, set()) for line, use in enumerate(USES, len(HEAD) + 1)}
    assert found == {use: {code} - {""} for use, code in USES.items()}, text + errors


def exported(file: Path) -> dict[str, str]:
    """Of `from M import X as X` under `if TYPE_CHECKING`: X -> M."""
    (block,) = [one for one in ast.parse(file.read_text()).body if isinstance(one, ast.If)]
    imports = [one for one in block.body if isinstance(one, ast.ImportFrom)]
    return {alias.asname: one.module for one in imports for alias in one.names if alias.asname == alias.name}


@pytest.mark.parametrize("name", ["deeplab_fast", "deeplab_fast.evaluation"])
def test_checkers_see_the_lazy_names(name):
    package = import_module(name)
    seen = exported(Path(package.__file__))
    assert seen.keys() == {*package._LAZY, *package._MODULES} <= {*dir(package)}
    for name, module in seen.items():
        own = import_module(f"{module}.{name}" if name in package._MODULES else module)
        assert getattr(package, name) is (own if name in package._MODULES else getattr(own, name))
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_stub_of_the_compiled_core():
    """It names what is there, in classes too."""
    core = pytest.importorskip("deeplab_fast._densecrf", reason="the compiled core is not built")
    stub = ast.parse(Path(deeplab_fast.__file__).with_name("_densecrf.pyi").read_text())
    assert _public(core) == {one.name for one in stub.body if isinstance(one, ast.ClassDef | ast.FunctionDef)}
    for one in stub.body:
        if isinstance(one, ast.ClassDef):
            names = {part.name for part in one.body if isinstance(part, ast.FunctionDef)}
            assert _public(getattr(core, one.name)) == names - {"__init__"}


def _public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}
