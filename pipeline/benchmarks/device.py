"""What a GPU can do at most, and whether a step ever waits for it."""

import statistics

import torch

from pipeline.benchmarks.step import Setting, build_entrants


def matmul_teraflops(side: int = 8192, rounds: int = 10) -> float:
    """bf16 matrix multiplication of `side`³ on the current GPU, the median of `rounds` after one."""
    a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    milliseconds: list[float] = []
    for _ in range(rounds + 1):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        a @ b
        after.record()
        torch.cuda.synchronize()
        milliseconds.append(before.elapsed_time(after))
    return 2.0 * side**3 / float(statistics.median(milliseconds[1:])) / 1e9


def check_no_waiting(setting: Setting) -> None:
    """A training step of ours in bf16 that raises where the host would wait for the device."""
    (entrant,) = build_entrants(setting, ("ours", "bf16"))
    entrant.run()  # compiles kernels, and waits for that
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        entrant.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
