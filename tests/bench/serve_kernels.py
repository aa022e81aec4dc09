"""What the parts of an answer cost alone, and what the whole path costs in one process without HTTP."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import orjson

from apps.adapters.feast_reader import FeastReader
from apps.adapters.release_files import Releases
from apps.recommend.schemas import RecommendRequest
from apps.wiring import Services
from features.candidates import CANDIDATE_FEATURES, RECENT_ITEMS
from infra.settings import Settings

REPEATS = 400


def kernels(settings: Settings, bodies: Sequence[bytes]) -> tuple[dict[str, float], float, int]:
    """Milliseconds of each kernel by name, of the whole path, and how many candidates a request ranks on average.

    Medians over REPEATS calls on one thread, with inputs of the sizes that the requests of `bodies` lead to.
    """
    releases = Releases(settings.releases_dir)
    releases.poll()
    recommender = releases.recommender
    assert recommender is not None
    requests = [RecommendRequest.model_validate_json(body) for body in bodies[:REPEATS]]
    services = Services(settings)
    sizes: list[int] = []
    services.recommend.watch = lambda features: sizes.append(len(features))
    services.poll_release()
    services.recommend.recommend(requests[0])
    path_ms = _median([(lambda request=one: services.recommend.recommend(request)) for one in requests])
    answer = services.recommend.recommend(requests[0])
    services.impressions.stop()

    rng, catalogue, count = np.random.default_rng(3), recommender.catalogue, int(np.mean(sizes)) if sizes else 1
    users = [one.user_id or "nobody" for one in requests]
    reader = FeastReader(settings)
    reader.user_history(users[0])
    items = rng.integers(0, max(1, len(catalogue.ids)), (1, RECENT_ITEMS))
    weights = np.full((1, RECENT_ITEMS), 1 / RECENT_ITEMS, dtype=np.float32)
    features = rng.gamma(1.0, size=(count, len(CANDIDATE_FEATURES))).astype(np.float32)
    ranked = rng.integers(0, max(1, len(catalogue.ids)), count)
    vectors = [recommender.user_vector(rng.permuted(items, axis=1), weights) for _ in range(REPEATS)]
    alone = {
        "feature read": _median([(lambda user=one: reader.user_history(user)) for one in users]),
        "encoder": _median([lambda: recommender.user_vector(items, weights)] * REPEATS),
        "faiss": _median(
            [(lambda vector=one: recommender.nearest(vector, settings.candidates_per_source, None)) for one in vectors]
        ),
        "ranker": _median([lambda: recommender.rank(features, ranked)] * REPEATS),
        "json": _median([(lambda body=one: RecommendRequest.model_validate_json(body)) for one in bodies[:REPEATS]])
        + _median([lambda: orjson.dumps(answer)] * REPEATS),
    }
    return alone, path_ms, count


def _median(calls: Sequence[Callable[[], object]]) -> float:
    """Median milliseconds of one call."""
    took = []
    for call in calls:
        started = time.perf_counter()
        call()
        took.append((time.perf_counter() - started) * 1000)
    return float(np.median(took))
