"""Studies: a checkpoint on some hardware specs, on several chips of each, divided among processes and put together.

    study = Study(checkpoint, corpus, points=sweep_points(["adc.bits=4,6,8"], make), trials=10)
    evaluations = run_study(study, jobs=4, results=Path("study.jsonl"))

A network (full precision, digital, or one chip) is run on the corpus in parts, each some of its batches. Batches are a
function of the data, and what is drawn is keyed by chip and batch, so no result depends on how it was divided.
"""

from memsim.study.merge import merge
from memsim.study.plan import Network, Point, Study
from memsim.study.run import run_study
from memsim.study.sweep import sweep_points

__all__ = ["Network", "Point", "Study", "merge", "run_study", "sweep_points"]
