"""Serves experiments and their reports over HTTP. Knows nothing of statistics."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from apps.experiments.definitions import DefinitionRefusedError, ExperimentStore
from apps.experiments.report import load_units, report
from apps.experiments.schemas import ExperimentDefinition, Report
from apps.http.errors import Problem

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

Key = Annotated[str, Path(max_length=64, examples=["ranker-2026-11"])]


def _problem(status: int, title: str, detail: str) -> dict[str, Any]:
    example = {"type": "about:blank", "status": status, "title": title, "detail": detail}
    return {"description": title, "content": {"application/problem+json": {"example": example}}}


UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: _problem(404, "Unknown experiment", "there is no experiment x; PUT /v1/experiments/x defines it")
}
REFUSED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The key is new.", "model": ExperimentDefinition},
    409: _problem(409, "Change refused", "x has run already: new variations or weights move units ..."),
    422: _problem(422, "Invalid request", "body: variations: weights must sum to 1, these sum to 0.9"),
}


@router.get("")
def list_experiments(request: Request) -> list[ExperimentDefinition]:
    """Every experiment, running or stopped, by key."""
    return _experiments(request).all()


@router.get("/{key}", responses=UNKNOWN)
def get_experiment(key: Key, request: Request) -> ExperimentDefinition:
    """The definition of one experiment."""
    return _known(key, request)


@router.put("/{key}", responses=REFUSED)
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


@router.get("/{key}/report", responses=UNKNOWN)
def get_report(key: Key, request: Request) -> Report:
    """Whether it helped, by how much and how certain that is. Read `verdict` first, then `sample_ratio`."""
    definition = _known(key, request)
    units = load_units(request.app.state.settings.offline_dir, key)
    return report(units, definition, now=_experiments(request).now())


def _experiments(request: Request) -> ExperimentStore:
    experiments: ExperimentStore = request.app.state.experiments
    return experiments


def _known(key: str, request: Request) -> ExperimentDefinition:
    definition = _experiments(request).get(key)
    if definition is None:
        raise Problem(404, "Unknown experiment", f"there is no experiment {key}; PUT /v1/experiments/{key} defines it")
    return definition
