"""How the commands of the segmentation system fail, and what they do not load to answer --help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from command import succeeds
from small_system import CONFIG, call, train_in

pytest.importorskip("pydantic", reason="pydantic is not installed")
pytest.importorskip("yaml", reason="pyyaml is not installed")

from deeplab_fast import data, models, pictures
from deeplab_fast.commands import common

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "eval", "predict", "convert", "crf-eval")
INSTALL = r'is needed here and is not installed: pip install "deeplab-fast\[train\]"$'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished training, and files that are wrong in several ways."""
    made = tmp_path_factory.mktemp("errors")
    succeeds(train_in(made))
    (made / "text.yaml").write_text("data: [")
    (made / "list.yaml").write_text("- data")
    (made / "unknown.yaml").write_text(CONFIG.format(folder=made) + "speed: 3\n")
    (made / "text.pth").write_text("no weights")
    (made / "broken.jpg").write_bytes(b"no picture")
    (made / "empty").mkdir()
    torch.save(models.deeplabv2_small(7, msc=False).state_dict(), made / "seven.pth")
    torch.save({"head.weight": torch.zeros(3, 3)}, made / "other.pth")
    state = models.deeplabv2_small(5, msc=False).state_dict()
    torch.save({"student": state, "teacher": {name: 2 * tensor for name, tensor in state.items()}}, made / "two.pth")
    state["aspp.c0.bias"][1] = torch.nan
    torch.save(state, made / "nan.pth")
    return made


def state(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def fails(folder, code, message, *words):
    """The command exits with `code`, says `message` in one line on stderr, and leaves every file as it was."""
    before = state(folder)
    result = call(*(word.replace("{f}", str(folder)) for word in words))
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith(f"deeplab-fast {words[0]}: " + ("error: " if code == 1 else "wrong use: "))
    assert re.search(message, result.stderr.rstrip("\n")), result.stderr
    assert "--debug" not in result.stderr
    assert state(folder) == before


CONFIG_WORDS = ["-c", "{f}/config.yaml"]
NEW_SMALL = ["-o", "{f}/new.pth", "--model", "deeplabv2_small"]
NEW = ["--set", "output={f}/new", "--quiet"]
NOT_FINITE = r"aspp\.c0\.bias has 1 of 5 values that are NaN or Inf, .*; take an earlier checkpoint$"
SEVEN_CLASSES = (
    r"seven\.pth: do not fit the model: aspp\.c0\.weight is \(7, .*; --config should be that of their training; to "
    r"train them for another, set its model\.weights$"
)
TWO_CLASSES = (
    "data={kind: folder, images: {f}/set/JPEGImages, labels: {f}/set/SegmentationClass, classes: [a, b], val: ''}"
)


@pytest.mark.parametrize("command", ["train", "eval", "crf-eval"])
@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (1, r"configuration not found: .*none\.yaml$", ["-c", "{f}/none.yaml"]),
        (1, r"text\.yaml: is no readable YAML", ["-c", "{f}/text.yaml"]),
        (1, r"list\.yaml: should hold sections", ["-c", "{f}/list.yaml"]),
        (1, r"unknown\.yaml: speed: is unknown$", ["-c", "{f}/unknown.yaml"]),
        (1, r"training\.lr: is -1: input should be greater than 0", [*CONFIG_WORDS, "--set", "training.lr=-1"]),
        (2, r"--set: is 'training\.lr', should be like", [*CONFIG_WORDS, "--set", "training.lr"]),
        (1, r"folder not found: .*/away$", [*CONFIG_WORDS, "--set", "data={kind: voc12, root: {f}/away}", *NEW[:2]]),
    ],
)
def test_configurations(folder, command, code, message, words):
    others = {"crf-eval": ["--logits", "{f}/empty"], "eval": ["-w", "{f}/run/best.pth"]}
    fails(folder, code, message, command, *words, *others.get(command, []))


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (1, r"output: .*last\.pth exists; go on from it \(--resume\) or choose another folder$", ["--quiet"]),
        (1, r"list of the split 'extra' not found: .*extra\.txt$", [*NEW, "--set", "data.train=extra"]),
        (1, r"weights not found: .*none\.pth$", [*NEW, "--set", "model.weights={f}/none.pth"]),
        (1, r"other\.pth: do not fit the model: missing", [*NEW, "--set", "model.weights={f}/other.pth"]),
        (
            1,
            r"seven\.pth: do not fit .*; set model\.classifier to fresh to train these layers anew$",
            [*NEW, "--set", "model.weights={f}/seven.pth", "--set", "model.classifier=strict"],
        ),
        (1, r"two\.pth: .*; say which with model\.weights_key$", [*NEW, "--set", "model.weights={f}/two.pth"]),
        (1, rf"nan\.pth: {NOT_FINITE}", [*NEW, "--set", "model.weights={f}/nan.pth"]),
        (1, r"name: is 'resnet', should be one of deeplabv2_resnet101", [*NEW, "--set", "model.name=resnet"]),
        (1, r"options: is 'size', should be one of msc", [*NEW, "--set", "model.options={size: 3}"]),
        (1, r"checkpoint not found: .*last\.pth$", [*NEW, "--resume"]),
        (1, r"device: is 'gpu', should be auto, cpu or cuda$", [*NEW, "--set", "device=gpu"]),
    ],
)
def test_train(folder, code, message, words):
    fails(folder, code, message, "train", *CONFIG_WORDS, *words)


def test_train_without_a_labelled_pixel_to_evaluate(tmp_path):
    """There is no score then, and no best checkpoint; the training is whole all the same."""
    data.write_shapes(tmp_path / "set", train=8, val=4, size=(64, 48))
    for path in (tmp_path / "set" / "SegmentationClass").glob("val_*.png"):
        pictures.save_labels(path, np.full((48, 64), 255))
    result = train_in(tmp_path)
    assert result.exit_code == 0, result.output
    assert "mean IoU" not in result.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.pth", "log.csv"}


def test_train_that_diverges(folder):
    result = call(
        "train", "-c", folder / "config.yaml", *(word.format(f=folder) for word in NEW), "--set", "training.lr=1e30"
    )
    assert result.exit_code == 1
    assert re.fullmatch(
        r"deeplab-fast train: error: .* not finite in step \d.*|.*the loss is \w+ in step \d.*\n", result.stderr
    )
    assert not list((folder / "new").glob("*.pth"))


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (1, r"weights not found: .*none\.pth$", ["-w", "{f}/none.pth"]),
        (
            1,
            r"weights .*text\.pth: is a text that begins with 'no weights', not a file of weights; fetch it again$",
            ["-w", "{f}/text.pth"],
        ),
        (1, SEVEN_CLASSES, ["-w", "{f}/seven.pth"]),
        (1, r"two\.pth: .* under 'student' and 'teacher'; say which with --key$", ["-w", "{f}/two.pth"]),
        (1, r"under the key 'ema'; there are weights under 'student', 't", ["-w", "{f}/two.pth", "--key", "ema"]),
        (1, rf"nan\.pth: {NOT_FINITE}", ["-w", "{f}/nan.pth"]),
        (2, r"the weights have 5 classes, the set has 2$", ["-w", "{f}/run/best.pth", "--set", TWO_CLASSES]),
        (2, r"--weights is missing, and .*/empty has neither best\.pth nor last\.pth", ["--set", "output={f}/empty"]),
        (2, r"--device: is 'gpu', should be auto, cpu or cuda$", ["--device", "gpu"]),
        (1, r"list of the split 'extra' not found", ["--split", "extra"]),
        (1, r"folder of the output: is the file .*broken\.jpg, should be a folder$", ["-o", "{f}/broken.jpg"]),
        (1, r"output: is the file .*broken\.jpg, should be a folder$", ["--save-png", "{f}/broken.jpg/labels"]),
        (1, r"crf\.preset: is 'voc': input should be 'deeplab'", ["--crf", "--set", "crf.preset=voc"]),
    ],
)
def test_eval(folder, code, message, words):
    fails(folder, code, message, "eval", *CONFIG_WORDS, *words)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            r"SegmentationClass is read from, nothing may be written there",
            ["eval", "--save-png", "{f}/set/SegmentationClass"],
        ),
        (r"JPEGImages is read from", ["eval", "--save-logits", "{f}/set/../set/JPEGImages"]),
        (r"labels is read from", ["eval", "--save-png", "{f}/labels"]),
        (
            r"linked/val_0000\.png would lie in .*/SegmentationClass, which is read from",
            ["eval", "--save-png", "{f}/linked"],
        ),
        (r"eval\.json would lie in .*JPEGImages, which is read from", ["eval", "-o", "{f}/set/JPEGImages"]),
        (
            r"/dev/null, .* should be a regular file",
            ["crf-eval", "--logits", "{f}/empty", "-o", "/dev/null"],
        ),
        (r"config\.yaml is an input", ["crf-eval", "--logits", "{f}/empty", "-o", "{f}/config.yaml"]),
        (
            r"val\.txt is an input",
            ["crf-eval", "--logits", "{f}/empty", "-o", "{f}/set/ImageSets/Segmentation/val.txt"],
        ),
        (r"last\.pth would lie in .*JPEGImages", ["train", "--quiet", "--set", "output={f}/set/JPEGImages"]),
    ],
)
def test_inputs_are_not_overwritten(folder, message, words):
    labels, linked = folder / "labels", folder / "linked"
    if not labels.exists():
        labels.symlink_to("set/SegmentationClass")
        linked.mkdir()
        (linked / "val_0000.png").symlink_to("../set/SegmentationClass/val_0000.png")
    fails(folder, 2, message, words[0], *CONFIG_WORDS, *words[1:])


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, r"--kind: is 'labels', should be auto, logits, probabilities or sigmoid$", ["--kind", "labels"]),
        (2, r"--layout: is 'last', should be auto, khw or hwk$", ["--layout", "last"]),
        (2, r"--bi-xy-std: is '3,x', should be numbers separated by commas$", ["--bi-xy-std", "3,x"]),
        (2, r"--pos-xy-std: is 0\.0, should be a positive number", ["--pos-xy-std", "1,0"]),
        (2, r"--iterations: is '2\.5', should be whole numbers separated by commas$", ["--iterations", "2.5"]),
        (1, r"folder not found: .*/none$", ["--logits", "{f}/none"]),
        (1, r"/empty has no file for any image of the set", []),
        (
            1,
            r"folder of the output: is the file .*broken\.jpg, should be a folder$",
            ["-o", "{f}/broken.jpg/table.csv"],
        ),
        (1, r"output: is the folder .*/empty, should be a file$", ["-o", "{f}/empty"]),
    ],
)
def test_crf_eval(folder, code, message, words):
    fails(folder, code, message, "crf-eval", *CONFIG_WORDS, "--logits", "{f}/empty", *words)


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (1, r"image or folder not found: .*none\.jpg$", ["{f}/none.jpg"]),
        (1, r"folder is .*/empty, without images", ["{f}/empty"]),
        (1, r"image .*broken\.jpg is no readable picture$", ["{f}/broken.jpg"]),
        (
            1,
            r"train_0000\.jpg and .*train_0000\.png would both be written to",
            ["{f}/set/JPEGImages", "{f}/set/SegmentationClass"],
        ),
        (1, r"weights not found: .*none\.pth$", ["{f}/broken.jpg", "-w", "{f}/none.pth"]),
        (1, r"other\.pth: are not those of DeepLab-v2 .* --config$", ["{f}/broken.jpg", "-w", "{f}/other.pth"]),
        (1, SEVEN_CLASSES, ["{f}/set/JPEGImages", "-w", "{f}/seven.pth", *CONFIG_WORDS]),
        (1, r"two\.pth: .*; say which with --key$", ["{f}/set/JPEGImages", "-w", "{f}/two.pth", *CONFIG_WORDS]),
        (1, rf"nan\.pth: {NOT_FINITE}", ["{f}/set/JPEGImages", "-w", "{f}/nan.pth", *CONFIG_WORDS]),
        (2, r"--device: is 'gpu'", ["{f}/set/JPEGImages", "--device", "gpu"]),
    ],
)
def test_predict(folder, code, message, words):
    fails(folder, code, message, "predict", "-w", "{f}/run/best.pth", "-o", "{f}/out", *words)


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, r"--out: is .*new\.pt', should be a name that ends in \.pth$", ["{f}/seven.pth", "-o", "{f}/new.pt"]),
        (2, r"seven\.pth is an input and would be overwritten$", ["{f}/seven.pth", "-o", "{f}/empty/../seven.pth"]),
        (2, r"--model: is 'resnet', should be one of ", ["{f}/seven.pth", "-o", "{f}/new.pth", "--model", "resnet"]),
        (2, r"--classes is missing, and the names in .*other\.pth do not tell", ["{f}/other.pth", "-o", "{f}/new.pth"]),
        (1, r"weights not found: .*none\.pth$", ["{f}/none.pth", "-o", "{f}/new.pth"]),
        (1, r"folder of the output not found: .*/away$", ["{f}/seven.pth", "-o", "{f}/away/new.pth"]),
        (
            1,
            r"seven\.pth: do not fit the model: base\.aspp\.c0\.weight is \(7, .*; --classes is the number that they "
            r"have, --without-classifier leaves these layers out$",
            ["{f}/seven.pth", *NEW_SMALL, "--classes", "3"],
        ),
        (1, r"two\.pth: .*; say which with --key$", ["{f}/two.pth", *NEW_SMALL]),
        (1, rf"nan\.pth: base\.{NOT_FINITE}", ["{f}/nan.pth", *NEW_SMALL]),
    ],
)
def test_convert(folder, code, message, words):
    fails(folder, code, message, "convert", *words)


def test_predict_without_any_photo_that_can_be_read(folder):
    words = ["predict", folder / "broken.jpg", "-w", folder / "run" / "best.pth", "-o", folder / "out", "--skip-errors"]
    result = call(*words)
    assert result.exit_code == 1
    left_out, error = result.stderr.splitlines()
    assert left_out.startswith("left out: ")
    assert error == "deeplab-fast predict: error: no photo could be labelled"


# ------------------------------------------------------------------------------------- packages and their absence


@pytest.mark.parametrize(("module", "package"), [("yaml", "pyyaml"), ("matplotlib", "matplotlib")])
def test_missing_packages(folder, monkeypatch, module, package):
    """They are missed before the work, not after it."""
    monkeypatch.setitem(sys.modules, module, None)
    if module == "yaml":
        for name in ("deeplab_fast.config", "deeplab_fast.config.schema"):  # which import it
            monkeypatch.delitem(sys.modules, name)
    fails(folder, 1, f": {package} {INSTALL}", "eval", *CONFIG_WORDS)


@pytest.mark.parametrize(("module", "package"), common.TRAIN_PACKAGES.items())
def test_every_package_is_named(capsys, module, package):
    """typer may itself need pydantic, so that its absence is not tried as that of the others."""
    with pytest.raises(typer.Exit), common.reported("train", debug=False):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert re.fullmatch(f"deeplab-fast train: error: {package} {INSTALL}", capsys.readouterr().err.rstrip())


def test_missing_scipy(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    fails(
        folder, 1, f": scipy {INSTALL}", "train", *CONFIG_WORDS, *NEW, "--set", "data={kind: cocostuff10k, root: {f}}"
    )


def test_missing_protobuf(folder, monkeypatch):
    from deeplab_fast.models import caffe

    caffe.messages.cache_clear()
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    (folder / "net.caffemodel").write_bytes(b"\n\x03net")
    fails(folder, 1, f": protobuf {INSTALL}", "convert", "{f}/net.caffemodel", "-o", "{f}/new.pth")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_missing_torch(folder):
    words = [["predict", "x.jpg", "-w", "x.pth", "-o", "out"], ["convert", "x.pth", "-o", f"{folder}/new.pth"]]
    code = (
        "import sys; sys.modules['torch'] = None\nfrom deeplab_fast.commands.app import app\n"
        f"for words in {words!r}:\n"
        "    try: app(words)\n"
        "    except SystemExit as end: assert end.code == 1\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(re.search(f"error: torch {INSTALL}", line) for line in lines)


def test_help_answers_without_the_packages():
    code = (
        "import sys\nfrom deeplab_fast.commands.app import app\n"
        f"for words in [[], *([name] for name in {COMMANDS!r})]:\n"
        "    try: app([*words, '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'scipy', 'matplotlib', 'yaml', 'google.protobuf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 1 + len(COMMANDS)
    first = done.stdout.split("Usage")[1]
    assert all(re.search(rf"^\W*{name} ", first, re.M) for name in (*COMMANDS, "crf", "doctor", "bench"))
