"""What do real borders cost? Against other solvers, with the size, in training, and where the FFT recipe errs."""

from benchmarks.borders import large, picture, scaling, solvers, step
from benchmarks.harness.command import ask

if __name__ == "__main__":
    ask("borders", __doc__, solvers, scaling, step, large, picture)
