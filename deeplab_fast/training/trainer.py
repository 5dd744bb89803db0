"""Training by a configuration: the recipe of DeepLab-v2, in one process or several."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab_fast import data, evaluation
from deeplab_fast.config import Config
from deeplab_fast.config.build import make_model
from deeplab_fast.config.device import DTYPES, device_of
from deeplab_fast.errors import ArgumentError
from deeplab_fast.training import checkpoints, preparing
from deeplab_fast.training.averaging import WeightAverage
from deeplab_fast.training.checkpoints import BEST, LAST
from deeplab_fast.training.display import Display
from deeplab_fast.training.freezing import freeze
from deeplab_fast.training.interrupts import Asked, TrainingTerminated, asked_to_stop
from deeplab_fast.training.loading import batches
from deeplab_fast.training.logs import AnyLogger, TrainingLog, every_logger
from deeplab_fast.training.losses import CRFRegularisation, SegmentationLoss
from deeplab_fast.training.optimization import clip_gradients, gradients_are_finite, make_optimizer, make_scheduler
from deeplab_fast.training.processes import Processes, processes, share_buffers, synchronise_batch_norm
from deeplab_fast.training.result import TrainingResult
from deeplab_fast.training.resuming import check_same_training


def train(
    config: Config,
    *,
    resume: bool | Literal["auto"] = False,
    stop_after: int | None = None,
    quiet: bool = False,
    loggers: Sequence[AnyLogger] = (),
) -> TrainingResult:
    """Train a network; in several processes if torchrun started them.

    Every process computes `training.batch_size` images at a time. `last.pth` is written every
    `training.checkpoint_every` steps and at the end, `best.pth` after an evaluation that is better than all before,
    `log.csv` as it goes, all in `config.output`. Resumed on a CPU, a training gives the bits of one that was never
    interrupted: weights, optimizer, learning rate, order of samples, augmentation and dropout. An evaluation that was
    due and did not come to its end is made first. `training.ema`, `training.early_stopping` and `training.keep` have
    more checkpoints, others, or an earlier end: see `deeplab_fast.config.TrainingConfig`.

    Before the first step of a new training the data are looked at: the headers of all files of the validation set,
    and labels, as many as it takes to see each class; see `training.first_look`.

    Args:
        config: see `deeplab_fast.config`.
        resume: go on from `last.pth`; "auto": if there is one, and otherwise start.
        stop_after: end after this many steps in all, as if interrupted; the learning rate falls as if it went on.
        quiet: show no progress.
        loggers: that are told what `log.csv` is, beside those of the configuration; see `Logger`.

    Raises:
        FileNotFoundError, ValueError: for data, weights or a checkpoint that are missing or wrong; for a class that no
            label holds, unless `data.allow_missing_classes`.
        FileExistsError: if the folder has a checkpoint, and `resume` is False.
        FloatingPointError: if the loss or a gradient is not finite; nothing is saved after that.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and `last.pth` is written.
        TrainingTerminated: a SystemExit with 143, likewise after SIGTERM; in several processes one signal ends all.
        OSError: if a checkpoint cannot be written; the one before stays.
    """
    if stop_after is not None and stop_after < 1:
        raise ArgumentError("stop_after", stop_after, "at least 1")
    device = device_of(config.device)
    if resume not in (False, True, "auto"):
        raise ArgumentError("resume", resume, "False, True or 'auto'")
    with processes(device) as group, Display(config, group.is_first and not quiet) as display:
        return Trainer(config, device, group, display, resume, loggers).run(stop_after)


class Trainer:
    """What a training is made of; see `train`."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        group: Processes,
        display: Display,
        resume: bool | Literal["auto"] = False,
        loggers: Sequence[AnyLogger] = (),
    ):
        self.config, self.recipe, self.device, self.group = config, config.training, device, group
        self.display = display
        torch.manual_seed(config.seed)
        self.dataset = preparing.dataset(config.data, config.data.train, group)
        self.validation = preparing.dataset(config.data, config.data.val, group) if self.recipe.evaluate_every else None
        loss = SegmentationLoss.of(self.recipe.loss, self.dataset.classes, self.dataset.ignore_index)
        self.loss = loss.to(device)
        self.step, self.evaluated, self.best = 0, 0, -math.inf
        self.stale = 0  # evaluations since the best
        self.mean_iou: float | None = None
        self._asked: Asked = lambda: None
        self._agreed: signal.Signals | None = None
        state = preparing.checkpoint(config.output, resume, group)
        self.notes = []
        if state is None:
            self.notes = preparing.notes_on_data(config, self.dataset, self.validation, group, display)
        preparing.prepare_folder(config, self.dataset, self.validation, group)

        # Resumed, its weights are those of the checkpoint; the file it once began with may be gone.
        first = config.model if state is None else config.model.model_copy(update={"weights": None})
        self.model, notes = make_model(first, self.dataset.num_classes)
        self.notes += notes
        freeze(self.model, self.recipe.frozen)
        # torch's types lack its argument memory_format.
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if group.world > 1 and device.type == "cuda":
            synchronise_batch_norm(self.model)
        self.average = None if self.recipe.ema is None else WeightAverage(self.model, self.recipe.ema)
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.scheduler = make_scheduler(self.optimizer, self.recipe)
        self.dtype = DTYPES[self.recipe.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.crf_loss = None if self.recipe.crf_loss is None else CRFRegularisation(self.recipe.crf_loss).to(device)

        self.samples = data.TrainingSet(self.dataset, preparing.transform(self.recipe), config.seed)
        self.sampler = data.ShuffledSampler(len(self.dataset), config.seed, group.rank, group.world)
        torch.manual_seed(config.seed + group.rank)  # dropout differs between processes
        if state is not None:
            self._restore(state)
        self.network = self._wrapped()
        self.log = None
        if group.is_first:
            others = every_logger(config, self.step, loggers)
            self.log = TrainingLog(config.output, self.step, self.evaluated, others)

    # --- Setting up ------------------------------------------------------------------------------------------------

    def _restore(self, state: dict[str, Any]) -> None:
        check_same_training(state, self.config, self.dataset)
        if self.average is None:
            self.model.load_state_dict(state["model"])
        else:
            self.average.restore(self.model, state["model"], state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # else it was not in float16, and there is nothing to restore
            self.scaler.load_state_dict(state["scaler"])
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.best, self.mean_iou = state["step"], state["best"], state["mean_iou"]
        self.evaluated, self.stale = state.get("evaluated", self.step), state.get("stale", 0)
        if self.group.rank < len(state["random"]):
            checkpoints.restore_random_state(state["random"][self.group.rank])

    def _wrapped(self) -> nn.Module:
        network: nn.Module = self.model
        if self.group.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        return cast(nn.Module, torch.compile(network)) if self.recipe.compile else network

    def _batches(self) -> Iterator[data.Batch]:
        return batches(
            self.samples,
            self.sampler,
            self.recipe.batch_size,
            workers=self.recipe.workers,
            seed=self.config.seed,
            pin_memory=self.device.type == "cuda",
        )

    # --- Training --------------------------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None) -> TrainingResult:
        """Train to the end; see `train`."""
        for note in self.notes:
            self.display.note(note)
        end = self.recipe.iterations if stop_after is None else min(self.recipe.iterations, stop_after)
        self.display.start(self.step)
        self.network.train()
        with asked_to_stop() as self._asked, contextlib.closing(self.log) if self.log else contextlib.nullcontext():
            self._run_to(end)
        self.group.wait()
        best = self.config.output / BEST
        return TrainingResult(
            self.step,
            self.mean_iou,
            None if self.best == -math.inf else self.best,
            self.config.output / LAST,
            best if best.exists() and self.best > -math.inf else None,
            self._is_stale,
        )

    def _run_to(self, end: int) -> None:
        if self._is_due(self.recipe.evaluate_every) and self.evaluated != self.step:
            self._evaluate()  # of before, when it was interrupted
            self._save(LAST)
        self._keep()
        batch_iterator = self._batches()
        images_per_step = self.recipe.batch_size * self.recipe.accumulation * self.group.world
        seconds, done, saved = 0.0, 0, self.step  # seconds in steps, not in evaluations
        while self.step < end and not self._is_stale:
            begun, lr = time.perf_counter(), self.lr  # of this step; after it, that of the next
            loss = self._step(batch_iterator)
            self.step += 1
            done += 1
            seconds += time.perf_counter() - begun
            speed = done * images_per_step / seconds
            self.display.advance(self.step, loss, lr, speed, seconds / done * (end - self.step))
            if self._is_due(self.recipe.log_every) and self.log:
                self.log.write(self.step, loss=loss, lr=lr, images_per_second=speed, seconds=seconds)
            evaluating = self._is_due(self.recipe.evaluate_every)
            if evaluating or self._is_due(self.recipe.checkpoint_every) or self._agreed:
                self._save(LAST)  # before the evaluation: should that fail, the steps are not lost
                saved = self.step
            if self._agreed:
                raise self._stopped()
            if evaluating:
                self._evaluate()
                self._save(LAST)
            self._keep()
        if saved != self.step:
            self._save(LAST)

    @property
    def _is_stale(self) -> bool:
        """Whether so many evaluations were no better that the training ends."""
        return self.recipe.early_stopping is not None and self.stale >= self.recipe.early_stopping

    def _is_due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.recipe.iterations)

    @property
    def lr(self) -> float:
        """The trunk's learning rate, for the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def _step(self, batch_iterator: Iterator[data.Batch]) -> float:
        """One step of the optimizer; the loss, over all processes."""
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for part in range(self.recipe.accumulation):
            batch = next(batch_iterator)
            self.samples.report(batch.problems)
            last = part == self.recipe.accumulation - 1
            # Gradients of several processes are exchanged once, with the last part.
            exchanged = contextlib.nullcontext() if last or self.group.world == 1 else self._ddp().no_sync()
            with exchanged:
                loss = self._loss(batch) / self.recipe.accumulation
                self.scaler.scale(loss).backward()
            total += loss.detach()
        loss_value, self._agreed = self._over_processes(total)
        self._check_finite(loss_value)
        if self.recipe.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.optimizer, self.recipe.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.average is not None:
            self.average.update(self.model)
        self.sampler.advance(self.recipe.batch_size * self.recipe.accumulation * self.group.world)
        return loss_value

    def _over_processes(self, loss: Tensor) -> tuple[float, signal.Signals | None]:
        """The mean loss, and the signal that asked a process to stop, if any: the same in all, which all stop then."""
        asked = self._asked()
        if self.group.world == 1:
            return loss.item(), asked
        sums = torch.cat([loss[None], loss.new_tensor([asked == signal.SIGINT, asked == signal.SIGTERM])])
        distributed.all_reduce(sums)
        total, interrupted, terminated = sums.tolist()
        agreed = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        return total / self.group.world, agreed

    def _stopped(self, where: str = "") -> BaseException:
        """What to raise on a signal, in all processes, when the first has saved."""
        self.group.wait()
        text = f"after step {self.step}{where}; {LAST} is saved, --resume goes on from it"
        return TrainingTerminated(text) if self._agreed == signal.SIGTERM else KeyboardInterrupt(text)

    def _ddp(self) -> DistributedDataParallel:
        """The network, in DistributedDataParallel as it is with several processes; without what compiled it."""
        return cast(DistributedDataParallel, getattr(self.network, "_orig_mod", self.network))

    def _loss(self, batch: data.Batch) -> Tensor:
        x = batch.images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.network(x)
        loss = self.loss(logits, labels)
        return loss if self.crf_loss is None else loss + self.crf_loss(x, logits)

    def _check_finite(self, loss: float) -> None:
        """Before the optimizer's step: what is not finite would be in every weight after it."""
        what = None
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif not self.scaler.is_enabled() and not gradients_are_finite(self.optimizer):
            what = "a gradient is not finite"  # in float16 the scaler leaves such steps out, and scales less
        if what is not None:
            raise FloatingPointError(
                f"{what} in step {self.step + 1}; nothing is saved, {LAST} is of an earlier step. A smaller "
                "training.lr may help"
            )

    # --- Evaluating and saving -------------------------------------------------------------------------------------

    @property
    def _result(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.model if self.average is None else self.average.model

    def _evaluation(self) -> evaluation.EvaluationResult:
        """Of all processes together; a signal ends it, and it is made when the training is resumed."""
        assert self.validation is not None  # as training.evaluate_every says
        share_buffers(self._result, self.group)
        predictor = evaluation.Predictor(
            self._result, self.dataset.num_classes, device=self.device, autocast=self.dtype
        )
        with self.display.bar("evaluation", len(self.validation)) as bar:

            def progress(done: int, total: int) -> None:
                bar(done, total)
                if self._asked():
                    raise InterruptedError("a signal came")

            try:
                return evaluation.evaluate(
                    predictor,
                    self.validation,
                    batch_size=self.config.evaluation.batch_size,
                    workers=self.config.evaluation.workers,
                    progress=progress,
                    rank=self.group.rank,
                    world=self.group.world,
                    on_problem=self.config.data.on_error,
                    count_background=self.config.evaluation.count_background,
                )
            except Exception as error:  # one process's failure is raised in all of them
                _, self._agreed = self._over_processes(torch.zeros((), device=self.device))
                if self._agreed is None:
                    raise
                raise self._stopped(", before its evaluation") from error

    def _evaluate(self) -> None:
        result = self._evaluation()
        self.network.train()
        scores = result.matrix.scores()
        self.evaluated, self.mean_iou = self.step, scores.mean_iou
        if self.log:
            self.log.write(self.step, mean_iou=scores.mean_iou, pixel_accuracy=scores.pixel_accuracy)
        percent = f"mean IoU {100 * scores.mean_iou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} %"
        self.display.note(f"step {self.step}: {percent}")
        for problem in result.problems:
            self.display.note(f"left out: {problem}")
        if math.isnan(scores.mean_iou):
            self.display.note(f"data.val: {self.config.data.val} has no labelled pixel, so no checkpoint is the best")
        self.stale += 1
        if scores.mean_iou > self.best:
            self.best, self.stale = scores.mean_iou, 0
            self._save(BEST)
        if self._is_stale:
            self.display.note(f"step {self.step}: ends here, {self.stale} evaluations in a row were no better")

    def _save(self, name: str) -> None:
        """Write a checkpoint, from the first process; all have to call it."""
        random = self.group.gathered(checkpoints.random_state()) if name == LAST else None
        if not self.group.is_first:
            return
        content = {
            "model": self._result.state_dict(),
            "deeplab_fast": {
                "config": self.config.model_dump(mode="json"),
                "classes": list(self.dataset.classes),
                "palette": torch.from_numpy(copy.copy(self.dataset.palette)),
            },
            "step": self.step,
            "best": self.best,
            "evaluated": self.evaluated,
            "mean_iou": self.mean_iou,
            "stale": self.stale,
        }
        if name == LAST:
            content |= {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "sampler": self.sampler.state_dict(),
                "random": random,
                "ema": None if self.average is None else self.average.state_of(self.model),
            }
        checkpoints.save(self.config.output / name, content)

    def _keep(self) -> None:
        """Keep the checkpoint that was just saved, if it is to be kept."""
        if self.group.is_first and self.recipe.keep and self.step and self._is_due(self.recipe.checkpoint_every):
            checkpoints.keep(self.config.output, self.step, self.recipe.keep)
