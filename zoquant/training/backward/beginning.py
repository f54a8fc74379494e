"""A run by backwards, ready to begin or to go on."""

from dataclasses import asdict, replace

from zoquant.training.backward.steps import BackwardSteps
from zoquant.training.job import Job
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.settings import Settings
from zoquant.training.trails.states import States, go_on
from zoquant.views.model_views import Views


def by_backwards(job: Job, resume: bool) -> tuple[Settings, Views, BackwardSteps, States]:
    """Return what a run is made of whose steps follow the gradient, ready to begin or to go on."""
    folder, settings = job.folder, replace(job.settings, subspace="values")
    views = settings.attach(job.model)
    facts = asdict(settings) | job.identity
    steps = BackwardSteps(job.model, job.train, settings, views, MicroBatches(folder.micro_batches))
    if resume:
        go_on(folder, facts, steps.descent)
    else:
        folder.begin(facts, job.config_text(settings))
    return settings, views, steps, States(folder, steps.descent)
