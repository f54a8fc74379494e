"""A linear probe as a run of one step, ready to begin or to go on."""

from dataclasses import asdict, replace
from typing import cast

from zoquant.tasks.kinds.classification import Classification
from zoquant.training.job import Job
from zoquant.training.linear_probe.steps import LinearProbe
from zoquant.training.settings import Settings
from zoquant.training.trails.states import States, go_on
from zoquant.views.model_views import Views


def by_linear_probe(job: Job, resume: bool) -> tuple[Settings, Views, LinearProbe, States]:
    """Return what a run is made of that fits the norm in front of the head, ready to begin or to go on."""
    folder, facts = job.folder, asdict(job.settings) | job.identity
    probe = LinearProbe(job.model, cast(Classification, job.train), job.settings)
    if resume:
        go_on(folder, facts, probe)
    else:
        folder.begin(facts, job.config_text(job.settings))
    return replace(job.settings, steps=1), probe.views, probe, States(folder, probe)
