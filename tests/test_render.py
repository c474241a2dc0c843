"""Pictures of environments: that they are where the state says, and that they move."""

import math
import subprocess
import types
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import dict_env, faulty, image_env, push_env, walk
from kit.policies import make_policy
from PIL import Image

import purerl
from purerl.deploy import render as module
from purerl.deploy.drawing import HEIGHT, TITLE, WIDTH, draw
from purerl.envs.gymnax import NEEDS_DOWNLOAD

QUICK = ["CartPole-v1", "Pendulum-v1", "Catch-bsuite", "DeepSea-bsuite", "FourRooms-misc"]


def frames_of(path):
    frames = []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
    return np.stack(frames)


def pixels(name, obs=(0.0,), **state):
    """`[HEIGHT, WIDTH, 3]`, a picture without its title."""
    space = purerl.Box(-1.0, 1.0, (1,))
    spec = purerl.EnvSpec(name, space, space)
    image = draw(spec, types.SimpleNamespace(**state), obs, 0, 0.0)
    assert image.size == (WIDTH, TITLE + HEIGHT)
    return np.asarray(image).astype(int)[TITLE:]


def where_is(image, color):
    """Column and row of the middle of all pixels of about a color."""
    rows, columns = np.nonzero(np.abs(image - color).max(-1) < 40)
    assert len(rows) > 20
    return columns.mean(), rows.mean()


def known():
    return [name for name in purerl.env_names() if name not in NEEDS_DOWNLOAD]


def moves(name, tmp_path):
    path = tmp_path / "a.gif"
    _, length = purerl.render(None, name, path, max_steps=6)
    frames = frames_of(path)
    assert len(frames) == length + 1 >= 2
    assert frames.shape[1:] == (TITLE + HEIGHT, WIDTH, 3)
    changed = np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3))
    assert changed.min() > 100  # the title's step at least


@pytest.mark.parametrize("name", QUICK)
def test_it_moves(name, tmp_path):
    moves(name, tmp_path)


@pytest.mark.release
def test_every_environment_moves(tmp_path):
    for name in known():
        moves(name, tmp_path)


def test_an_episode_is_played_to_its_end(tmp_path):
    path = tmp_path / "walk.gif"
    policy = make_policy(purerl.PPO(), walk())
    assert purerl.render(policy, walk(3), path) == (6.0, 3)  # 1 + 2 + 3
    assert len(frames_of(path)) == 4
    assert purerl.render(policy, walk(3), path, max_steps=2) == (3.0, 2)
    assert len(frames_of(path)) == 3


def test_the_policy_plays(tmp_path):
    """The return is that of the policy's own actions, step by step."""
    env = push_env()
    policy = make_policy(purerl.PPO(), env, normalize_obs=True, scale=0.1)
    total, length = purerl.render(policy, env, tmp_path / "push.gif", seed=3)
    reset_key, _ = jax.random.split(jax.random.key(3))
    obs, state = env.reset(reset_key)
    expected = 0.0
    for _ in range(length):
        state, timestep = env.step(jax.random.key(0), state, policy.step(obs))
        obs, expected = timestep.obs, expected + float(timestep.reward)
    assert total == pytest.approx(expected, rel=1e-4)
    sampled = {
        purerl.render(policy, env, tmp_path / "push.gif", 3, key=jax.random.key(i))[0]
        for i in range(2)
    }
    assert len({total, *sampled}) > 1


def test_long_episodes_leave_frames_out():
    assert module._shown(3) == [0, 1, 2, 3]
    assert len(module._shown(500)) == 501
    assert len(module._shown(501)) == 252
    shown = module._shown(2500)
    assert len(shown) <= 501
    assert shown[:3] == [0, 5, 10]
    assert shown[-1] == 2500


def test_cartpole():
    above_ground = slice(None, 198)
    left = pixels("CartPole-v1", x=-1.2, theta=-0.2)[above_ground]
    right = pixels("CartPole-v1", x=1.2, theta=0.2)[above_ground]
    cart, pole = (34, 34, 34), (202, 152, 101)
    assert where_is(left, cart)[0] == pytest.approx(WIDTH / 4, abs=3)
    assert where_is(right, cart)[0] == pytest.approx(3 * WIDTH / 4, abs=3)
    lean = where_is(right, pole)[0] - 3 * WIDTH / 4
    assert lean == pytest.approx(math.sin(0.2) * 42, abs=4)  # half a pole's length aside
    assert where_is(left, pole)[0] < WIDTH / 4


@pytest.mark.parametrize(
    ("theta", "column", "row"),
    [(0.0, 0, -50), (math.pi, 0, 50), (math.pi / 2, -50, 0), (-math.pi / 2, 50, 0)],
)
def test_pendulum(theta, column, row):
    """The angle is from straight up, counterclockwise."""
    x, y = where_is(pixels("Pendulum-v1", theta=theta, last_u=0.0), (205, 77, 77))
    assert (x - WIDTH / 2, y - HEIGHT / 2) == pytest.approx((column, row), abs=5)


def test_acrobot():
    """The first angle is from hanging down, the second from the first link on."""
    links = [(0, 163, 163), (0, 204, 204)]
    down = pixels("Acrobot-v1", joint_angle1=0.0, joint_angle2=0.0)
    first, second = (where_is(down, color) for color in links)
    assert WIDTH / 2 == pytest.approx(first[0], abs=2) == pytest.approx(second[0], abs=2)
    assert HEIGHT / 2 < first[1] < second[1]
    aside = pixels("Acrobot-v1", joint_angle1=math.pi / 2, joint_angle2=math.pi / 2)
    first, second = (where_is(aside, color) for color in links)
    assert first[0] > WIDTH / 2 + 20
    assert first[1] == pytest.approx(HEIGHT / 2, abs=3)
    assert second[0] == pytest.approx(WIDTH / 2 + 59, abs=3)
    assert second[1] < HEIGHT / 2 - 20


@pytest.mark.parametrize(("name", "goal"), [("-v0", 0.5), ("Continuous-v0", 0.45)])
def test_mountain_car(name, goal):
    car, flag = (52, 101, 164), (204, 204, 0)
    scale = WIDTH / 1.8
    valley = pixels(f"MountainCar{name}", position=-math.pi / 6)
    slope = pixels(f"MountainCar{name}", position=0.2)
    assert where_is(valley, car)[0] == pytest.approx((1.2 - math.pi / 6) * scale, abs=2)
    assert where_is(slope, car)[0] == pytest.approx(1.4 * scale, abs=14)  # it leans back
    assert where_is(slope, car)[1] < where_is(valley, car)[1] - 50
    assert where_is(valley, flag)[0] == pytest.approx((1.2 + goal) * scale + 6, abs=3)


def test_a_time_limit_hides_nothing():
    state = types.SimpleNamespace(x=0.5, theta=0.1)
    inside = pixels("CartPole-v1", env=types.SimpleNamespace(env=state))
    np.testing.assert_array_equal(inside, pixels("CartPole-v1", x=0.5, theta=0.1))


def test_images_are_grids():
    env = image_env()
    obs, _ = env.reset(jax.random.key(0))
    column = int(jnp.argmax(obs[2, :, 0]))
    image = pixels("image", obs=obs)
    lit = np.nonzero(image.max(-1) - image.min(-1) > 100)
    cell = min((WIDTH - 20) / 6, (HEIGHT - 20) / 5)
    left, top = (WIDTH - 6 * cell) / 2, (HEIGHT - 5 * cell) / 2
    assert lit[1].mean() == pytest.approx(left + (column + 0.5) * cell, abs=1.5)
    assert lit[0].mean() == pytest.approx(top + 2.5 * cell, abs=1.5)
    other = pixels("image", obs=obs[..., ::-1])  # in the other channel
    color, other_color = (x[lit[0][0] + 5, lit[1][0] + 5] for x in (image, other))
    assert np.abs(color - other_color).max() > 100


def test_bytes_are_colors():
    obs = np.zeros((2, 2, 3), np.uint8)
    obs[0, 1] = (10, 200, 30)
    image = pixels("photo", obs=obs)
    assert image[HEIGHT // 4, 3 * WIDTH // 5].tolist() == [10, 200, 30]


def test_numbers_are_bars():
    image = pixels("numbers", obs={"a": np.array([1.0, 50.0]), "b": np.float32(-1.0)})
    blue, red = ((np.abs(image - c).max(-1) < 10) for c in ((52, 101, 164), (192, 57, 43)))
    third = (WIDTH - 40) / 3
    first, second = (blue[:, int(20 + third * (i + 0.5))].sum() for i in (0, 1))
    assert 0 < first < second < HEIGHT / 2
    assert abs(red[:, int(20 + third * 2.5)].sum() - first) <= 1
    assert np.nonzero(red)[0].min() >= HEIGHT / 2 > np.nonzero(blue)[0].max()


def test_other_environments(tmp_path):
    for env in (dict_env(), faulty(push_env(), 0.9)):
        purerl.render(None, env, tmp_path / "a.gif")
        assert len(frames_of(tmp_path / "a.gif")) >= 2
    pixels("CartPole-v1", x=math.nan, theta=math.inf)


def test_wrong_arguments(tmp_path):
    policy = make_policy(purerl.PPO(), walk())
    path = tmp_path / "a.gif"
    for arguments, message in (
        ((policy, push_env(), path), r"env: push has Box\(.*expected the policy's actions, Discr"),
        ((walk(), walk(), path), "policy: got Env, expected a Policy"),
        ((policy, walk(), tmp_path / "a.avi"), r"path: got '.*a.avi', expected a name .* .gif or"),
        ((policy, walk(), path, 0, 0), "max_steps: got 0, expected an integer >= 1"),
        ((policy, "Cartpole", path), "did you mean 'CartPole-v1'"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            purerl.render(*arguments)
    with pytest.raises(purerl.RunError, match="can't be written"):
        purerl.render(policy, walk(), tmp_path / "none" / "a.gif")


def test_a_video_needs_a_package(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    words = (
        r"path: '.*a\.mp4' needs imageio-ffmpeg: pip install 'purerl\[video\]'; a \.gif needs no"
    )
    with pytest.raises(purerl.ConfigError, match=words):
        purerl.render(None, "CartPole-v1", tmp_path / "a.mp4")


def decoded(path, width, height):
    """What ffmpeg says of a video, and its frames `[T, height, width, 3]`."""
    import imageio_ffmpeg

    command = (imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24")
    done = subprocess.run((*command, "-"), capture_output=True, check=True, timeout=250)
    frames = np.frombuffer(done.stdout, np.uint8).astype(int)
    return done.stderr.decode(), frames.reshape(-1, height, width, 3)


needs_ffmpeg = pytest.mark.skipif(
    find_spec("imageio_ffmpeg") is None, reason="needs pip install 'purerl[video]'"
)


@pytest.mark.slow
@needs_ffmpeg
def test_a_video_has_the_pictures_of_the_gif(tmp_path):
    paths = tmp_path / "a.gif", tmp_path / "a.mp4"
    played = [purerl.render(None, "CartPole-v1", path, max_steps=6) for path in paths]
    assert played[0] == played[1]
    pictures = frames_of(paths[0])
    about, frames = decoded(paths[1], *pictures.shape[2:0:-1])
    assert "h264" in about
    assert "25 fps" in about
    assert len(frames) == len(pictures) + 24  # the last one stays for a second
    assert np.abs(frames[: len(pictures)] - pictures).mean() < 4
    assert np.abs(frames[0] - frames[-1]).mean() > 0.1  # it moves
    assert set(tmp_path.iterdir()) == set(paths)


@pytest.mark.slow
@needs_ffmpeg
def test_a_video_of_odd_size(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (63, 41), color) for color in ("red", "blue")]
    module._write_mp4(frames, tmp_path / "odd.mp4")
    assert len(decoded(tmp_path / "odd.mp4", 64, 42)[1]) == 26
    with pytest.raises(purerl.RunError, match="the video can't be written to"):
        module._write_mp4(frames, tmp_path / "nowhere" / "odd.mp4")
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "/bin/false")
    with pytest.raises(purerl.RunError, match="the video can't be encoded: "):
        module._write_mp4(frames, tmp_path / "none.mp4")
