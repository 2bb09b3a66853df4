"""Does `plan()` foresee what is taken, and does `auto` take the best way? Each call in a process of its own."""

from benchmarks.harness.command import ask
from benchmarks.plans import memory, seconds

if __name__ == "__main__":
    ask("plans", __doc__, memory, seconds)
