"""Processes of one machine that share the work of a study."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import torch

from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.study import Study, WorkItem
from memsim.evaluation.task import System
from memsim.evaluation.work import Done, Evaluator, Tally, Watcher
from memsim.portable.kernels import warn_if_slow

POLL_SECONDS = 0.2
"""The interval in seconds at which signals and steps are checked."""


def in_processes(
    study: Study,
    items: Sequence[WorkItem],
    device: str,
    jobs: int,
    watcher: Watcher,
    stop_request: Callable[[], int | None],
) -> Done:
    """Run `items` in `jobs` processes, yielding parts in the order in which they are done. Threads and GPUs are shared.

    Raises what a process raised, and OSError when one was killed.
    """
    warn_if_slow()
    context = multiprocessing.get_context("spawn")  # not forked: threads and CUDA do not live on in a copy
    links = _Links(context.Event(), context.SimpleQueue(), context.Value("i", 0))
    jobs = max(1, min(jobs, len(items)))
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, context, _begin, (study, device, threads, links))
    try:
        futures: dict[Future[PartialResult], WorkItem] = {pool.submit(_run, item): item for item in items}
        while futures:
            done, _ = wait(futures, POLL_SECONDS, FIRST_COMPLETED)
            while not links.steps.empty():
                watcher.step(*links.steps.get())
            if stop_request() is not None:
                links.stop.set()
            for future in done:
                item = futures.pop(future)
                part = future.result()
                if part.outcomes:
                    yield item.system, part
    except BrokenProcessPool:
        reason = "a process that shared the work was killed, perhaps for lack of memory; use fewer --jobs"
        raise OSError(reason) from None
    finally:
        links.stop.set()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Links:
    """The channels between the processes and the one that started them."""

    stop: Event
    steps: SimpleQueue[tuple[System, Tally]]
    begun: Synchronized[int]
    """The number of processes that have begun."""


@dataclass(frozen=True)
class _Worker:
    evaluator: Evaluator
    links: _Links


_worker: _Worker


def _begin(study: Study, device: str, threads: int, links: _Links) -> None:
    """Initialise a process."""
    global _worker
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):  # the parent process decides when to stop
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with links.begun.get_lock():
        number, links.begun.value = links.begun.value, links.begun.value + 1
    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    _worker = _Worker(Evaluator(study, device), links)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _run(item: WorkItem) -> PartialResult:
    """Run items in a process."""
    stop = _worker.links.stop.is_set
    if stop():
        return PartialResult({}, 0.0)
    return _worker.evaluator.run(item, lambda system, more: _worker.links.steps.put((system, more)), stop)
