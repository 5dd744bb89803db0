"""``deeplab-fast crf-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeplab_fast.commands.common import (
    WrongOption,
    chosen_device,
    configuration,
    option_errors,
    progress_bar,
    reported,
    warnings_as_notes,
)
from deeplab_fast.commands.options import (
    Config,
    Debug,
    Device,
    Key,
    Kind,
    Layout,
    Set,
    SkipMissing,
    check_scores_options,
    parsed_numbers,
)

if TYPE_CHECKING:
    from deeplab_fast.evaluation.crf_search import SearchResult

Values = Annotated[str | None, typer.Option(help="Values to try, separated by commas.")]


def crf_eval_command(
    config: Config,
    logits: Annotated[
        Path, typer.Option(help="Folder of scores, as eval --save-scores writes: NAME.npz.", show_default=False)
    ],
    set: Set = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Presets to start from, separated by commas, or all (default: the configuration's parameters).",
            show_default=False,
        ),
    ] = None,
    pos_w: Values = None,
    pos_xy_std: Values = None,
    bi_w: Values = None,
    bi_xy_std: Values = None,
    bi_rgb_std: Values = None,
    iterations: Values = None,
    random: Annotated[int | None, typer.Option(min=1, help="Try so many, drawn from all (default: all).")] = None,
    kind: Kind = "auto",
    layout: Layout = "auto",
    key: Key = None,
    skip_missing: SkipMissing = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Images to use (default: all).")] = None,
    split: Annotated[str | None, typer.Option(help="Split that the scores are of (default: data.val).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV file (default: crf-eval.csv in output).")] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Search the parameters of the CRF on saved scores. Those not given are the configuration's, or the presets'."""
    with reported("crf-eval", debug), warnings_as_notes():
        given = {
            "pos_w": pos_w, "pos_xy_std": pos_xy_std, "bi_w": bi_w, "bi_xy_std": bi_xy_std,
            "bi_rgb_std": bi_rgb_std, "iterations": iterations,
        }  # fmt: skip
        grid = {name: _numbers(name, values) for name, values in given.items() if values is not None}
        check_scores_options(kind, layout)
        presets = None if preset is None else _presets(preset)
        read = configuration(config, set)
        from deeplab_fast import files
        from deeplab_fast.config import build
        from deeplab_fast.evaluation import crf_search

        path = out or read.output / "crf-eval.csv"
        dataset = build.make_dataset(read.data, read.data.val if split is None else split)
        inputs = build.inputs_of(read, [dataset], config, *crf_search.score_files(logits, dataset).values())
        files.check_destination(path, inputs, new_folder=True)
        chosen = chosen_device(device, read.device)
        with progress_bar("CRFs") as progress, option_errors("--key"):
            results = crf_search.search(
                logits,
                dataset,
                grid,
                kind=kind,
                layout=layout,
                key=key,
                skip_missing=skip_missing,
                limit=limit,
                random=random,
                presets=presets or [build.crf_parameters(read.crf)],
                progress=progress,
                device=chosen,
                count_background=read.evaluation.count_background,
            )
        _report(results, path)


def _presets(names: str) -> list[str]:
    from deeplab_fast import crf
    from deeplab_fast.errors import one_of

    if names == "all":
        return list(crf.PRESETS)
    chosen = names.split(",")
    if not all(name in crf.PRESETS for name in chosen):
        raise WrongOption("--preset", names, f"all, or one or more of {one_of([*crf.PRESETS])}, separated by commas")
    return chosen


def _report(results: list[SearchResult], path: Path) -> None:
    """Print the results, write them, and say what they advise."""
    from rich.console import Console

    from deeplab_fast.evaluation import crf_search

    Console().print(crf_search.table(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    crf_search.write_table(path, results)
    typer.echo(_advice(results))
    typer.echo(f"written: {path}")


def _advice(results: list[SearchResult]) -> str:
    """The lines that use the best parameters, in the command and in a configuration."""
    from deeplab_fast.evaluation import crf_search

    without, best = results[0], results[1]
    if best.params is None or not best.mean_iou > without.mean_iou:
        return "none of them is better than no CRF"
    preset, changes = crf_search.differences(best.params)
    shown = {name: value if isinstance(value, str) else f"{value:g}" for name, value in changes.items()}
    entries = "".join(f", {name}: {value}" for name, value in shown.items())
    lines = [f"best, in a configuration: crf: {{preset: {preset}{entries}}}"]
    if "normalization" not in changes:  # for which crf has no option
        options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in shown.items())
        lines.append(f"best, for photos: deeplab-fast crf IMAGES SCORES -o DIR --preset {preset}{options}")
    return "\n".join(lines)


def _numbers(name: str, values: str) -> tuple[float, ...]:
    """The values of an option, each one that the CRF takes."""
    from deeplab_fast import crf

    option = f"--{name.replace('_', '-')}"
    whole = name == "iterations"
    numbers = parsed_numbers(option, values, f"{'whole ' * whole}numbers separated by commas", whole=whole)
    with option_errors(option):
        for number in numbers:
            override: dict[str, Any] = {name: number}
            crf.parameters(**override)
    return numbers
