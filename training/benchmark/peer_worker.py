"""Fits implicit, RecTools and LightGBM, in the peers' environment, on a split that is given as arrays.

    .venv-peers/bin/python -m training.benchmark.peer_worker FOLDER < requests

That environment has NumPy, SciPy and pandas, so it imports only modules of ours that need no more. The folder does not
hold the targets of the test.
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
from training.benchmark.lists import ranked_lists
from training.benchmark.metrics import mean_ndcg
from training.benchmark.protocols import Cases

PATIENCE = 4


class Task:
    """Reads the split from the folder."""

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text())
        self.items, self.mask_history, self.refits = facts["items"], facts["mask_history"], facts["refits"]
        self._folder = folder

    def part(self, name: str) -> Sequences:
        """Returns a part by name: learn, final, test_inputs, validation_inputs or validation_targets."""
        return Sequences(*(self._array(f"{name}_{field.name}") for field in fields(Sequences)))

    def users(self, cases: str) -> np.ndarray:
        """Returns each case's row in the training part."""
        return self._array(f"{cases}_users")

    @property
    def validation(self) -> Cases:
        """Returns the validation cases."""
        return Cases(self.part("validation_inputs"), self.part("validation_targets"), self.users("validation"))

    def _array(self, name: str) -> np.ndarray:
        array: np.ndarray = np.load(self._folder / f"{name}.npy", allow_pickle=False)
        return array


def matrix_of(part: Sequences, items: int) -> sp.csr_matrix:
    """Counts how often each row has each item, float32."""
    ones = np.ones(len(part.items), np.float32)
    matrix = sp.csr_matrix((ones, part.items, part.offsets), shape=(len(part), items))
    matrix.sum_duplicates()
    return matrix


def factor_model(
    task: Task, request: dict[str, Any], learn: Sequences, inputs: Sequences
) -> tuple[Any, dict[str, Any], None]:
    """Fits implicit's ALS, which folds each user's whole input in, or BPR, with its user vectors from training."""
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
        input_matrix = matrix_of(inputs, task.items)
        users = model.recalculate_user(np.arange(input_matrix.shape[0]), input_matrix)
    else:
        model = BayesianPersonalizedRanking(
            factors=factors,
            iterations=iterations,
            regularization=regularization,
            learning_rate=float(settings.get("rate", 0.01)),
            random_state=seed,
        )
        model.fit(matrix, show_progress=False)
        users = model.user_factors[task.users("test" if request["final"] else "validation")]
    return (lambda rows: users[rows] @ model.item_factors.T), {}, None


def interaction_table(part: Sequences) -> Any:
    """Returns interactions as RecTools takes them, with times that keep their order."""
    import pandas as pd

    seconds = np.arange(len(part.items))
    return pd.DataFrame({"user_id": part.row_of_entry, "item_id": part.items, "weight": 1.0,
                         "datetime": pd.Timestamp("2000-01-01") + pd.to_timedelta(seconds, unit="s")})  # fmt: skip


def sasrec(
    task: Task, request: dict[str, Any], learn: Sequences, inputs: Sequences
) -> tuple[Any, dict[str, Any], float]:
    """Fits RecTools' SASRec with sampled softmax until the validation value stops growing or the time is up."""
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    settings, seed = request["settings"], request["seed"]
    seed_everything(seed, workers=True)
    refit = request["final"] and task.refits and "epochs" in settings
    validation = task.validation

    class EarlyStopping(Callback):
        """Times epochs, validates every second one, keeps the best and stops."""

        def __init__(self) -> None:
            self.best, self.best_epoch, self.time_is_up = -1.0, 0, False
            self.weights: Any = None
            self.seconds: list[float] = []
            self.started = time.perf_counter()

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.epoch_started = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.seconds.append(time.perf_counter() - self.epoch_started)
            epoch = trainer.current_epoch + 1
            self.time_is_up = time.perf_counter() - self.started > request["seconds"]
            if not refit and (epoch % 2 == 0 or self.time_is_up):
                scores_of = recommender(model, task, validation.inputs)
                lists = ranked_lists(scores_of, validation.inputs, mask_history=task.mask_history)[0]
                value = mean_ndcg(lists, validation, items=task.items)
                module.train()
                if value > self.best:
                    self.best, self.best_epoch = value, epoch
                    self.weights = copy.deepcopy(module.torch_model.state_dict())
                trainer.should_stop = epoch - self.best_epoch >= 2 * PATIENCE or self.time_is_up
            elif refit:
                self.best_epoch = epoch
                trainer.should_stop = self.time_is_up

    early_stopping = EarlyStopping()
    model = SASRecModel(
        n_factors=64, n_blocks=2, n_heads=2, dropout_rate=float(settings.get("dropout", 0.2)),
        session_max_len=int(settings.get("length", 50)), loss="sampled_softmax",
        n_negatives=int(settings.get("negatives", 256)), lr=float(settings.get("rate", 1e-3)), batch_size=128,
        recommend_torch_device="cpu", verbose=0,
        get_trainer_func=lambda: Trainer(
            max_epochs=int(settings["epochs"]) if refit else 200, enable_progress_bar=False,
            enable_model_summary=False, logger=False, enable_checkpointing=False, accelerator="cpu",
            callbacks=[early_stopping],
        ),
    )  # fmt: skip
    model.fit(Dataset.construct(interaction_table(learn)))
    # The trainer works on a copy of its callback.
    early_stopping = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, EarlyStopping))
    if early_stopping.weights is not None:
        model.lightning_model.torch_model.load_state_dict(early_stopping.weights)
    learnt = {"epochs": early_stopping.best_epoch, "stopped_by_time": int(early_stopping.time_is_up)}
    return recommender(model, task, inputs), learnt, float(np.median(early_stopping.seconds))


def recommender(model: Any, task: Task, inputs: Sequences) -> Any:
    """Returns a scorer of RecTools' encoder: the state after each input's last item, times the item vectors."""
    from rectools.dataset import Dataset

    prepare = model.data_preparator
    users = np.arange(len(inputs))
    data = prepare.transform_dataset_u2i(Dataset.construct(interaction_table(inputs)), users)
    module = model.lightning_model
    vectors, items = (
        part.detach().cpu().numpy() if hasattr(part, "detach") else part
        for part in module._get_user_item_embeddings(prepare.get_dataloader_recommend(data, 512), "cpu")
    )
    extra = prepare.n_item_extra_tokens
    numbers = prepare.item_id_map.external_ids[extra:].astype(np.int64)
    vector_row = np.full(len(users), -1)
    vector_row[data.user_id_map.external_ids.astype(np.int64)] = np.arange(len(vectors))

    def scores(rows: np.ndarray) -> np.ndarray:
        result = np.full((len(rows), task.items), -np.inf, np.float32)
        found_rows = vector_row[rows]
        result[np.ix_(np.flatnonzero(found_rows >= 0), numbers)] = (
            vectors[found_rows[found_rows >= 0]] @ items[extra:].T
        )
        return result

    return scores


def ranked_trees(
    task: Task, request: dict[str, Any], learn: Sequences, inputs: Sequences
) -> tuple[Any, dict[str, Any], None]:
    """Fits LightGBM's LambdaRank on the nearest items by co-counts, the items taken before, and the popular ones.

    It learns from half of the validation cases, and the other half is for choosing its settings: a ranker must learn
    from requests whose candidates do not depend on the targets.
    """
    import lightgbm

    settings, past = request["settings"], task.validation.rows(np.arange(0, len(task.validation), 2))
    items, features, sizes = NeighbourCandidates(task.part("learn"), task.items).candidates(past.inputs)
    target_keys = np.sort(past.targets.row_of_entry * task.items + past.targets.items)
    keys = np.repeat(np.arange(len(past)), sizes) * task.items + items
    labels = (target_keys[np.minimum(np.searchsorted(target_keys, keys), len(target_keys) - 1)] == keys).astype(int)
    model = lightgbm.train(
        {"objective": "lambdarank", "num_leaves": int(settings.get("leaves", 31)), "verbosity": -1,
         "learning_rate": float(settings.get("rate", 0.05)), "seed": request["seed"],
         "lambdarank_truncation_level": 15},
        lightgbm.Dataset(features, labels, group=sizes), num_boost_round=int(settings.get("trees", 150)),
    )  # fmt: skip
    nearest = NeighbourCandidates(learn, task.items)

    def scores(rows: np.ndarray) -> np.ndarray:
        items, features, counts = nearest.candidates(inputs.rows(rows))
        result = np.full((len(rows), task.items), -np.inf, np.float32)
        result[np.repeat(np.arange(len(rows)), counts), items] = model.predict(features)
        return result

    return scores, {}, None


class NeighbourCandidates:
    """Generates candidates by co-counts of the last 10 and 200 items, recent popularity, and the user's history."""

    def __init__(self, learn: Sequences, items: int) -> None:
        self._near = ItemKnn(learn, items, ItemKnnConfig(recent=10, decay=0.8))
        self._wide = ItemKnn(learn, items, ItemKnnConfig(recent=200, decay=0.98))
        self._count = np.asarray((matrix_of(learn, items) > 0).sum(axis=0)).ravel()
        self._recent_counts = np.bincount(learn.items[learn.times >= np.quantile(learn.times, 0.9)], minlength=items)
        self._popular = np.argsort(-self._recent_counts, kind="stable")[:50]

    def candidates(self, inputs: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns items, features float32 [candidates, F] and the number of candidates of each input."""
        items, features, sizes = [], [], []
        for row, (near, wide) in enumerate(zip(self._near.scores(inputs), self._wide.scores(inputs), strict=True)):
            history = inputs.row(row)
            nearest = (np.argpartition(-score, 100)[:100] for score in (near, wide))
            candidates = np.unique(np.concatenate([self._popular, history[-100:], *nearest]))
            own = np.bincount(history, minlength=len(near))
            faded = np.bincount(history, weights=0.98 ** np.arange(len(history))[::-1], minlength=len(near))
            columns = (near, wide, own, faded, self._count, self._recent_counts)
            items.append(candidates)
            features.append(
                np.column_stack([column[candidates] for column in columns] + [np.full(len(candidates), len(history))])
            )
            sizes.append(len(candidates))
        matrix = np.concatenate(features).astype(np.float32)
        matrix[np.isneginf(matrix)] = 0
        return np.concatenate(items), matrix, np.array(sizes)


MODELS = {"als": factor_model, "bpr": factor_model, "rectools_sasrec": sasrec, "lightgbm": ranked_trees}


def main(folder: Path) -> None:
    """Answers one JSON line for each request on stdin, and writes the lists into the folder."""
    # Libraries print on stdout, so answers are written to a copy of it.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    task = Task(folder)
    for line in sys.stdin:
        request = json.loads(line)
        learn = task.part("final" if request["final"] else "learn")
        inputs = task.part("test_inputs" if request["final"] else "validation_inputs")
        scores_of, learnt, epoch_seconds = MODELS[request["model"]](task, request, learn, inputs)
        lists, new_lists = ranked_lists(scores_of, inputs, mask_history=task.mask_history)
        np.save(folder / "lists.npy", lists)
        np.save(folder / "new_lists.npy", new_lists)
        answers.write(json.dumps({"learnt": learnt, "epoch_seconds": epoch_seconds}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
