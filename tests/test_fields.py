import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.records import fields
from purerl.records.errors import ConfigError
from purerl.records.fields import (
    Record,
    choice,
    field_names,
    flag,
    integer,
    real,
    sizes,
)

NAME = "purerl.records.fields"


class Thing(Record):
    needed: int = integer(at_least=1)
    rate: float = real(default=0.5, above=0.0, at_most=1.0)
    limit: float | None = real(default=None, optional=True)
    kind: str = choice(default="red", options=("red", "green"))
    wide: tuple[int, ...] = sizes(default=(64,))
    on: bool = flag(default=False)


def test_values_are_kept_in_one_type():
    thing = Thing(np.int64(3), rate=1, wide=[4, 5], on=np.bool_(True))
    assert type(thing.needed) is int
    assert type(thing.rate) is float
    assert thing.wide == (4, 5)
    assert thing.on is True
    assert Thing(1, wide=4).wide == Thing(1, wide=np.int64(4)).wide == (4,)  # one layer
    assert Thing(5e5).needed == 500_000


def test_type_checkers_know_every_kind_of_field():
    """By them an editor completes the constructor's arguments: those whose default is made by one
    of the specifiers are known to have, or not to have, a default."""
    made = [x for x in vars(fields).values() if inspect.isfunction(x) and x.__module__ == NAME]
    makers = {
        x for x in made if "default" in inspect.signature(x).parameters and x.__name__[0] != "_"
    }
    assert makers == set(Record.__dataclass_transform__["field_specifiers"])


def test_a_record_prints_as_what_makes_it():
    assert repr(Thing(3)) == "Thing(needed=3)"
    assert repr(Thing(3, rate=0.25, wide=4)) == "Thing(needed=3, rate=0.25, wide=(4,))"
    assert eval(repr(Thing(3, kind="green")), {"Thing": Thing}) == Thing(3, kind="green")
    assert repr(jax.tree.map(lambda _: jnp.ones(2), Thing(3))).startswith("Thing(needed=3, rate=A")


def test_floats_are_leaves_and_the_rest_is_static():
    thing = Thing(3)
    assert jax.tree.leaves(thing) == [0.5]
    assert field_names(Thing, traced=True) == ["rate", "limit"]
    assert jax.tree.map(lambda x: x * 2, thing) == Thing(3, rate=1.0)
    path, _ = jax.tree_util.tree_leaves_with_path(thing)[0]
    assert jax.tree_util.keystr(path) == ".rate"


def test_records_go_through_jit_and_vmap():
    def double(rate):
        return Thing(3).replace(rate=rate)

    many = jax.jit(jax.vmap(double))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(many.rate, [0.1, 0.2])
    # JAX puts placeholders into the leaves; they are not a user's values and are not checked.
    assert jax.tree.map(lambda _: -1, Thing(3)).rate == -1


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        Thing(3).rate = 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Thing.needed: missing, expected an integer >= 1"),
        ({"needed": 0}, "Thing.needed: got 0, expected an integer >= 1"),
        ({"needed": 1.5}, "got 1.5, expected an integer"),
        ({"needed": "3"}, "got '3', expected an integer"),
        ({"needed": True}, "got True, expected an integer"),
        ({"needed": None}, "got None"),
        ({"needed": 1, "rate": 0.0}, "Thing.rate: got 0.0, expected a float > 0.0 and <= 1.0"),
        ({"needed": 1, "rate": 1.1}, "got 1.1"),
        ({"needed": 1, "rate": float("nan")}, "got nan"),
        ({"needed": 1, "rate": "fast"}, "got 'fast', expected a float"),
        ({"needed": 1, "rate": True}, "got True, expected a float"),
        ({"needed": 1, "rate": jnp.ones(3)}, r"shape \(3,\).*under jax.vmap"),
        ({"needed": 1, "limit": "x"}, "expected a float or None"),
        ({"needed": 1, "kind": "gren"}, "did you mean 'green'"),
        ({"needed": 1, "kind": 1}, "expected one of 'red', 'green'"),
        ({"needed": 1, "wide": (4, 0)}, "expected a sequence of positive integers"),
        ({"needed": 1, "wide": 4.5}, "expected a sequence of positive integers"),
        ({"needed": 1, "wide": 0}, "wide: got 0, expected a sequence of positive integers"),
        ({"needed": 1, "wide": True}, "wide: got True, expected a sequence"),
        ({"needed": 1, "on": 1}, "got 1, expected True or False"),
        ({"needed": 1, "raet": 0.1}, "no field 'raet'; did you mean 'rate'"),
        ({"needed": 1, "zzz": 0.1}, "no field 'zzz'; known: needed, rate"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ConfigError, match=message):
        Thing(**values)
    if "needed" in values:
        with pytest.raises(ConfigError):
            Thing(3).replace(**values)


def test_a_tracer_of_the_wrong_shape():
    with pytest.raises(ConfigError, match=r"shape \(2,\)"):
        jax.jit(lambda rate: Thing(3, rate=rate))(jnp.ones(2))


def test_subclasses_inherit_fields_and_checks():
    class Special(Thing):
        more: float = real(default=2.0)

        def check(self):
            super().check()
            if self.more < self.rate:
                raise ConfigError("more is less")

    assert jax.tree.leaves(Special(3)) == [0.5, 2.0]
    with pytest.raises(ConfigError, match="more is less"):
        Special(3, more=0.1)
