"""The first twenty steps on one and on four devices, and on two processes of two devices, by pmap and by fsdp."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
STEPS = str(Path(__file__).with_name("twenty_steps.py"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`losses RUN` [20] and `pixels RUN` [20, B, L, 2, H, W, 3] of the RUNs of `twenty_steps`; "2x2": two processes."""
    folder = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launch = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "2", "--"]
    call([sys.executable, STEPS, str(folder / "one.npz"), "1", "4", "fsdp", "fsdp:2"], environment)
    call([*launch, sys.executable, STEPS, str(folder / "two.npz"), "4", "fsdp"], environment)
    with np.load(folder / "one.npz") as single, np.load(folder / "two.npz") as several:
        return dict(single) | {f"{name} 2x2": values for name, values in several.items()}


def call(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("devices", ["4", "4 2x2"])
def test_losses_do_not_depend_on_devices(runs, devices):
    assert runs["losses 1"].shape == (20,)
    assert len(np.unique(runs["losses 1"])) == 20  # it trains
    np.testing.assert_allclose(runs[f"losses {devices}"], runs["losses 1"], rtol=1e-5)


@pytest.mark.parametrize(("way", "pmap"), [("fsdp", "4"), ("fsdp:2", "4"), ("fsdp 2x2", "4 2x2")])
def test_fsdp_has_the_losses_of_pmap(runs, way, pmap):
    np.testing.assert_allclose(runs[f"losses {way}"], runs[f"losses {pmap}"], rtol=1e-6)


@pytest.mark.parametrize("devices", ["4", "4 2x2"])
def test_degraded_pixels_are_the_same_bit_for_bit(runs, devices):
    np.testing.assert_array_equal(runs[f"pixels {devices}"], runs["pixels 1"])
    assert not np.array_equal(runs["pixels 1"][0, :, 0], runs["pixels 1"][0, :, 1])  # levels differ
