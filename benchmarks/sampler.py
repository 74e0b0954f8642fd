"""What sampling costs: our own loop (`sample_warmups`) against `generate`, same constraints, prompts and weights.

    python -m benchmarks.sampler

The ratio is to `own_loop`: a generate of 2.0 takes twice as long.
"""

from __future__ import annotations

import tempfile

from benchmarks.results import Row, arguments, save
from benchmarks.shapes import GROUP_SIZES, SHAPES


def measure_sampling(shape: str, n: int, repeats: int, memory: bool = True) -> list[Row]:
    """Rows of one shape and one group size: n warmups for every prompt of the batch."""
    import torch

    from benchmarks.measure import measure, rows
    from benchmarks.ours import make_trainer
    from benchmarks.stock import adamw
    from benchmarks.workloads import make_workload
    from rl_warmup.engine import plain, sample_warmups

    torch.set_num_threads(1)
    workload = make_workload(SHAPES[shape])
    model = workload.model()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(workload, model, adamw(model), folder, n)
    model.eval()
    layout, constraints, prompts = trainer.layout, trainer.constraints, workload.prompts
    calls = {
        "own_loop": lambda: sample_warmups(model, layout, constraints, prompts, n),
        "generate": lambda: plain.sample(model, layout, constraints, prompts, n),
    }
    found = rows("sampler", shape, n, measure(calls, repeats, memory), "own_loop")
    print(f"{shape} n={n}: generate takes {found[1].ratio:.2f} times as long as the own loop", flush=True)
    return found


def main() -> None:
    """Measure what the command line asks for."""
    args = arguments(__doc__, n=GROUP_SIZES, shapes=list(SHAPES)).parse_args()
    rows = [row for shape in args.shapes for n in args.n for row in measure_sampling(shape, n, args.repeats)]
    save(args.out, "sampler", rows)


if __name__ == "__main__":
    main()
