"""PPO on four games of MinAtar, from 10 x 10 cells, four seeds each.

    python experiments/minatar.py               # about six minutes on two CPU cores

All four with the presets, whose hyperparameters are PureJaxRL's: an MLP, since a convolution takes
four times as long on a CPU, and a large learning rate, which falls to 0. Writes minatar.png, and a
GIF of each game, played by the best seed.
"""

import argparse
import time

import purerl

GAMES = ("Breakout", "Asterix", "Freeway", "SpaceInvaders")


def main(num_seeds=4, total_timesteps=1_000_000, out="minatar.png"):
    found = []
    for game in GAMES:
        env = f"{game}-MinAtar"
        config = purerl.preset(env, total_timesteps=total_timesteps)
        start = time.perf_counter()
        outs = purerl.fit(config, seeds=num_seeds)
        curves = purerl.Curves.of(game, outs)
        final = curves.final_returns
        seconds = time.perf_counter() - start
        print(
            f"{env}: {final.mean():.1f}, worst seed {final.min():.1f}, {seconds:.0f} s with "
            "compiling",
            flush=True,
        )
        policy = outs.member(int(final.argmax())).policy
        purerl.render(policy, env, out.replace(".png", f"_{game.lower()}.gif"))
        found.append(curves)
    purerl.plot_curves(found, out, title="PPO on MinAtar")
    print(f"learning curves: {out}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--out", default="minatar.png")
    args = parser.parse_args()
    main(args.seeds, args.steps, args.out)
