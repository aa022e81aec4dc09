"""Runs in the peers' environment: fits implicit, RecTools and LightGBM on a split that it is given as arrays.

    .venv-peers/bin/python -m training.benchmark.peer_worker FOLDER < requests

That environment has NumPy, SciPy and pandas, so of ours it imports only what needs no more. The test's targets are not
in the folder.
"""

import copy
import json
import os
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from training.benchmark.baselines import ItemKnn, ItemKnnConfig
from training.benchmark.interactions import Sequences
from training.benchmark.lists import lists_of
from training.benchmark.metrics import ndcg
from training.benchmark.protocols import Cases

PATIENCE = 4


class Task:
    """The split as the folder holds it."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text())
        self.items, self.mask_history, self.refits = facts["items"], facts["mask_history"], facts["refits"]
        self._folder = folder

    def part(self, name: str) -> Sequences:
        return Sequences(*(self._array(f"{name}_{field.name}") for field in fields(Sequences)))

    def users(self, cases: str) -> np.ndarray:
        """The learning part's row of each case."""
        return self._array(f"{cases}_users")

    @property
    def validation(self) -> Cases:
        return Cases(self.part("validation_inputs"), self.part("validation_targets"), self.users("validation"))

    def _array(self, name: str) -> np.ndarray:
        array: np.ndarray = np.load(self._folder / f"{name}.npy", allow_pickle=False)
        return array


def matrix_of(part: Sequences, items: int) -> sp.csr_matrix:
    """How often each row has each item, float32."""
    ones = np.ones(len(part.items), np.float32)
    matrix = sp.csr_matrix((ones, part.items, part.offsets), shape=(len(part), items))
    matrix.sum_duplicates()
    return matrix


def factor_model(
    task: Task, request: dict[str, Any], learn: Sequences, inputs: Sequences
) -> tuple[Any, dict[str, Any], None]:
    """implicit's ALS, which folds each asker's whole input in, or BPR, with the vectors of its users."""
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking

    settings, seed, als = request["settings"], request["seed"], request["model"] == "als"
    iterations = int(settings.get("iterations", 15 if als else 100))
    regularization = float(settings.get("regularization", 0.01))
    factors, alpha = int(settings.get("factors", 64)), float(settings.get("alpha", 1.0))
    matrix = matrix_of(learn, task.items)
    if als:
        model = AlternatingLeastSquares(factors=factors, iterations=iterations, regularization=regularization,
                                        alpha=alpha, random_state=seed)  # fmt: skip
        model.fit(matrix, show_progress=False)
        asking = matrix_of(inputs, task.items)
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
    return (lambda rows: users[rows] @ model.item_factors.T), {}, None


def table(part: Sequences) -> Any:
    """As RecTools takes it; times keep the order where the split has only places."""
    import pandas as pd

    order = np.arange(len(part.items))
    return pd.DataFrame({"user_id": part.row_of_entry, "item_id": part.items, "weight": 1.0,
                         "datetime": pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="s")})  # fmt: skip


def sasrec(
    task: Task, request: dict[str, Any], learn: Sequences, inputs: Sequences
) -> tuple[Any, dict[str, Any], float]:
    """RecTools' SASRec with sampled softmax, by epochs until the validation stops growing or the time is up."""
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    settings, seed = request["settings"], request["seed"]
    seed_everything(seed, workers=True)
    blind = request["judged"] and task.refits and "epochs" in settings
    validation = task.validation

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
                scores_of = recommender(model, task, validation.inputs)
                lists = lists_of(scores_of, validation.inputs, mask_history=task.mask_history)[0]
                value = ndcg(lists, validation, items=task.items)
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
        n_factors=64, n_blocks=2, n_heads=2, dropout_rate=float(settings.get("dropout", 0.2)),
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


def recommender(model: Any, task: Task, inputs: Sequences) -> Any:
    """Scores of RecTools' encoder: the state after each input's last item, times the item vectors."""
    from rectools.dataset import Dataset

    prepare = model.data_preparator
    users = np.arange(len(inputs))
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

    def scores(rows: np.ndarray) -> np.ndarray:
        result = np.full((len(rows), task.items), -np.inf, np.float32)
        here = place[rows]
        result[np.ix_(np.flatnonzero(here >= 0), numbers)] = vectors[here[here >= 0]] @ items[extra:].T
        return result

    return scores


def ranked_trees(
    task: Task, request: dict[str, Any], learn: Sequences, inputs: Sequences
) -> tuple[Any, dict[str, Any], None]:
    """LightGBM's LambdaRank over the nearest items by co-counts, what was taken before, and the popular ones.

    It learns from half of the validation cases (the other half is for choosing its settings), as a ranker must learn
    from requests whose candidates knew nothing of their answer.
    """
    import lightgbm

    settings, past = request["settings"], task.validation.rows(np.arange(0, len(task.validation), 2))
    items, features, sizes = Nearest(task.part("learn"), task.items).candidates(past.inputs)
    wanted = np.sort(past.targets.row_of_entry * task.items + past.targets.items)
    keys = np.repeat(np.arange(len(past)), sizes) * task.items + items
    labels = (wanted[np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)] == keys).astype(int)
    model = lightgbm.train(
        {"objective": "lambdarank", "num_leaves": int(settings.get("leaves", 31)), "verbosity": -1,
         "learning_rate": float(settings.get("rate", 0.05)), "seed": request["seed"],
         "lambdarank_truncation_level": 15},
        lightgbm.Dataset(features, labels, group=sizes), num_boost_round=int(settings.get("trees", 150)),
    )  # fmt: skip
    nearest = Nearest(learn, task.items)

    def scores(rows: np.ndarray) -> np.ndarray:
        found, described, counts = nearest.candidates(inputs.rows(rows))
        result = np.full((len(rows), task.items), -np.inf, np.float32)
        result[np.repeat(np.arange(len(rows)), counts), found] = model.predict(described)
        return result

    return scores, {}, None


class Nearest:
    """Candidates by co-counts of the last 10 and of the last 200 items, by popularity lately, and one's own."""

    def __init__(self, learn: Sequences, items: int) -> None:
        self._near = ItemKnn(learn, items, ItemKnnConfig(recent=10, decay=0.8))
        self._wide = ItemKnn(learn, items, ItemKnnConfig(recent=200, decay=0.98))
        self._count = np.asarray((matrix_of(learn, items) > 0).sum(axis=0)).ravel()
        self._late = np.bincount(learn.items[learn.times >= np.quantile(learn.times, 0.9)], minlength=items)
        self._popular = np.argsort(-self._late, kind="stable")[:50]

    def candidates(self, inputs: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(items, features [candidates, F], candidates of each input)."""
        items, features, sizes = [], [], []
        for row, (near, wide) in enumerate(zip(self._near.scores(inputs), self._wide.scores(inputs), strict=True)):
            history = inputs.row(row)
            found = [self._popular, history[-100:], *(np.argpartition(-score, 100)[:100] for score in (near, wide))]
            chosen = np.unique(np.concatenate(found))
            own = np.bincount(history, minlength=len(near))
            faded = np.bincount(history, weights=0.98 ** np.arange(len(history))[::-1], minlength=len(near))
            columns = (near, wide, own, faded, self._count, self._late)
            items.append(chosen)
            features.append(
                np.column_stack([column[chosen] for column in columns] + [np.full(len(chosen), len(history))])
            )
            sizes.append(len(chosen))
        described = np.concatenate(features).astype(np.float32)
        described[np.isneginf(described)] = 0
        return np.concatenate(items), described, np.array(sizes)


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
        lists, new_lists = lists_of(scores_of, inputs, mask_history=task.mask_history)
        np.save(folder / "lists.npy", lists)
        np.save(folder / "new_lists.npy", new_lists)
        answers.write(json.dumps({"learnt": learnt, "epoch_seconds": epoch_seconds}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
