"""The gain of each trick for speed: training with all of them next to training without one.

    python benchmarks/tricks.py --cores 1                        # all, some half an hour
    python benchmarks/tricks.py --only lean_scan --cases dqn --cores 1

Each pair is two processes that take turns, one of them with the plain form in place of a trick. A
row has environment steps a second without and with the trick, the median of the ratios of
consecutive runs, with its range (above 1 the trick is faster), the ratio of the compile times, and
that of the compiled programs' memory beyond their inputs.
"""

import argparse
import os
import sys

from learning import HERE, pin
from revisions import Worker, compare, train_by_line

CASES = (
    "ppo-4x128",
    "ppo-64x128",
    "ppo-2048x32",
    "ppo-breakout",
    "ppo-breakout-cnn",
    "dqn",
    "dqn-priorities",
)


def plain_scan():
    import jax

    from purerl.training import rollout

    rollout.lean_scan = jax.lax.scan


def whole_batches():
    from purerl.agents import gradients

    gradients.ROWS_AT_ONCE = 2**31


def plain_product():
    from purerl.nn import defaults

    defaults._thin_product = lambda x, kernel: x @ kernel


def plain_convolution():
    import flax.linen as nn
    import jax

    from purerl.nn import defaults

    def flatten(self, x):
        if x.ndim == 4 and self.network != "mlp":
            stride = -(-max(x.shape[1:3]) // 10)
            init, channels = defaults._orthogonal(2**0.5), x.shape[-1]
            kernel = self.param("kernel", init, (9 * channels, 16)).reshape(3, 3, channels, 16)
            bias = self.param("bias", nn.initializers.zeros, (16,))
            form = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", None, None, form)
            x = defaults.ACTIVATIONS[self.activation](x + bias)
        return x.reshape(x.shape[0], -1)

    defaults.Torso._flatten = flatten


def no_barriers():
    """Removes barriers in the buffer, the sum tree and the check for NaN, not in the product."""
    import jax

    from purerl.envs import base
    from purerl.experience import buffer, sumtree

    class Lax:
        optimization_barrier = staticmethod(lambda x: x)

        def __getattr__(self, name):
            return getattr(jax.lax, name)

    class Jax:
        lax = Lax()

        def __getattr__(self, name):
            return getattr(jax, name)

    for module in (buffer, sumtree, base):
        module.jax = Jax()


TRICKS = {
    "lean_scan": plain_scan,
    "blocks": whole_batches,
    "thin_product": plain_product,
    "patches": plain_convolution,
    "barriers": no_barriers,
    "compiler_level": None,  # these two are flags of XLA
    "scheduler": None,
}
FLAGS = {
    "compiler_level": "--xla_backend_optimization_level=3",
    "scheduler": "--xla_cpu_enable_concurrency_optimized_scheduler=true",
}


def work(without, name):
    """Trains a case without a trick; "nothing" keeps all."""
    if without in FLAGS:
        os.environ["XLA_FLAGS"] = FLAGS[without]
    import purerl

    if TRICKS.get(without) is not None:
        TRICKS[without]()
    train_by_line(purerl, name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=TRICKS, default=list(TRICKS), metavar="TRICK")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE")
    parser.add_argument("--cores", type=int, help="how many may be used")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(*args.work)
    pin(args.cores)
    print("steps/s without and with, their ratio; compiling; memory", flush=True)
    for trick in args.only:
        for name in args.cases:
            if trick == "patches" and name != "ppo-breakout-cnn":
                continue
            pair = (Worker(__file__, HERE, without, name) for without in (trick, "nothing"))
            print(f"{trick:15} {compare(*pair, name, args.repeats)}", flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
