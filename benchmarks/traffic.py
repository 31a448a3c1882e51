"""Traffic with memory of a training step, read off the program that XLA makes for a GPU that need not be there.

    pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt        of the version of the installed jax
    python benchmarks/traffic.py
    python benchmarks/traffic.py --backbones ViT-B/16 ViT-L/14 --largest 20 --config.batch_size=32

Counted are the bytes that each kernel reads and writes, by its shapes: what caches save is not known. The step is that
without degradations. Products are left to cuBLAS and nothing is tuned, since there is no GPU to try it on. So compare
the figures before and after a change of the code; they are no prediction of time.
"""

import argparse
import collections
import os
import re

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import memory
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from train_step import encoder_step

from qualiclip_jax.degradations.catalog import FACTORS
from qualiclip_jax.models import layers
from qualiclip_jax.training.command_line import parse
from qualiclip_jax.training.config import recommended_config

get_config = recommended_config
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")  # operations that move nothing
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8}


def compile_step(name, config):
    """The text of the compiled step of a backbone."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    jax.default_backend = lambda: "gpu"  # what the models ask; there is no such backend here
    layers._fuses_attention = lambda width: width % 8 == 0 and width <= 128
    cudnn.check_cudnn_version, cudnn.check_compute_capability = (lambda: 91000), (lambda capability: True)
    recipe, state = memory.abstract_run(name, config)
    b, size, levels = config.batch_size, config.data.crop_size, config.degradations.levels
    images = jax.ShapeDtypeStruct((b, levels, 2, size, size, 3), np.float32)
    severities = jax.ShapeDtypeStruct((b, levels, len(FACTORS)), np.float32)
    here = SingleDeviceSharding(topology.devices[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    step = jax.jit(lambda *args: encoder_step(*args, recipe=recipe), donate_argnums=0)
    traced = step.trace(*jax.tree.map(place, (state, images, severities)))
    return traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=OPTIONS).as_text()


def size_of(shapes):
    """Bytes of the arrays that a type of XLA's text lists."""
    arrays = re.findall(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]", shapes)
    return sum(BYTES[kind] * int(np.prod([int(x) for x in dims.split(",") if x])) for kind, dims in arrays)


def kernels(text):
    """(kind, bytes, result, operation in our code) of each kernel of a compiled program."""
    entry = re.search(r"^ENTRY .*?\{\n(.*?)^\}", text, re.M | re.S)[1]
    results, found = {}, []
    for line in entry.splitlines():
        parsed = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(.*)", line)
        if parsed is None:
            continue
        name, results[parsed[1]], operation, inputs, rest = parsed.groups()
        if operation in FREE:
            continue
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        kind = target[1].strip("_").replace("$", " ") if target else "copy" if "copy" in operation else "other"
        moved = size_of(results[name]) + sum(size_of(results[x]) for x in re.findall(r"%([\w.\-]+)", inputs))
        source = re.search(r'op_name="([^"]*)"', rest)
        found.append((kind, moved, re.sub(r"\{[^}]*\}", "", results[name]), source[1] if source else ""))
    return found


def main():
    """Prints a table of the kinds of kernels for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["ViT-B/16"], metavar="NAME")
    parser.add_argument("--largest", type=int, default=0, metavar="N", help="also the N kernels that move most")
    args, fields = parser.parse_known_args()
    config, _, _ = parse(["--config", __file__, *fields])
    for name in args.backbones:
        found = kernels(compile_step(name, config))
        groups = collections.defaultdict(list)
        for kind, moved, *_ in found:
            groups[kind].append(moved)
        print(f"{name}, {config.batch_size} images: {sum(x[1] for x in found) / 1e9:.1f} GB, {len(found)} kernels")
        for kind, sizes in sorted(groups.items(), key=lambda item: -sum(item[1])):
            print(f"  {sum(sizes) / 1e9:8.1f} GB  {len(sizes):5d}  {kind}")
        for kind, moved, result, source in sorted(found, key=lambda x: -x[1])[: args.largest]:
            print(f"  {moved / 1e9:8.2f} GB  {kind:30s} {result[:60]:60s} {source[-60:]}")


if __name__ == "__main__":
    main()
