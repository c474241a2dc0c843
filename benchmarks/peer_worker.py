"""The protocol of `peers.py` and its programs. Needs nothing but Python.

A program is started with its case as JSON. It first prints the costs of starting, as a line of JSON
on standard output; then it answers each line of standard input, "run SEED" or "target SEED", by
another one.
"""

import json
import os
import resource
import sys
import time

_started = time.perf_counter()


def serve(load):
    """Loads the case of the command line, then answers requests until standard input closes.

    Args:
        load: from the case to `(costs, run, target)`. `costs` are seconds of starting by name.
            `run(seed)` trains and returns a function without arguments that returns the return
            reached, and that isn't timed. `target(seed)` trains with evaluations and returns the
            environment steps after which the target return was reached, or None; it may be None
            too, where a peer can't evaluate inside training.
    """
    case = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    if case["cores"]:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: case["cores"]]))

    def send(**answer):
        print(json.dumps(answer), file=answers, flush=True)

    costs, run, target = load(case)
    send(costs={**costs, "start": time.perf_counter() - _started})
    for line in sys.stdin:
        request, seed = line.split()
        if request == "target":
            send(steps=None if target is None else target(int(seed)))
            continue
        cpu, start = time.process_time(), time.perf_counter()
        reached = run(int(seed))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        send(seconds=seconds, cpu=cpu, megabytes=peak, reached=reached())


class Clock:
    """Seconds since the last call."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self):
        now = time.perf_counter()
        self.last, seconds = now, now - self.last
        return seconds
