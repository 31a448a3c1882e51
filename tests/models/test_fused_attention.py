"""cuDNN's fused attention against attention written out: where there is an NVIDIA GPU and jax[cuda] is installed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest

COMPARE = """
import sys
import jax, numpy as np
import jax.numpy as jnp
from qualiclip_jax.models import layers

def loss(q, k, v):
    return jnp.sum(layers.attention(q, k, v, None).astype(jnp.float32) ** 2)

for tokens, width in ((50, 64), (197, 64), (577, 80)):  # none is a multiple of 8
    rng = np.random.default_rng(tokens)
    low = [jnp.asarray(rng.standard_normal((2, tokens, 3, width)), jnp.bfloat16) for _ in range(3)]
    exact = [x.astype(jnp.float32) for x in low]  # float32 is never fused
    if sys.argv[1:] != ["plain"]:
        assert layers._fuses_attention(width)
        assert "fmha" in jax.jit(layers.attention).lower(*low, None).compile().as_text()
    for function, bound in ((lambda *x: layers.attention(*x, None), 0.01), (jax.grad(loss, (0, 1, 2)), 0.03)):
        for ours, right in zip(jax.tree.leaves(jax.jit(function)(*low)), jax.tree.leaves(function(*exact))):
            error = np.abs(np.asarray(ours, np.float32) - right).max() / np.abs(right).max()
            assert error < bound, (tokens, error)
            print(tokens, error)
"""


def has_gpu():
    plugins = [d.name for d in importlib.metadata.distributions() if d.name.startswith("jax-cuda")]
    if not plugins or shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


@pytest.mark.accelerator
@pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU, or jax[cuda] is not installed")
def test_fused_attention_and_its_gradient():
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
