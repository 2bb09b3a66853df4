"""Bits/dim of the demo flow with 3 x 3 invertible convolutions against the same flow with 1 x 1 ones.

    python benchmarks/bits_per_dim.py --data ../shared/data/cifar10_subset.npz --steps 1000 --seeds 0 1 2

`--data` is any .npz with uint8 arrays `x_train` and `x_test`, (count, 3, 32, 32).  Both flows of a seed see the same
batches and the same noise, and train side by side, a process and a thread each, so that their clocks run alike.
The clock stands still while the held-out images are scored.  Curves and tables go to `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from demo_flow import demo_flow
from timing import machine

KERNELS = (1, 3)


def train(kernel: int, seed: int, data: str, steps: int, every: int, batch: int, lr: float, rho: float) -> dict:
    """One run: the held-out curve, and every training loss."""
    torch.set_num_threads(1)
    images = np.load(data)
    x_train, x_test = (torch.from_numpy(images[name]) for name in ("x_train", "x_test"))
    torch.manual_seed(seed)
    flow = demo_flow(kernel_size=kernel, rho=rho)
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    generator = torch.Generator().manual_seed(seed)
    losses, curve, seconds = [], [], 0.0
    for step in range(1, steps + 1):
        x = x_train[torch.randint(len(x_train), (batch,), generator=generator)]
        x = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        start = time.perf_counter()
        loss = flow.bits_per_dim(x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - start
        losses.append(loss.item())
        if step % every == 0 or step == steps:
            with torch.no_grad():
                noise = torch.Generator().manual_seed(0)
                score = (
                    torch.cat([flow.bits_per_dim(part, generator=noise) for part in x_test.split(128)]).mean().item()
                )
                worst = max(flow.condition_numbers().values()).item()
                error = flow.reconstruction_error(x_test[:64]).max().item()
            curve.append({"step": step, "seconds": seconds, "bits": score, "condition": worst, "error": error})
            print(f"{kernel} x {kernel}, seed {seed}: {curve[-1]}", file=sys.stderr, flush=True)
    return {"kernel": kernel, "seed": seed, "curve": curve, "losses": losses}


def at(curve: list[dict], key: str, value: float) -> float:
    """Bits/dim at a step or second, between the points of the curve."""
    return float(np.interp(value, [p[key] for p in curve], [p["bits"] for p in curve]))


def worst_rise(losses: list[float], window: int = 50) -> float:
    """The largest training loss after the warm-up, over the median of the `window` steps before it."""
    return max(losses[i] - statistics.median(losses[i - window : i]) for i in range(2 * window, len(losses)))


def tell(runs: list[dict]) -> None:
    seeds = sorted({run["seed"] for run in runs})
    of = {(run["kernel"], run["seed"]): run for run in runs}
    print("\nbits/dim on held-out images, 1 x 1 -> 3 x 3 (difference)")
    for step in [p["step"] for p in runs[0]["curve"]]:
        pairs = [[at(of[k, s]["curve"], "step", step) for k in KERNELS] for s in seeds]
        each = "   ".join(f"{a:.3f} -> {b:.3f} ({b - a:+.3f})" for a, b in pairs)
        print(f"  after {step:5d} steps    {each}   mean {statistics.mean(b - a for a, b in pairs):+.3f}")
    clock = min(run["curve"][-1]["seconds"] for run in runs)
    for share in (0.25, 0.5, 1.0):
        pairs = [[at(of[k, s]["curve"], "seconds", share * clock) for k in KERNELS] for s in seeds]
        each = "   ".join(f"{a:.3f} -> {b:.3f} ({b - a:+.3f})" for a, b in pairs)
        print(f"  after {share * clock:5.0f} seconds  {each}   mean {statistics.mean(b - a for a, b in pairs):+.3f}")
    for kernel in KERNELS:
        chosen = [run for run in runs if run["kernel"] == kernel]
        step = statistics.mean(r["curve"][-1]["seconds"] / len(r["losses"]) for r in chosen)
        points = [point for run in chosen for point in run["curve"]]
        print(
            f"  {kernel} x {kernel}: {step:.3f} s a step; "
            f"worst condition {max(p['condition'] for p in points):.1f}; "
            f"largest reconstruction error {max(p['error'] for p in points):.1e} of full scale; "
            f"largest loss above the median of the 50 steps before {max(worst_rise(r['losses']) for r in chosen):.2f}"
        )


def draw(runs: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, key in zip(axes, ("step", "seconds"), strict=True):
        for run in runs:
            points = run["curve"]
            colour = {1: "tab:grey", 3: "tab:blue"}[run["kernel"]]
            label = f"{run['kernel']} x {run['kernel']}" if run["seed"] == runs[0]["seed"] else None
            axis.plot([p[key] for p in points], [p["bits"] for p in points], color=colour, label=label)
        axis.set_xlabel({"step": "training step", "seconds": "seconds of training, one core"}[key])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bits/dim on held-out images")
    axes[0].set_ylim(top=sorted(p["bits"] for r in runs for p in r["curve"])[-1 - len(runs)])
    axes[0].legend(title="invertible convolutions")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bits_per_dim"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        given = {k: v for k, v in vars(options).items() if k not in ("seeds", "out", "one")}
        print(json.dumps(train(options.one, options.seeds[0], **given)))
        return
    print(machine())
    runs = []
    for seed in options.seeds:
        arguments = [f"--{k}={v}" for k, v in vars(options).items() if k not in ("seeds", "one") and v is not None]
        command = [sys.executable, __file__, *arguments, "--seeds", str(seed)]
        both = [subprocess.Popen([*command, "--one", str(k)], stdout=subprocess.PIPE, text=True) for k in KERNELS]
        runs += [json.loads(process.communicate()[0]) for process in both]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "runs.json").write_text(json.dumps({"machine": machine(), "runs": runs}))
    tell(runs)
    draw(runs, options.out / "bits_per_dim.png")
    print(f"Curves: {options.out / 'bits_per_dim.png'}")


if __name__ == "__main__":
    main()
