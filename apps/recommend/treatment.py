"""Decides what answers a request: the ranking and the exploration, by the experiment that the request is in.

Knows what a variation's parameters mean on a surface; apps/experiments knows who is assigned to which.
"""

import logging
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from apps.experiments.assignment import assign
from apps.experiments.schemas import ExperimentDefinition
from apps.recommend.rules.schemas import Exploration
from apps.recommend.schemas import RecommendRequest
from features.contract.release import GateResult
from features.recommender.candidates import BASELINES

logger = logging.getLogger(__name__)

Parameters = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Treatment:
    """What answers one request."""

    model: str
    """Name of the ranking: the ranker's, or one of BASELINES."""
    exploration: Exploration | None
    experiment: dict[str, Any] | None
    """The schema InExperiment as plain data; None outside of experiments."""


def choose_treatment(
    request: RecommendRequest, definition: ExperimentDefinition | None, gate: GateResult, surface: Exploration | None
) -> Treatment:
    """Returns the treatment of a request. definition: the experiment that runs on its surface; gate: of the release;
    surface: the exploration that the rules of the surface ask for."""
    unit = _unit(definition, request) if definition else None
    assignment = assign(definition, unit) if definition and unit else None
    if definition is None or assignment is None:
        return Treatment(gate.served, surface, None)
    variation = next(variation for variation in definition.variations if variation.key == assignment.variation)
    return Treatment(
        _ranking(variation.parameters, gate),
        _exploration(variation.parameters, surface),
        {"key": definition.key, "variation": assignment.variation, "bucket": assignment.bucket},
    )


def _unit(definition: ExperimentDefinition, request: RecommendRequest) -> str | None:
    """Returns the id that the experiment assigns, or the other id where that one is missing."""
    user, session = request.user_id, request.session.session_id if request.session else None
    return (user or session) if definition.unit == "user" else (session or user)


def _ranking(parameters: Parameters, gate: GateResult) -> str:
    """Returns the ranking that a variation's `recommender` names: `model`, `baseline` (the release's best) or one of
    BASELINES; what the gate chose for any other name. Definitions of earlier versions say `floor` for `baseline`."""
    name = str(parameters.get("recommender", "model"))
    if name in ("baseline", "floor"):
        return gate.best_baseline
    return name if name in BASELINES else gate.served


def _exploration(parameters: Parameters, surface: Exploration | None) -> Exploration | None:
    """Returns the exploration of a variation: its `exploration` is none, epsilon or plackett_luce, with `epsilon`,
    `temperature` and `pool`. Without one, or with parameters that are not valid, the surface's own stays in force."""
    policy = parameters.get("exploration")
    if policy is None:
        return surface
    if policy == "none":
        return None
    settings = {name: parameters[name] for name in ("epsilon", "temperature", "pool") if name in parameters}
    try:
        return Exploration.model_validate({"policy": policy, **settings})
    except ValidationError as error:
        logger.warning("a variation's exploration is not usable: %s", error)
        return surface
