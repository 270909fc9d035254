from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memsim.asr.corpora import Corpus
from tests.training.tones import RANDOM, Killed, KilledAt, job, run

CONFIG = RANDOM.model_copy(update={"epochs": 2})  # 3 steps an epoch


def scalars(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = [event.step for event in events.Scalars(name)]
    assert steps == sorted(set(steps))
    return {event.step: event.value for event in events.Scalars(name)}


def test_every_step_and_epoch_is_an_event(corpus: Corpus, tmp_path: Path) -> None:
    watching = run(job(corpus, tmp_path / "m.safetensors", CONFIG))
    folder = tmp_path / "m.tensorboard"
    assert list(scalars(folder, "train/loss").values()) == pytest.approx(watching.losses)
    assert list(scalars(folder, "train/loss")) == [1, 2, 3, 4, 5, 6]
    assert all(norm > 0 for norm in scalars(folder, "train/gradient_norm").values())
    assert scalars(folder, "train/learning_rate")[6] == pytest.approx(CONFIG.learning_rate_at(1))
    assert set(scalars(folder, "train/extra_loss").values()) == {0}
    assert scalars(folder, "dev/wer") == pytest.approx({3: watching.epochs[0].dev_wer, 6: watching.epochs[1].dev_wer})
    assert scalars(folder, "dev/cer") == pytest.approx({3: watching.epochs[0].dev_cer, 6: watching.epochs[1].dev_cer})


def test_a_resumed_training_logs_every_step_once(corpus: Corpus, tmp_path: Path) -> None:
    watching = KilledAt(5)
    with pytest.raises(Killed):
        run(job(corpus, tmp_path / "m.safetensors", CONFIG), watching)
    resumed = run(job(corpus, tmp_path / "m.safetensors", CONFIG), resume=True)
    assert resumed.losses[:2] == watching.losses[3:]  # the steps that were done twice
    logged = scalars(tmp_path / "m.tensorboard", "train/loss")
    assert list(logged) == [1, 2, 3, 4, 5, 6]
    assert list(logged.values()) == pytest.approx(watching.losses[:3] + resumed.losses)
    assert list(scalars(tmp_path / "m.tensorboard", "dev/wer")) == [3, 6]


def test_logs_of_an_earlier_training_go(corpus: Corpus, tmp_path: Path) -> None:
    for epochs in (2, 1):
        config = CONFIG.model_copy(update={"epochs": epochs})
        run(job(corpus, tmp_path / "m.safetensors", config))
        (tmp_path / "m.tensorboard" / "notes.txt").write_text("mine")
    assert list(scalars(tmp_path / "m.tensorboard", "train/loss")) == [1, 2, 3]
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 2
    assert (tmp_path / "m.tensorboard" / "notes.txt").exists()
