"""Training loop: epochs of steps, a dev WER after each, best and last checkpoints, exact resuming."""

from __future__ import annotations

import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor, nn

from memsim.asr.corpora import Corpus
from memsim.asr.data import Batch, evaluation_batches, loaded_ahead
from memsim.asr.kinds import CTC, Outputs, TrainingPass
from memsim.asr.prior import to_metadata
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import begin_batch, hypotheses, ids_of, input_statistics, output_prior, transcribe
from memsim.asr.scoring import Score, score
from memsim.asr.text import as_scored
from memsim.asr.utterances import Utterance, utterances_sha256
from memsim.distributed import Workers
from memsim.errors import InputError, Stopped
from memsim.nn.finite import first_not_finite
from memsim.precision import autocast
from memsim.rng import derive_seed, seed_global_generators
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from memsim.training.epoch_batches import Draws, Share, TrainingBatch, TrainingSet, share
from memsim.training.hooks import Hooks, Moment
from memsim.training.narrator import Narrator
from memsim.training.optimiser import averaged, make_optimiser, set_learning_rate
from memsim.training.recipe import TrainConfig
from memsim.training.recomputation import blocks_of, computed_again
from memsim.training.state import Best, EpochResult, Progress, Trained, finished_training
from memsim.training.training_files import TrainingFiles
from memsim.training.training_log import TrainingLog

T = TypeVar("T")

SAVE_SECONDS = 600.0
"""Interval at which the state is saved within a long epoch; it is saved at the end of each, too."""

GPU_LOADERS = 4
"""Threads that read features ahead for a GPU. A CPU gains nothing by them, as training keeps it busy."""

StopRequest = Callable[[], int | None]
"""A function that returns None until a signal asks the training to save and stop, and then the signal's number."""


@dataclass(frozen=True)
class Job:
    """A training: the recogniser, its recipe, the corpora, and the file of the result.

    A corpus that is twice in `corpora` counts twice in every epoch; the first one gives the input statistics.
    `provenance` goes into the checkpoints' metadata; a training resumes only where it and the seed are the same.
    """

    recogniser: Recogniser
    config: TrainConfig
    corpora: Sequence[Corpus]
    dev: Corpus
    out: Path
    seed: int
    provenance: Mapping[str, str]
    hooks: Hooks = field(default_factory=Hooks)


def run(
    job: Job,
    narrator: Narrator,
    *,
    resume: bool = False,
    workers: Workers | None = None,
    stop_request: StopRequest = lambda: None,
) -> Best:
    """Train, and write `out` (best by dev WER or loss), `*.last.safetensors`, `*.csv` and the folder `*.tensorboard`.

    Meanwhile `*.resume.safetensors` holds the state from which `resume` continues as if the training had never stopped:
    bit for bit on one machine with as many threads. Without a state, `resume` begins anew, or returns at once where
    `out` is finished already. The input statistics are measured at the end: until then, `out` has none.

    Raises:
        InputError: A transcript has a character without a token, or there is a state that may not be used (`resume` is
            False, or it is another training's).
        FloatingPointError: The loss or gradient is not finite.
        Stopped: A stop was requested; the state is saved.
    """
    files = TrainingFiles(job.out)
    if not resume:
        files.require_no_state()
    training = _Training(job, narrator, workers or Workers(), stop_request)
    if files.state.exists():
        training.progress = training.trained.load(files.state, training.run)
    elif resume and (finished := finished_training(job.out, training.run)):
        return finished
    return training.go_on()


@dataclass(frozen=True)
class _Step:
    """Measurements of a step over its whole batch."""

    loss: float  # mean loss per token
    extra_loss: float
    gradient_norm: float  # before it was clipped
    learning_rate: float
    too_short: int


class _Training:
    """A training, as one of its processes runs it."""

    def __init__(self, job: Job, narrator: Narrator, workers: Workers, stop_request: StopRequest) -> None:
        self.job = job
        self.files = TrainingFiles(job.out)
        self.narrator = narrator
        self.workers = workers
        self.stop_request = stop_request
        config, seed = job.config, job.seed
        recogniser = replace(job.recogniser, model=job.recogniser.model.to(workers.device))
        learns_transcripts = job.hooks.transcripts_weight > 0
        utterances = [u for c in job.corpora for u in c.utterances]
        self.data = TrainingSet(utterances, recogniser, config, seed, learns_transcripts=learns_transcripts)
        torch.manual_seed(derive_seed(seed, "prepare"))
        self.model = job.hooks.prepare(recogniser, self.data.utterances, self.data.source).to(workers.device)
        average = averaged(self.model, config.average_decay)
        self.evaluated = replace(recogniser, model=average.module)
        self.blocks = blocks_of(self.model, config.model) if config.gradient_checkpointing else ()
        groups = job.hooks.parameter_groups(self.model, config)
        self.trained = Trained(self.model, average, make_optimiser(self.model, groups, config))
        self.parallel = workers.parallel(TrainingPass(self.model, recogniser.kind), is_staged=job.hooks.is_staged)
        self.progress = Progress()
        self.log: TrainingLog | None = None
        self.counted = self.saved = time.monotonic()
        self.run = {
            "kind": "model",
            "seed": str(seed),
            "train_sha256": utterances_sha256(self.data.utterances),
            "dev_sha256": utterances_sha256(job.dev.utterances),
            **job.provenance,
            **recogniser.metadata(),
        }

    def go_on(self) -> Best:
        """Train to the end."""
        self.workers.wait()  # until all have read what the first is about to replace
        self.narrator.begin(self.progress)
        if self.workers.is_first:
            self.log = TrainingLog(self.files, self.progress.step)
        try:
            self._heed_stop()
            self._hear_teacher()
            if self.job.config.evaluate_start and self.progress.best is None and not self.progress.step:
                self._evaluate_start()
            while self.progress.epoch <= self.job.config.epochs:
                self._train_epoch()
                self._end_epoch()
        except Stopped:
            self._save_state()
            raise
        finally:
            self.parallel = self.model  # releases the process group
            if self.log:
                self.log.close()
        assert self.progress.best is not None
        if self.workers.is_first:
            self._finish(self.progress.best)
        self.workers.wait()
        return self.progress.best

    def _hear_teacher(self) -> None:
        """Take what the teacher hears in place of transcripts that are not learned, or are missing from the dev set."""
        progress, teacher = self.progress, self.job.hooks.teaching
        if self.job.hooks.transcripts_weight > 0 or teacher is None:
            return
        if progress.heard is None:
            progress.heard = self._heard(self.data.utterances, lambda mine: hypotheses(teacher, mine))
            if self.job.config.best_by == "loss" or not self.job.dev.words:
                progress.heard_dev = self._heard(self.job.dev.utterances, lambda mine: hypotheses(teacher, mine))
            self._save_state()
        self.data.targets = [torch.tensor(ids, dtype=torch.long) for ids in progress.heard]

    def _heard(self, utterances: Sequence[Utterance], hear: Callable[[Iterator[Batch]], Mapping[int, T]]) -> list[T]:
        """Return what `hear` returns for each of `utterances`; each process hears a share of their batches."""
        batches = evaluation_batches(utterances, self.data.source, first=self.workers.rank, every=self.workers.size)
        mine = hear(itertools.takewhile(lambda _: self.stop_request() is None, batches))
        self._heed_stop()
        heard = {index: result for part in self.workers.gather(mine) for index, result in part.items()}
        return [heard[i] for i in range(len(utterances))]

    def _evaluate_start(self) -> None:
        """Score the network before the first step, as the best until an epoch is better."""
        self._save_state()  # before the first checkpoint, so that there is never a checkpoint without a state
        dev, dev_loss = self._evaluate(), self._dev_loss()
        self.progress.best = Best(0, dev.to_dict(), dev_loss)
        if self.log:
            save_checkpoint(self.job.out, self.job.hooks.contents(self.evaluated.model), self.run)
            self._save_state()
        self.narrator.start(dev, dev_loss)

    # --- steps -------------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """Do the steps of this epoch that are left."""
        progress = self.progress
        batches = self.data.batches(progress.epoch)
        loaders = GPU_LOADERS if self.workers.device.type == "cuda" else 0
        self.model.train()
        for batch, mine, pieces in loaded_ahead(self._load, batches[progress.batches :], loaders):
            fraction = (progress.epoch - 1 + (progress.batches + 1) / len(batches)) / self.job.config.epochs
            moment = Moment(self.job.seed, progress.epoch, progress.step, fraction)
            step = self._step(batch, mine, pieces, moment)
            progress.batches += 1
            progress.step += 1
            progress.loss_sum += step.loss
            progress.extra_loss_sum += step.extra_loss
            progress.too_short += step.too_short
            self.narrator.step(progress.epoch, progress.batches, len(batches), step.loss)
            if self.log:
                self.log.step(progress.step, asdict(step))
            self._heed_stop()
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save_state()

    def _load(self, batch: Draws) -> tuple[Draws, Share, list[TrainingBatch]]:
        mine = share(batch, self.job.config.accumulate, self.workers.rank, self.workers.size)
        return batch, mine, [self.data.load(self.progress.epoch, piece) for piece in mine.pieces]

    def _step(self, batch: Draws, mine: Share, pieces: Sequence[TrainingBatch], moment: Moment) -> _Step:
        """Do a step of the optimiser."""
        config, hooks, workers = self.job.config, self.job.hooks, self.workers
        torch.manual_seed(derive_seed(moment.seed, "before step", moment.step))
        hooks.before_step(self.model, moment)
        # Dropout draws from a global generator: a step is a function of the seed, its number and the process.
        seed_global_generators(moment.seed, "step", moment.step, workers.rank)
        self.trained.optimiser.zero_grad()
        sums = [0.0, 0.0, 0.0]  # of losses, extra losses and utterances that are too short
        for number, piece in enumerate(pieces, start=1):
            exchange = nullcontext() if number == len(pieces) else workers.without_exchange(self.parallel)
            with exchange:
                losses, extra_losses, short = self._losses(self.parallel, piece.to(workers.device), moment)
                # Processes average their gradients; this is the mean over the whole batch's utterances.
                scale = mine.weight * workers.size / mine.batch_size
                ((losses + extra_losses).sum() * scale).backward()
            found = (losses.sum().item(), extra_losses.sum().item(), short)
            sums = [total + mine.weight * value for total, value in zip(sums, found, strict=True)]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
        loss_sum, extra_loss_sum, short_count = workers.sum(sums)
        rate = config.learning_rate_at(moment.fraction)
        step = _Step(loss_sum / mine.batch_size, extra_loss_sum / mine.batch_size, norm, rate, round(short_count))
        self._require_finite(step, batch, lambda: self._repeat(pieces, moment))
        workers.take_largest(hooks.maxima(self.model))
        set_learning_rate(self.trained.optimiser, rate)
        self.trained.optimiser.step()
        self.trained.average.update_parameters(self.model)
        return step

    def _losses(self, network: nn.Module, piece: TrainingBatch, moment: Moment) -> tuple[Tensor, Tensor, int]:
        """Return the losses and extra losses of a piece's utterances [batch], and how many are too short.

        `network` computes what `TrainingPass` does.
        """
        with computed_again(self.blocks), autocast(self.job.config.precision, self.workers.device):
            outputs: Outputs = network(piece.features, piece.lengths, piece.targets)
        kind, weight = self.job.recogniser.kind, self.job.hooks.transcripts_weight
        extra_losses = self.job.hooks.extra_losses(piece, outputs, moment)
        if weight == 0:
            return torch.zeros_like(extra_losses), extra_losses, 0
        losses = kind.losses(outputs, piece.targets)
        losses = losses if weight == 1 else weight * losses
        return losses, extra_losses, kind.too_short(outputs.frames, piece.targets)

    def _repeat(self, pieces: Sequence[TrainingBatch], moment: Moment) -> None:
        with torch.no_grad(), self.workers.without_exchange(self.parallel):
            for piece in pieces:
                self._losses(self.parallel, piece.to(self.workers.device), moment)

    def _require_finite(self, step: _Step, batch: Draws, again: Callable[[], object]) -> None:
        """Raise FloatingPointError when `step` is not finite; `again` repeats it, to find the layer."""
        values = (("loss", step.loss), ("extra loss", step.extra_loss), ("norm of the gradient", step.gradient_norm))
        for what, value in values:
            if not math.isfinite(value):
                names = [self.data.utterances[i].id for i, _ in batch]
                more = ", ..." if len(names) > 3 else ""
                place = f"epoch {self.progress.epoch}, batch {self.progress.batches + 1}"
                where = first_not_finite(self.model, again)
                source = f"; {where}: the first place whose output holds NaN or Inf" if where else ""
                raise FloatingPointError(f"the {what} is {value} at {place} ({', '.join(names[:3])}{more}){source}")

    # --- the end of an epoch -----------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Evaluate on dev, and write the checkpoints, the log and the state."""
        progress, config = self.progress, self.job.config
        if progress.too_short == len(self.data.utterances):
            audio = self.data.utterances[0].audio
            raise InputError(f"{audio}: every utterance has fewer frames than its text needs")
        if progress.best is None:
            self._save_state()  # before the first checkpoint, so that there is never a checkpoint without a state
        dev, dev_loss = self._evaluate(), self._dev_loss()
        this = Best(progress.epoch, dev.to_dict(), dev_loss)
        is_best = progress.best is None or this.deciding <= progress.best.deciding
        if is_best:
            progress.best = this
        self._count_seconds()
        result = EpochResult(
            progress.epoch,
            progress.seconds,
            config.learning_rate_at(progress.epoch / config.epochs),
            progress.loss_sum / progress.batches,
            progress.extra_loss_sum / progress.batches,
            dev.wer,
            dev.cer,
            is_best,
            progress.too_short,
            dev_loss,
        )
        progress.results.append(result)
        progress.next_epoch()
        if self.log:
            weights = self.job.hooks.contents(self.evaluated.model)
            if is_best:
                save_checkpoint(self.job.out, weights, self.run)
            save_checkpoint(self.files.last, weights, self.run)
            self.log.epoch(progress.results, progress.step)
            self._save_state()
        self.narrator.epoch(result)

    def _evaluate(self) -> Score:
        """Score the averaged weights on dev; each process transcribes a share of the batches."""
        self.evaluated.model.eval()
        dev = self.job.dev
        texts = self._heard(dev.utterances, lambda mine: transcribe(self.evaluated, mine))
        references = [u.text for u in dev.utterances]
        if not dev.words and self.progress.heard_dev is not None:
            tokens = self.job.recogniser.tokens
            heard = [" ".join(tokens.decode(ids).split()) for ids in self.progress.heard_dev]
            references = [as_scored(text, dev.text_style) for text in heard]
        return score(references, [as_scored(text, dev.text_style) for text in texts])

    def _dev_loss(self) -> float | None:
        """Return the mean loss of the dev set's utterances, as they are learned in training.

        Transcripts that the tokens cannot write are left out. None where WER decides, or no utterance is left.
        """
        if self.job.config.best_by == "wer":
            return None
        model, device, progress = self.evaluated.model.eval(), self.workers.device, self.progress
        network = TrainingPass(model, self.job.recogniser.kind)
        utterances: Sequence[Utterance] = self.job.dev.utterances
        moment = Moment(self.job.seed, progress.epoch, progress.step, progress.epoch / self.job.config.epochs)
        if progress.heard_dev is not None:
            targets = [torch.tensor(ids, dtype=torch.long) for ids in progress.heard_dev]
        else:
            targets = [ids_of(utterance.text, self.job.recogniser.tokens) for utterance in utterances]
            writable = [i for i, ids in enumerate(targets) if len(ids)]
            utterances, targets = [utterances[i] for i in writable], [targets[i] for i in writable]

        def losses(batch: Batch) -> list[float]:
            spoken = tuple(utterances[i] for i in batch.indices)
            piece = TrainingBatch(spoken, batch.features, batch.lengths, tuple(targets[i] for i in batch.indices))
            begin_batch(model, batch)
            with torch.no_grad():
                learned, extra, _ = self._losses(network, piece.to(device), moment)
            return (learned + extra).tolist()

        def hear(batches: Iterator[Batch]) -> dict[int, float]:
            return {i: loss for batch in batches for i, loss in zip(batch.indices, losses(batch), strict=True)}

        return fmean(self._heard(utterances, hear)) if utterances else None

    def _finish(self, best: Best) -> None:
        """Add the input statistics, the best epoch and, with CTC, the prior of the outputs to the best checkpoint.

        A checkpoint that says which epoch was best is that of a finished training.
        """
        tensors = load_checkpoint(self.job.out).tensors()
        run = {**self.run, "best": json.dumps(asdict(best))}
        if not self.job.hooks.is_calibrated:
            run |= self._calibrate(tensors)
        save_checkpoint(self.job.out, tensors, run)
        self.files.state.unlink(missing_ok=True)

    def _calibrate(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        """Add the input statistics of the network of `tensors` to these; return its prior as metadata, with CTC."""
        self.evaluated.model.load_state_dict({name: tensors[name] for name in self.evaluated.model.state_dict()})
        self.evaluated.model.eval()  # if no epoch was left, no evaluation has done this
        first = self.job.corpora[0].utterances
        for layer, measured in input_statistics(self.evaluated, first, self.data.source).items():
            tensors |= measured.to_tensors(layer)
        if not isinstance(self.evaluated.kind, CTC):
            return {}
        return to_metadata(output_prior(self.evaluated, first, self.data.source))

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _heed_stop(self) -> None:
        """Raise Stopped in all processes once one of them was asked to stop."""
        asked = self.stop_request()
        stops, interrupts = self.workers.sum([asked is not None, asked == signal.SIGINT])
        if stops:
            place = f"epoch {self.progress.epoch}, after {self.progress.batches} of its batches"
            raise Stopped(
                f"stopped in {place}; {self.files.state} holds the state, --resume continues",
                by_keyboard=interrupts > 0,
            )

    def _save_state(self) -> None:
        if self.workers.is_first:
            self._count_seconds()
            self.trained.save(self.files.state, self.run, self.progress)
            self.saved = time.monotonic()

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.counted
        self.counted = now
