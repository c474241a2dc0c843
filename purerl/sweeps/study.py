"""The trials of a search, asked of Optuna and told to it, in memory or in a folder's journal.

    journal.log    Optuna's own storage, which its tools read
    progress.json  how many batches are finished, and the journal's length and digest after them

What the journal has of a batch that was interrupted is cut off, and the batch is asked for again:
the sampler is seeded anew for each batch, so that it asks for the same. Only finished batches
count.
"""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from purerl.records.errors import ConfigError
from purerl.records.files import put_aside, read_text, reason, sealed, unsealed, write_whole
from purerl.runs.view import WINNER
from purerl.sweeps.plan import Values
from purerl.sweeps.rungs import Outcome
from purerl.sweeps.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

JOURNAL, PROGRESS = "journal.log", "progress.json"
SAMPLERS = ("tpe", "random")
# Trials from which on the importance of hyperparameters is estimated.
LEAST_TRIALS = 8


class Trial(NamedTuple):
    """A trial of a search.

    Attributes:
        number: counted from 0.
        values: by name.
        complete: whether it was trained to its end, and has a score.
        outcome: its scores and steps.
    """

    number: int
    values: Values
    complete: bool
    outcome: Outcome

    @property
    def score(self) -> float:
        """That of the last rung which it reached; NaN if it has none, -inf if it diverged."""
        return self.outcome.scores[-1] if self.outcome.scores else math.nan

    @property
    def standing(self) -> tuple[int, float, int]:
        """Where it stands, higher for better ones: by the rungs that it reached, since scores of
        different rungs don't compare, then by its score; of equal ones the first."""
        score = -math.inf if math.isnan(self.score) else self.score
        return len(self.outcome.scores), score, -self.number


def check_optuna() -> None:
    """Raises ConfigError where Optuna isn't installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError("tune: Optuna isn't installed: pip install 'purerl[tune]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its messages about each study and trial, which its other users keep."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class Study:
    """The study of a search.

    Args:
        space: what is searched.
        sampler: "tpe" or "random".
        seed: of the sampler.
        folder: where the journal is; None keeps it in memory. Only one process may have it.
        search: a hash of the search's description.
    """

    def __init__(
        self, space: Space, sampler: str, seed: int, folder: Path | None, search: str
    ) -> None:
        import optuna

        self.space, self.sampler, self.seed = space, sampler, seed
        self.folder, self.search = folder, search
        self.batches = 0
        storage: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
        if folder is not None:
            self.batches = self._restore(folder)
            backend = optuna.storages.journal.JournalFileBackend(
                os.fspath(folder / JOURNAL),
                lock_obj=_Held(),
            )
            storage = optuna.storages.JournalStorage(backend)
        self.study = optuna.create_study(
            study_name="purerl", storage=storage, direction="maximize", load_if_exists=True
        )
        self._asked: list[optuna.trial.Trial] = []

    def _restore(self, folder: Path) -> int:
        """Cuts the journal back to the finished batches, and returns how many these are."""
        journal, progress = folder / JOURNAL, folder / PROGRESS
        try:
            known = unsealed(read_text(progress))
            if known["search"] != self.search:
                raise ValueError("it is another search's")
            with journal.open("rb+") as stream:
                if _digest(stream.read(known["bytes"])) != known["digest"]:
                    raise ValueError(f"{JOURNAL} doesn't match its checksum")
                stream.truncate(known["bytes"])
            return int(known["batches"])
        except FileNotFoundError:
            if not progress.exists():  # no batch is finished
                journal.unlink(missing_ok=True)
                return 0
            trouble = f"{journal} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            trouble = f"{progress} can't be used ({reason(error)})"
        for file in (progress, journal, folder / WINNER):
            if file.exists():
                put_aside(file)
        warnings.warn(f"{trouble}: put aside, all trials are trained again", stacklevel=5)
        return 0

    def ask(self, count: int) -> list[Values]:
        """The values of the next batch of trials."""
        self.study.sampler = self._sampler()
        distributions = self.space.distributions()
        self._asked = [self.study.ask(distributions) for _ in range(count)]
        return [self.space.values(trial.params) for trial in self._asked]

    def _sampler(self) -> "BaseSampler":
        import optuna

        entropy = np.random.SeedSequence([self.seed, self.batches])
        seed = int(entropy.generate_state(1)[0])
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # A trial of the batch that was asked for before counts as a bad one, so that they differ.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def tell(self, outcomes: Sequence[Outcome], num_rungs: int) -> None:
        """What became of the batch that was asked for last; it is finished then."""
        from optuna.trial import TrialState

        for trial, outcome in zip(self._asked, outcomes, strict=True):
            for rung, score in enumerate(outcome.scores):
                trial.report(score, rung)
            for name, value in vars(outcome).items():
                trial.set_user_attr(name, value)
            whole = len(outcome.scores) == num_rungs and math.isfinite(outcome.scores[-1])
            if whole:
                self.study.tell(trial, outcome.scores[-1])
            elif outcome.scores and math.isnan(outcome.scores[-1]):
                # Nobody knows how good it is: the sampler learns nothing from it.
                self.study.tell(trial, state=TrialState.FAIL)
            else:  # one that left; one that couldn't be trained counts as worse than all that were
                self.study.tell(trial, state=TrialState.PRUNED)
        self.batches += 1
        if self.folder is not None:
            data = (self.folder / JOURNAL).read_bytes()
            progress = {"search": self.search, "batches": self.batches}
            progress |= {"bytes": len(data), "digest": _digest(data)}
            text = json.dumps(sealed(progress), indent=2)
            write_whole(self.folder / PROGRESS, lambda file: file.write(text.encode()))

    def trials(self) -> list[Trial]:
        """Those of all finished batches."""
        from optuna.trial import TrialState

        found = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                values = self.space.values(trial.params)
                outcome = Outcome(**trial.user_attrs)
                complete = trial.state == TrialState.COMPLETE
                found.append(Trial(trial.number, values, complete, outcome))
        return found

    def importance(self) -> dict[str, float]:
        """The share of each field in what tells the best trials from all (PED-ANOVA, Watanabe et
        al. 2023), the largest first; {} for too few trials."""
        import optuna

        standing = {x.number: x.standing for x in self.trials() if not math.isnan(x.score)}
        told = [x for x in self.study.get_trials(deepcopy=False) if x.number in standing]
        ranked = sorted(told, key=lambda trial: standing[trial.number])
        if len(ranked) < LEAST_TRIALS:
            return {}
        places = optuna.create_study(direction="maximize")  # it compares numbers
        for place, trial in enumerate(ranked):
            parts = {"params": trial.params, "distributions": trial.distributions}
            places.add_trial(optuna.trial.create_trial(value=float(place), **parts))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(places, evaluator=evaluator)
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


class _Held:
    """The lock that Optuna asks for: the search has its folder to itself."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
