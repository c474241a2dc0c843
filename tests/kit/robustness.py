"""How often a test that trains would fail on other seeds:

    python tests/kit/robustness.py                             # every trial, 48 seeds; hours
    python tests/kit/robustness.py --only probe --file seeds.json

Bits differ from processor to processor, so that a test with two seeds meets two that nobody has
seen. For each trial it prints how many of the seeds pass alone, the worst figures, and of the
subsets that the test could have drawn the share that fails, by 100,000 draws with replacement.
Figures are kept in the file, and trials that are in it are not run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

NUM_DRAWS = 100_000


def failure_rate(trial, figures: np.ndarray, rng: np.random.Generator) -> float:
    """Share of the draws of `trial.num_seeds` seeds that don't pass."""
    size = (NUM_DRAWS, trial.num_seeds)
    draws = np.unique(np.sort(rng.integers(len(figures), size=size)), axis=0, return_counts=True)
    failed = [count for rows, count in zip(*draws, strict=True) if not trial.passes(figures[rows])]
    return sum(failed) / NUM_DRAWS


def all_trials() -> dict:
    from kit.learning import LEARNING
    from kit.memories import MEMORY_TRIALS
    from kit.probes import PROBE_TRIALS
    from kit.values import VALUES

    return LEARNING | PROBE_TRIALS | MEMORY_TRIALS | VALUES


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of trials' names")
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--file", type=Path, help="keeps the figures")
    args = parser.parse_args()

    from kit.trials import keys

    there = args.file is not None and args.file.exists()
    kept = json.loads(args.file.read_text()) if there else {}
    rng, worst = np.random.default_rng(0), 0.0
    print(f"{'trial':<40} {'seeds':>5} {'pass alone':>10} {'test fails':>10}  worst figures")
    for name, trial in all_trials().items():
        if not any(word.lower() in name.lower() for word in args.only):
            continue
        start = time.perf_counter()
        if len(kept.get(name, [])) < args.seeds:
            kept[name] = np.asarray(trial.measure(keys(range(args.seeds)))).tolist()
            if args.file is not None:
                args.file.write_text(json.dumps(kept))
        figures = np.array(kept[name])
        alone = sum(bool(trial.passes(row[None])) for row in figures)
        rate = failure_rate(trial, figures, rng)
        worst = max(worst, rate)
        ends = f"{figures.min(0).round(2).tolist()} {figures.max(0).round(2).tolist()}"
        seconds = time.perf_counter() - start
        print(
            f"{name:<40} {len(figures):>5} {alone:>10} {rate:>10.5f}  {ends}  ({seconds:.0f} s)",
            flush=True,
        )
    return int(worst > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
