"""``deeplab-fast convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deeplab_fast.commands.common import WrongOption, WrongUse, reported, warnings_as_notes, weights_advice
from deeplab_fast.commands.options import Debug, WeightsKey

_CLASSIFIER = "--classes is the number that they have, --without-classifier leaves these layers out"
_STRIDE = "to train from them, name the file itself in model.weights, with stride_in_3x3: true in model.options"


def convert_command(
    source: Annotated[
        Path,
        typer.Argument(help="Weights: .caffemodel, or another spelling in .pth or .safetensors.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The result, a .pth file.", show_default=False)],
    model: Annotated[str, typer.Option(help="The network that the weights are for.")] = "deeplabv2_resnet101",
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes (default: as the weights have).")
    ] = None,
    without_classifier: Annotated[
        bool,
        typer.Option(
            "--without-classifier", help="The weights have no classifier (pretrained): convert the rest, for training."
        ),
    ] = False,
    key: WeightsKey = None,
    debug: Debug = False,
) -> None:
    """Turn published weights into a file of ours, checked against the network they are for."""
    with reported("convert", debug), warnings_as_notes():
        if out.suffix != ".pth":
            raise WrongOption("--out", str(out), "a name that ends in .pth")
        import torch

        from deeplab_fast import files, models
        from deeplab_fast.config.weights import class_count

        if model not in models.NAMES:
            raise WrongOption("--model", model, f"one of {', '.join(models.NAMES)}")
        files.check_destination(out, [source])
        with weights_advice():
            classes = class_count(source, key) if classes is None else classes
        if without_classifier:
            classes = classes or 1  # nothing of it is written
        elif classes is None:
            raise WrongUse(
                f"--classes is missing, and the names in {source} do not tell; if it has no classifier, say "
                "--without-classifier"
            )
        network = models.create(model, classes)
        classifier: Literal["strict", "fresh"] = "fresh" if without_classifier else "strict"
        with weights_advice(classifier=_CLASSIFIER, accept_stride=_STRIDE):
            report = models.load_weights(network, source, classifier=classifier, key=key)
        state = network.state_dict()
        if without_classifier:
            own = {id(parameter) for module in models.classifier_modules(network) for parameter in module.parameters()}
            left_out = [name for name, parameter in network.named_parameters() if id(parameter) in own]
            state = {name: tensor for name, tensor in state.items() if name not in left_out}
        files.atomic_write(out, lambda file: torch.save(state, file))
        for note in report.notes:
            typer.echo(note)
        typer.echo(f"{report.loaded} tensors for {model}, written: {out}")
