"""What do real borders cost? Against other solvers, with the size, for blurs, in training, and in a picture."""

from benchmarks.borders import blurs, large, picture, scaling, solvers, step
from benchmarks.harness.command import ask

if __name__ == "__main__":
    ask("borders", __doc__, solvers, scaling, blurs, step, large, picture)
