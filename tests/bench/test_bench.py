"""The benchmarks: every case computes, what a run leaves behind, and how the modules are layered. No times."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last, as these tests may run against an installed package

torch = pytest.importorskip("torch")
pytest.importorskip("psutil")

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from bench import __main__ as command  # noqa: E402
from bench import case as case_module  # noqa: E402
from bench import dataset, processes, registry, report, results, runner, session  # noqa: E402
from bench.case import Backend, Case, Target  # noqa: E402
from deeplab_fast import ops  # noqa: E402

CASES = list(registry.all_cases(Target(tiny=True)))
OPS = [name for name in ops.__all__ if callable(getattr(ops, name))]
SMALL = runner.Budget(seconds=0, least=2, most=2)


def made_up(**changes) -> Case:
    def in_stages(x):
        yield "half"
        yield "rest"
        return x

    case = Case(
        op="double",
        size="of 3",
        inputs=lambda: 3,
        backends={"peer": Backend(in_stages, threads=1), "ours": Backend(in_stages, threads=2)},
        error=lambda result, expected: abs(result - expected),
        stages=("half", "rest"),
        sizes={"number": 3},
    )
    return dataclasses.replace(case, **changes)


def new_run() -> results.Run:
    return results.Run("2026-01-01T00:00:00+00:00", {"id": None}, {"processor": "a", "cores": 1, "gpu": None}, {})


# --- Cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_computes(case):
    [case], _ = registry.runnable([case])
    outcome = runner.compare(case.without({name for name, backend in case.backends.items() if backend.compiles}))
    assert outcome.failures == {}
    assert outcome.errors or case.error is None


def test_gpu_cases_compute():
    """In a process of its own: Triton's interpreter is chosen when a kernel is defined."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "bench", "--gpu", "--full", "--tiles", "--dry-run"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout


@pytest.mark.parametrize("gpu", [False, True])
def test_every_op_has_cases_of_its_name(gpu):
    cases = list(registry.all_cases(Target(gpu=gpu)))
    assert {case.op for case in cases} >= set(OPS)
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.device == ("cuda" if gpu else "cpu") for case in cases)
    assert all(backend.clock in runner.CLOCKS for case in cases for backend in case.backends.values())
    for module in registry.MODULES:
        stem = module.__name__.rpartition(".")[2]
        found = {case.op for case in module.cases(Target(gpu=gpu))}
        # The two upsampling ops share a file in every folder; networks and the system are no ops.
        assert found == {stem} or all(op.startswith(stem) for op in found) or not found & set(OPS)


def test_tiny_cases_have_the_names_of_the_others():
    for gpu in (False, True):
        names = [[case.name for case in registry.all_cases(Target(gpu=gpu, tiny=tiny))] for tiny in (False, True)]
        assert names[0] == names[1]


@pytest.mark.parametrize(
    ("words", "full", "count"),
    [
        (["coffee", "21 labels", "psa"], False, 1),
        (["aspp_sum", "float32"], True, 8),
        (["dense_crf_loss"], False, 1),
        (["system"], True, 3),
        (["rocket", "182"], True, 8),
        (["rocket"], False, 0),
        (["volume", "spacing"], True, 3),
        (["refinement"], True, 3),
    ],
)
def test_selection_by_words(words, full, count):
    cases = registry.named(Target(), words, [], full)
    assert len(cases) == count
    assert all(word in case.name for case in cases for word in words)


def test_selection_by_ops():
    cases = registry.named(Target(), [], ["aspp_sum", "upsample_softmax"], False)
    assert {case.op for case in cases} == {"aspp_sum", "upsample_softmax"}


def test_what_cannot_run_is_left_out_and_said():
    missing = made_up(
        backends={
            "peer": Backend(abs, needs=("no_such_module", "no_such.module", "json.decoder")),
            "ours": Backend(abs),
        }
    )
    cases, left_out = registry.runnable([made_up(memory=1e18), missing])
    assert [list(case.backends) for case in cases] == [["ours"]]
    assert left_out == [
        "double: of 3 needs about 1000000000 GB of memory",
        "double: of 3, peer: no_such_module, no_such.module is not installed",
    ]


# --- The runner ----------------------------------------------------------------------------------------------------


def test_backends_take_turns():
    calls = []
    backends = {
        name: Backend(lambda x, name=name: calls.append((name, torch.get_num_threads())), threads=threads, once=once)
        for name, threads, once in (("a", 1, False), ("b", 2, False), ("slow", None, True))
    }
    before = torch.get_num_threads()
    outcome = runner.measure(made_up(backends=backends, error=None, stages=()), SMALL)
    assert [name for name, _ in calls] == ["a", "b", "slow", *["a", "b"] * 2]
    assert {threads for name, threads in calls if name == "b"} == {2}
    assert {name: len(stages[runner.WHOLE]) for name, stages in outcome.samples.items()} == {"a": 2, "b": 2, "slow": 1}
    assert torch.get_num_threads() == before


def test_stages_are_parts_of_the_whole():
    outcome = runner.measure(made_up(), SMALL)
    for stages in outcome.samples.values():
        assert list(stages) == [runner.WHOLE, "half", "rest"]
        for whole, half, rest in zip(*stages.values(), strict=True):
            assert half + rest == pytest.approx(whole)


def test_quality_stands_beside_the_times(tmp_path, capsys):
    backends = {"peer": Backend(abs), "better": Backend(lambda x: 4)}
    case = made_up(backends=backends, stages=(), error=None, quality=lambda result: result / 8)
    run = results.Run.new()
    session.measure_all([case, made_up()], run, SMALL, file=tmp_path / "found.json")
    read = results.read(tmp_path / "found.json")
    assert [m.quality for m in read.measurements if m.stage == "whole"] == [3 / 8, 4 / 8, None, None]
    report.print_run(read)
    printed = capsys.readouterr().out
    assert "mIoU %" in printed
    assert "37.5" in printed
    assert "50.0" in printed


@pytest.mark.parametrize("wrong", [4, float("nan")])
def test_a_wrong_result_has_no_time(wrong):
    backends = {"peer": Backend(abs), "wrong": Backend(lambda x: wrong), "ours": Backend(abs)}
    outcome = runner.measure(made_up(backends=backends, stages=()), SMALL)
    assert list(outcome.samples) == ["peer", "ours"]
    assert "differs from peer" in outcome.failures["wrong"]


def test_a_backend_that_fails_does_not_stop_the_others():
    backends = {
        "peer": Backend(lambda x: x / 0),
        "ours": Backend(abs),
        "unnamed": Backend(made_up().backends["ours"].run),
    }
    outcome = runner.measure(made_up(backends=backends, stages=()), SMALL)
    assert list(outcome.samples) == ["ours"]
    assert "ZeroDivisionError" in outcome.failures["peer"]
    assert "half" in outcome.failures["unnamed"]


@pytest.mark.cuda
@pytest.mark.parametrize("clock", ["events", "graph"])
def test_clocks_of_a_gpu(clock):
    backends = {name: Backend(lambda x: 2 * x, clock=clock) for name in ("peer", "ours")}
    case = made_up(
        inputs=lambda: torch.ones(1000, device="cuda"), backends=backends, stages=(), device="cuda",
        error=lambda result, expected: (result - expected).abs().max().item(),
    )  # fmt: skip
    outcome = runner.measure(case, SMALL)
    assert outcome.failures == {}
    assert outcome.errors == {"ours": 0}
    assert all(len(s[runner.WHOLE]) == 2 and min(s[runner.WHOLE]) > 0 for s in outcome.samples.values())


# --- Results -------------------------------------------------------------------------------------------------------


def test_results_have_all_fields_and_are_read_back(tmp_path):
    run = results.Run.new()
    session.measure_all([made_up()], run, SMALL, file=tmp_path / "deep" / "found.json")
    assert results.read(tmp_path / "deep" / "found.json") == run
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["found.json"]

    content = json.loads((tmp_path / "deep" / "found.json").read_text())
    assert set(content["machine"]) == {"processor", "cores", "gpu", "system"}
    assert content["machine"]["processor"]
    assert content["machine"]["cores"] >= 1
    software = content["software"]
    assert software["torch"] == torch.__version__
    assert software["torch_isa"] == torch.backends.cpu.get_cpu_capability()
    assert {"onednn", "deeplab_fast", "deeplab_fast_isa", "cuda", "triton", "pydensecrf", "python"} <= set(software)
    if torch.backends.mkldnn.is_available():
        assert software["onednn"] in torch.__config__.show()
    row = content["measurements"][1]
    expected = {
        "op": "double", "size": "of 3", "device": "cpu", "stage": "whole", "backend": "ours", "peer": "peer",
        "threads": 2, "sizes": {"number": 3}, "unit": "s", "error": 0,
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert len(row["samples"]) == 2
    assert row["median"] == pytest.approx(sum(row["samples"]) / 2)
    peer = content["measurements"][0]
    assert row["times_better_best"] == pytest.approx(min(peer["samples"]) / min(row["samples"]))


def test_failures_are_in_the_results(tmp_path):
    run = new_run()
    broken = made_up(size="broken", inputs=lambda: {}["nothing"])
    wrong = made_up(backends={"peer": Backend(abs), "wrong": Backend(lambda x: 4)}, stages=())
    session.measure_all([broken, wrong], run, SMALL, file=tmp_path / "found.json")
    assert [text.split(":")[0] for text in run.failures] == ["double", "double"]
    assert results.read(tmp_path / "found.json").failures == run.failures


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "other.json"
    file.write_text('{"machine_info": {}, "benchmarks": []}')
    with pytest.raises(ValueError, match=r"other\.json: format is None, should be 1"):
        results.read(file)


@pytest.mark.parametrize("file", list(results.committed()), ids=lambda file: file.stem)
def test_committed_results_can_be_read(file, capsys):
    run = results.read(file)
    assert run.measurements
    assert run.machine["processor"]
    report.print_run(run, file.name)
    printed = capsys.readouterr().out
    assert file.name in printed
    assert run.measurements[0].backend.split(",")[0] in printed


def test_two_runs_beside_each_other(capsys):
    runs = new_run(), new_run()
    for run, seconds in zip(runs, (0.5, 0.25), strict=True):
        run.measurements.append(session.measurement(made_up(), "ours", [seconds]))
    report.print_two(*runs)
    line = next(line for line in capsys.readouterr().out.splitlines() if "ours" in line)
    assert [word.strip() for word in line.strip("│").split("│")] == [
        "double: of 3", "whole", "ours", "500.0 ms", "250.0 ms", "2.00",
    ]  # fmt: skip


def test_a_run_is_printed_and_kept_even_if_something_failed(monkeypatch, tmp_path, capsys):
    run = new_run()
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    report.finish(run, "found", ["one line more"])
    assert results.read(tmp_path / "found.json") == run
    run.failures.append("labels differ")
    with pytest.raises(typer.Exit) as ended:
        report.finish(run, "failed")
    assert ended.value.exit_code == 1
    assert results.read(tmp_path / "failed.json") == run
    assert capsys.readouterr().out == "one line more\nFAILED labels differ\n"
    report.finish(new_run(), "")
    assert len(list(tmp_path.iterdir())) == 2


# --- The command ---------------------------------------------------------------------------------------------------


def bench(*words: str):
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, list(words))


def test_command_measures_and_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "all_cases", lambda target: [made_up(quick=True), made_up(size="slow")])
    done = bench("--rounds", "2", "--save", "found", "--out", str(tmp_path), "double")
    assert done.exit_code == 0, done.output
    assert "double: of 3" in done.output
    run = results.read(tmp_path / "found.json")
    assert {(m.size, len(m.samples)) for m in run.measurements} == {("of 3", 2)}


def test_command_fails_where_a_backend_does(monkeypatch):
    backends = {"peer": Backend(abs), "wrong": Backend(lambda x: 4)}
    monkeypatch.setattr(registry, "all_cases", lambda target: [made_up(backends=backends, stages=(), quick=True)])
    done = bench("--dry-run")
    assert done.exit_code == 1
    assert "FAILED double: of 3, wrong: ValueError: differs from peer" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no such case"], "no quick case has all of these"),
        (["--save", "a/b"], "--save is 'a/b'"),
        *([] if torch.cuda.is_available() else [(["--gpu"], "with --dry-run it needs none")]),
    ],
)
def test_wrong_use(words, message):
    done = bench(*words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_listing_has_all_cases():
    lines = bench("--list").output.splitlines()
    assert len(lines) == len(CASES)
    assert "quick  dense_crf: 500x375 coffee, 21 labels, psa" in lines


def test_peak_memory():
    """Of a case that takes a known amount, beside its peer."""
    from bench.memory import measure_case

    case = next(case for case in registry.all_cases(Target()) if case.name.startswith("upsample_argmax: 182"))
    peaks = measure_case(case)
    full_size = 4 * 182 * 480 * 640
    assert peaks["stock"] > full_size > peaks["deeplab_fast"] > 0


# --- Layers --------------------------------------------------------------------------------------------------------


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports by their whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_imports_form_no_circle():
    """Those inside functions included."""
    modules = {}
    for file in (ROOT / "bench").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = imports_of(file)
    graph = {name: {other for other in found & set(modules) if other != "bench"} for name, found in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
    for name, found in graph.items():
        if name.startswith("bench.cases."):
            assert not {other.rpartition(".")[2] for other in found} & {"registry", "runner", "session", "report"}


# --- Several processes ---------------------------------------------------------------------------------------------


def test_each_process_times_its_calls():
    times, chosen = processes.measure(processes.OURS, "psa", 2, processes=2, seconds=0.0)
    assert len(times) == 2 * 3
    assert min(times) > 0
    assert chosen.shape == (processes.HEIGHT * processes.WIDTH,)
    assert set(chosen.tolist()) == {0, 1}


# --- Whole data sets -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not case_module.installed("pydensecrf"), reason="pydensecrf is not installed")
def test_a_data_set_is_refined_alike_by_both(tmp_path):
    dataset.make_set(tmp_path, 2, 48, 64)
    for command_line in dataset.commands(tmp_path, 1).values():
        seconds, _ = dataset.timed(command_line)
        assert seconds > 0
    assert dataset.different(tmp_path) <= dataset.MOST_DIFFERENT
    with pytest.raises(RuntimeError, match="crf: error"):
        dataset.timed(
            [sys.executable, "-m", "deeplab_fast", "crf", "absent", "absent", "-o", str(tmp_path / "out.png")]
        )


def test_ratios_are_between_figures_of_one_unit():
    run = new_run()
    for unit, samples in (("s", {"peer": 2.0, "ours": 1.0}), ("B", {"peer": 300.0, "ours": 100.0})):
        run.measurements += [session.measurement(made_up(), who, [value], unit=unit) for who, value in samples.items()]
    ratios = [run.times_better(one, results.median) for one in run.measurements]
    assert ratios == [1, 2, 1, 3]
