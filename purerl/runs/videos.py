"""Videos of the policy while it is trained, for the sinks that show them."""

from typing import NamedTuple

from purerl.deploy.render import Film, as_gif
from purerl.envs.base import Env, host_of
from purerl.records.errors import ConfigError
from purerl.records.fields import check_count
from purerl.runs.report import Report
from purerl.training.policy import Policy

MOST_STEPS = 1_000  # all moments of an episode are in memory beside the training


class Video(NamedTuple):
    """An episode: a GIF, its pixels `height` x `width`, and its return."""

    gif: bytes
    height: int
    width: int
    episode_return: float


class Videos:
    """Episodes of the first seed's policy (its mode, or greedy) and their first 1,000 steps: one
    every so many environment steps, at most one a report, and one at the end; each is another
    episode.

    Args:
        every: environment steps of a seed from one to the next; None for no videos.

    Raises:
        ConfigError: `every` is no integer >= 1; from `of`, the environment is on the host.
    """

    def __init__(self, every: int | None) -> None:
        self.every = None if every is None else check_count("render_every", every)
        self._film: Film | None = None

    def of(self, report: Report) -> Video | None:
        """The video that is due at a report; None if none is."""
        if self.every is None or report.member is None:
            return None
        if self._film is None:  # at the first report, so that its errors come early
            self._film = _film(*report.member(0))
        if not self._is_due(report):
            return None
        policy, _ = report.member(0)
        frames, total, _ = self._film.play(policy, report.stop % 2**32)
        width, height = frames[0].size
        return Video(as_gif(frames), height, width, total)

    def close(self) -> None:
        """Ends a run: the next one may have another environment."""
        self._film = None

    def _is_due(self, report: Report) -> bool:
        assert self.every is not None
        before = report.start * report.steps_per_update // self.every
        now = report.stop * report.steps_per_update // self.every
        return now > before or report.is_last


def _film(policy: Policy, env: Env) -> Film:
    refuse_host_films(env, "render_every")
    limit = env.spec.max_episode_steps or MOST_STEPS
    return Film(env, policy, max_steps=min(limit, MOST_STEPS))


def refuse_host_films(env: Env, what: str) -> None:
    """Raises ConfigError, with the argument that asked for videos, for an environment of the
    host."""
    if host_of(env) is not None:
        raise ConfigError(
            f"{what}: is for environments in JAX, and {env.spec.name} is simulated on the host, "
            "where another episode would disturb the training"
        )
