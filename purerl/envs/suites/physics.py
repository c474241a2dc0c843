"""Parameters of MuJoCo models: how heavy, rough and strong, as multiples of what a model has."""

import copy
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from purerl.envs.suites.dynamics import Foreign

# Fields by parameter. Brax's engines read a `System`, in `link` and `actuator`, and MJX the model.
SCALED = {
    "gravity_scale": ("gravity", "opt.gravity"),
    "mass_scale": (
        "link.inertia.mass",
        "link.inertia.i",
        "body_mass",
        "body_inertia",
        "body_subtreemass",
    ),
    "friction_scale": ("geom_friction", "pair_friction"),
    "gear_scale": ("actuator.gear", "actuator_gear"),
}
UNSCALED: dict[str, object] = dict.fromkeys(SCALED, 1.0)


def scaled(env: Foreign, attribute: str, scales: Mapping[str, object]) -> Foreign:
    """A copy of an environment whose model has some fields multiplied.

    Args:
        env: the suite's environment; returned as it is where all scales are 1.
        attribute: of the model in it.
        scales: the factors, by the names of `SCALED`, which may be traced.
    """
    factors = {name: x for name, x in scales.items() if isinstance(x, jax.Array) or x != 1.0}
    if not factors:
        return env
    model = getattr(env, attribute)
    for name, factor in factors.items():
        for path in SCALED[name]:
            model = _multiplied(model, path.split("."), factor)
    env = copy.copy(env)
    setattr(env, attribute, model)
    return env


def _multiplied(tree: Foreign, path: list[str], factor: object) -> Foreign:
    """A dataclass with one of its parts multiplied, if it has that part."""
    part = getattr(tree, path[0], None)
    if part is None:
        return tree
    if path[1:]:
        return tree.replace(**{path[0]: _multiplied(part, path[1:], factor)})
    return tree.replace(**{path[0]: jnp.asarray(part) * jnp.asarray(factor, jnp.float32)})
