"""Trains in a folder, as a process that a test kills: `python killed.py RUN FOLDER`."""

import sys
import time

import test_fit
from toys import quick_jit

import purerl
from purerl.host.chunks import Program

NUM_UPDATES = 60


def main(name, folder):
    Program.jit = staticmethod(quick_jit)
    config = test_fit.small(name, NUM_UPDATES)
    purerl.fit(
        config,
        folder,
        seeds=2,
        callback=lambda report: (print(report.stop, flush=True), time.sleep(0.03)),
        report_every=0.0,
        checkpoint_every=0.0,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
