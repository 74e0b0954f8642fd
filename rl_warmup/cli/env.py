"""`rl-warmup env`: versions, devices and variables that matter, for a report of a fault."""

from __future__ import annotations

import os
import platform
import re
import shutil

from rl_warmup.cli.main import OptionParser, quick_imports

PREFIXES = (
    "ACCELERATE_", "CUDA_", "DS_", "FSDP_", "HF_", "LOCAL_RANK", "MASTER_", "MKL_", "NCCL_", "OMP_", "PYTORCH_", "RANK",
    "RL_WARMUP_", "SLURM_JOB_ID", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "WORLD_SIZE", "LANG", "LC_ALL", "PYTHONIOENCODING",
)  # fmt: skip
SECRET = {"TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD"}  # parts of names whose values are not shown
LOGIN = re.compile(r"//[^/@\s]+@")  # of an address


def command(args: list[str]) -> None:
    """Print it as lines of `name: value`."""
    OptionParser(prog="rl-warmup env", description=__doc__).parse_args(args)
    with quick_imports():
        import torch

        from rl_warmup.runtime.run_folder import environment

    found = environment()
    print(f"python: {found['python']} on {platform.platform()}")
    for package, version in found["versions"].items():
        print(f"{package}: {version or 'not installed'}")
    cuda = torch.version.cuda or "none"
    print(f"CUDA of torch: {cuda}, devices: {torch.cuda.device_count()}")
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        print(f"device {number}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        f"processor: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"
    )
    print(f"threads of torch: {found['threads']}")
    print(f"free on the disk of {os.getcwd()}: {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    for name, value in sorted(os.environ.items()):
        if name.startswith(PREFIXES):
            print(f"{name}={'...' if SECRET & set(name.split('_')) else LOGIN.sub('//...@', value)}")
