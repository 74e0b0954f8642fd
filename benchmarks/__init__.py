"""What a warmup step costs, measured with public tools alone. See README.md.

The environment is set here because it must be before torch is imported: one thread, or times on a busy machine mean
nothing, and a profiler that reports its counts without announcing itself on the terminal.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
