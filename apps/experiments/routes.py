"""Serves experiments and their reports over HTTP. Knows nothing of statistics."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from apps.experiments.definitions import DefinitionRefusedError, ExperimentStore
from apps.experiments.report import load_units, report
from apps.experiments.schemas import ExperimentDefinition, Report
from apps.http.errors import LOG_WRITERS, Problem, describe_problem

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

Key = Annotated[str, Path(max_length=64, examples=["ranker-2026-11"])]


UNKNOWN = describe_problem(404, "Unknown experiment", "there is no experiment x; PUT /v1/experiments/x defines it")
REFUSED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The key is new.", "model": ExperimentDefinition},
    **describe_problem(409, "Change refused", "x has run already: new variations or weights move units ..."),
    **describe_problem(422, "Invalid request", "body: variations: weights must sum to 1, these sum to 0.9"),
    **LOG_WRITERS,
}


@router.get("", summary="All experiments")
def list_experiments(request: Request) -> list[ExperimentDefinition]:
    """Returns every experiment, running or stopped, by key."""
    return _experiments(request).all()


@router.get("/{key}", summary="One experiment", responses=UNKNOWN)
def get_experiment(key: Key, request: Request) -> ExperimentDefinition:
    """Returns one experiment's definition."""
    return _existing(key, request)


@router.put("/{key}", summary="Define, stop or resume an experiment", responses=REFUSED)
def put_experiment(
    key: Key, definition: ExperimentDefinition, request: Request, response: Response
) -> ExperimentDefinition:
    """Defines, stops or resumes an experiment.

    Once it has run, what would spoil its comparison cannot change: seed, unit, surface, variations and metric
    stay, and the coverage may only grow.
    """
    if definition.key != key:
        raise Problem(422, "Keys differ", f"the path names {key} and the body {definition.key}: make them one")
    try:
        if _experiments(request).put(definition):
            response.status_code = 201
    except DefinitionRefusedError as error:
        raise Problem(409, "Change refused", str(error)) from error
    return definition


@router.get("/{key}/report", summary="What an experiment showed", responses=UNKNOWN)
def get_experiment_report(key: Key, request: Request) -> Report:
    """Reports whether it helped, by how much and how sure that is: read `verdict` first, then `sample_ratio`."""
    definition = _existing(key, request)
    units = load_units(request.app.state.settings.offline_dir, key)
    return report(units, definition, now=_experiments(request).now())


def _experiments(request: Request) -> ExperimentStore:
    experiments: ExperimentStore = request.app.state.experiments
    return experiments


def _existing(key: str, request: Request) -> ExperimentDefinition:
    definition = _experiments(request).get(key)
    if definition is None:
        raise Problem(404, "Unknown experiment", f"there is no experiment {key}; PUT /v1/experiments/{key} defines it")
    return definition
