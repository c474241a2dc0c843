"""Videos of the policy while it is trained, for the sinks that show them."""

from typing import NamedTuple

from purerl.deploy.render import Film, as_gif
from purerl.envs.base import refuse_host
from purerl.records.fields import check_count
from purerl.runs.report import Report


class Video(NamedTuple):
    """An episode: a GIF, its pixels `height` x `width`, and its return."""

    gif: bytes
    height: int
    width: int
    episode_return: float


class Videos:
    """Episodes of the first seed's policy (its mode, or greedy), one every so many environment
    steps and one at the end; each is another episode.

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
        if self.every is None or report.member is None or not self._is_due(report):
            return None
        policy, env = report.member(0)
        if self._film is None:
            refuse_host(env, "render_every")
            self._film = Film(env, policy)
        frames, total, _ = self._film.play(policy, report.stop % 2**32)
        width, height = frames[0].size
        return Video(as_gif(frames), height, width, total)

    def _is_due(self, report: Report) -> bool:
        assert self.every is not None
        before = report.start * report.steps_per_update // self.every
        now = report.stop * report.steps_per_update // self.every
        return now > before or report.is_last
