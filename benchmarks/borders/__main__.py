"""What do real borders cost? Against others, with the size, for blurs, in training, for determinants, in a picture."""

from benchmarks.borders import blurs, damped, large, picture, scaling, solvers, step, volumes
from benchmarks.harness.command import ask

if __name__ == "__main__":
    ask("borders", __doc__, solvers, scaling, blurs, damped, step, volumes, large, picture)
