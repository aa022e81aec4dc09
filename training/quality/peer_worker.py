"""Runs in the peers' environment: fits implicit, RecTools and LightGBM on a split that it is given as arrays.

    .venv-peers/bin/python training/quality/peer_worker.py FOLDER < requests

Imports nothing of ours: that environment does not have it. The test's targets are not in the folder.
"""

import copy
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

NOBODY = -1
PATIENCE = 4
CHUNK = 1024


class Ragged(NamedTuple):
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def matrix(self, items: int) -> sp.csr_matrix:
        """How often each row has each item, float32."""
        matrix = sp.csr_matrix((np.ones(len(self.items), np.float32), self.items, self.offsets),
                               shape=(len(self.offsets) - 1, items))  # fmt: skip
        matrix.sum_duplicates()
        return matrix


class Task:
    """The split, and how lists are made of scores."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text())
        self.items, self.mask_history = facts["items"], facts["mask_history"]
        self.refits, self.depth = facts["refits"], facts["depth"]
        self._folder = folder

    def part(self, name: str) -> Ragged:
        return Ragged(*(np.load(self._folder / f"{name}_{field}.npy", allow_pickle=False) for field in Ragged._fields))

    def users(self, cases: str) -> np.ndarray:
        """The learning part's row of each case."""
        users: np.ndarray = np.load(self._folder / f"{cases}_users.npy", allow_pickle=False)
        return users

    def lists(self, scores_of: Any, inputs: Ragged) -> tuple[np.ndarray, np.ndarray]:
        """(by the rule of masking, always masked); scores_of(first, last) gives float32 [rows, items]."""
        taken = inputs.matrix(self.items)
        plain, new = [], []
        for first in range(0, taken.shape[0], CHUNK):
            last = min(first + CHUNK, taken.shape[0])
            scores = np.array(scores_of(first, last), dtype=np.float32)
            if not self.mask_history:
                plain.append(top(scores, self.depth))
            scores[taken[first:last].nonzero()] = -np.inf
            new.append(top(scores, self.depth))
        masked = np.concatenate(new)
        return (masked if self.mask_history else np.concatenate(plain)), masked


def top(scores: np.ndarray, depth: int) -> np.ndarray:
    depth = min(depth, scores.shape[1])
    best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    lists = np.take_along_axis(best, order, axis=1)
    lists[np.isneginf(np.take_along_axis(values, order, axis=1))] = NOBODY
    return lists


def ndcg(lists: np.ndarray, targets: Ragged, items: int) -> float:
    """NDCG@10, to stop by; what is reported is measured by the judge."""
    keys = np.sort(targets.rows * items + targets.items)
    asked = np.where(lists[:, :10] < 0, -1, np.arange(len(lists))[:, None] * items + lists[:, :10])
    hits = keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked
    discounts = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    best = np.cumsum(discounts)[np.minimum(np.diff(targets.offsets), hits.shape[1]) - 1]
    return float((hits @ discounts / best).mean())


def factor_model(
    task: Task, request: dict[str, Any], learn: Ragged, inputs: Ragged
) -> tuple[Any, dict[str, Any], None]:
    """implicit's ALS, which folds each asker's whole input in, or BPR, with the vectors of its users."""
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking

    settings, seed, als = request["settings"], request["seed"], request["model"] == "als"
    iterations = int(settings.get("iterations", 15 if als else 100))
    regularization = float(settings.get("regularization", 0.01))
    factors, alpha = int(settings.get("factors", 64)), float(settings.get("alpha", 1.0))
    matrix = learn.matrix(task.items)
    if als:
        model = AlternatingLeastSquares(factors=factors, iterations=iterations, regularization=regularization,
                                        alpha=alpha, random_state=seed)  # fmt: skip
        model.fit(matrix, show_progress=False)
        asking = inputs.matrix(task.items)
        users = model.recalculate_user(np.arange(asking.shape[0]), asking)
    else:
        model = BayesianPersonalizedRanking(
            factors=factors,
            iterations=iterations,
            regularization=regularization,
            learning_rate=float(settings.get("rate", 0.01)),
            random_state=seed,
        )
        model.fit(matrix, show_progress=False)
        users = model.user_factors[task.users("test" if request["judged"] else "validation")]
    return (lambda first, last: users[first:last] @ model.item_factors.T), {}, None


def table(part: Ragged) -> Any:
    """As RecTools takes it; times keep the order where the split has only places."""
    import pandas as pd

    order = np.arange(len(part.items))
    return pd.DataFrame({"user_id": part.rows, "item_id": part.items, "weight": 1.0,
                         "datetime": pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="s")})  # fmt: skip


def sasrec(task: Task, request: dict[str, Any], learn: Ragged, inputs: Ragged) -> tuple[Any, dict[str, Any], float]:
    """RecTools' SASRec with sampled softmax, by epochs until the validation stops growing or the time is up."""
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    settings, seed = request["settings"], request["seed"]
    seed_everything(seed, workers=True)
    blind = request["judged"] and task.refits and "epochs" in settings
    validation, targets = task.part("validation_inputs"), task.part("validation_targets")

    class Watch(Callback):
        """Times epochs, judges every second one, keeps the best, stops."""

        def __init__(self) -> None:
            self.best, self.best_epoch, self.over = -1.0, 0, False
            self.weights: Any = None
            self.seconds: list[float] = []
            self.started = time.perf_counter()

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.begun = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.seconds.append(time.perf_counter() - self.begun)
            epoch = trainer.current_epoch + 1
            self.over = time.perf_counter() - self.started > request["seconds"]
            if not blind and (epoch % 2 == 0 or self.over):
                value = ndcg(task.lists(recommender(model, task, validation), validation)[0], targets, task.items)
                module.train()
                if value > self.best:
                    self.best, self.best_epoch = value, epoch
                    self.weights = copy.deepcopy(module.torch_model.state_dict())
                trainer.should_stop = epoch - self.best_epoch >= 2 * PATIENCE or self.over
            elif blind:
                self.best_epoch = epoch
                trainer.should_stop = self.over

    watch = Watch()
    model = SASRecModel(
        n_factors=64, n_blocks=1, n_heads=1, dropout_rate=float(settings.get("dropout", 0.2)),
        session_max_len=int(settings.get("length", 50)), loss="sampled_softmax",
        n_negatives=int(settings.get("negatives", 256)), lr=float(settings.get("rate", 1e-3)), batch_size=128,
        recommend_torch_device="cpu", verbose=0,
        get_trainer_func=lambda: Trainer(
            max_epochs=int(settings["epochs"]) if blind else 200, enable_progress_bar=False,
            enable_model_summary=False, logger=False, enable_checkpointing=False, accelerator="cpu", callbacks=[watch],
        ),
    )  # fmt: skip
    model.fit(Dataset.construct(table(learn)))
    # The trainer works on a copy of its callback.
    watch = next(one for one in model.fit_trainer.callbacks if isinstance(one, Watch))
    if watch.weights is not None:
        model.lightning_model.torch_model.load_state_dict(watch.weights)
    learnt = {"epochs": watch.best_epoch, "stopped_by_time": int(watch.over)}
    return recommender(model, task, inputs), learnt, float(np.median(watch.seconds))


def recommender(model: Any, task: Task, inputs: Ragged) -> Any:
    """Scores of RecTools' encoder: the state after each input's last item, times the item vectors."""
    from rectools.dataset import Dataset

    prepare = model.data_preparator
    users = np.arange(len(inputs.offsets) - 1)
    data = prepare.transform_dataset_u2i(Dataset.construct(table(inputs)), users)
    module = model.lightning_model
    vectors, items = (
        part.detach().cpu().numpy() if hasattr(part, "detach") else part
        for part in module._get_user_item_embeddings(prepare.get_dataloader_recommend(data, 512), "cpu")
    )
    extra = prepare.n_item_extra_tokens
    numbers = prepare.item_id_map.external_ids[extra:].astype(np.int64)
    place = np.full(len(users), -1)
    place[data.user_id_map.external_ids.astype(np.int64)] = np.arange(len(vectors))

    def scores(begin: int, end: int) -> np.ndarray:
        result = np.full((end - begin, task.items), -np.inf, np.float32)
        here = place[begin:end]
        result[np.ix_(np.flatnonzero(here >= 0), numbers)] = vectors[here[here >= 0]] @ items[extra:].T
        return result

    return scores


def ranked_trees(
    task: Task, request: dict[str, Any], learn: Ragged, inputs: Ragged
) -> tuple[Any, dict[str, Any], None]:
    """LightGBM's LambdaRank over the nearest items by co-counts, what was taken before, and the popular ones.

    It learns from half of the validation cases (the other half is for choosing its settings), as a ranker must learn
    from requests whose candidates knew nothing of their answer.
    """
    import lightgbm

    settings = request["settings"]
    past, targets = task.part("validation_inputs"), task.part("validation_targets")
    rows = np.arange(len(past.offsets) - 1)[::2]
    items, features, sizes = candidates(task.part("learn"), past, task, rows)
    wanted = np.sort(targets.rows * task.items + targets.items)
    keys = np.repeat(rows, sizes) * task.items + items
    labels = (wanted[np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)] == keys).astype(int)
    model = lightgbm.train(
        {"objective": "lambdarank", "num_leaves": int(settings.get("leaves", 31)), "verbosity": -1,
         "learning_rate": float(settings.get("rate", 0.05)), "seed": request["seed"],
         "lambdarank_truncation_level": 15},
        lightgbm.Dataset(features, labels, group=sizes), num_boost_round=int(settings.get("trees", 150)),
    )  # fmt: skip

    def scores(first: int, last: int) -> np.ndarray:
        found, described, counts = candidates(learn, inputs, task, np.arange(first, last))
        result = np.full((last - first, task.items), -np.inf, np.float32)
        result[np.repeat(np.arange(last - first), counts), found] = model.predict(described)
        return result

    return scores, {}, None


def candidates(
    learn: Ragged, inputs: Ragged, task: Task, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(items, features [candidates, F], candidates of each row)."""
    takers = learn.matrix(task.items)
    takers.data[:] = 1
    count = np.asarray(takers.sum(axis=0)).ravel()
    inverse = sp.diags(1 / np.sqrt(np.maximum(count, 1)))
    likeness = (inverse @ (takers.T @ takers) @ inverse).tolil()
    likeness.setdiag(0)
    likeness = likeness.tocsr()
    late = learn.items[learn.times >= np.quantile(learn.times, 0.9)]
    recent = np.bincount(late, minlength=task.items).astype(np.float32)
    popular = np.argsort(-recent, kind="stable")[:50]
    items, features, sizes = [], [], []
    for row in rows:
        history = inputs.items[inputs.offsets[row] : inputs.offsets[row + 1]]
        age = np.arange(len(history))[::-1]
        near = sp.csr_matrix((0.8 ** age[-10:], (np.zeros(len(age[-10:]), int), history[-10:])), shape=(1, task.items))
        wide = sp.csr_matrix(
            (0.98 ** age[-200:], (np.zeros(len(age[-200:]), int), history[-200:])), shape=(1, task.items)
        )
        near_score, wide_score = (np.asarray((weights @ likeness).todense()).ravel() for weights in (near, wide))
        own = np.bincount(history, minlength=task.items)
        own_decayed = np.bincount(history, weights=0.98**age, minlength=task.items)
        chosen = np.unique(
            np.concatenate(
                (
                    np.argpartition(-near_score, 100)[:100],
                    np.argpartition(-wide_score, 100)[:100],
                    history[-100:],
                    popular,
                )
            )
        )
        columns = (near_score, wide_score, own, own_decayed, count, recent)
        items.append(chosen)
        features.append(np.column_stack([column[chosen] for column in columns] + [np.full(len(chosen), len(history))]))
        sizes.append(len(chosen))
    return np.concatenate(items), np.concatenate(features).astype(np.float32), np.array(sizes)


MODELS = {"als": factor_model, "bpr": factor_model, "rectools_sasrec": sasrec, "lightgbm": ranked_trees}


def main(folder: Path) -> None:
    # Libraries print on stdout; answers go out by a copy of it that they do not know.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    task = Task(folder)
    for line in sys.stdin:
        request = json.loads(line)
        learn = task.part("final" if request["judged"] else "learn")
        inputs = task.part("test_inputs" if request["judged"] else "validation_inputs")
        scores_of, learnt, epoch_seconds = MODELS[request["model"]](task, request, learn, inputs)
        lists, new_lists = task.lists(scores_of, inputs)
        np.save(folder / "lists.npy", lists)
        np.save(folder / "new_lists.npy", new_lists)
        answers.write(json.dumps({"learnt": learnt, "epoch_seconds": epoch_seconds}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
