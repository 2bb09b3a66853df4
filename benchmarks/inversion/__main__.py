"""What does a layer still know of its image? Layer by layer, and from where a joint solve had better start."""

from benchmarks.harness.command import ask
from benchmarks.inversion import layers, prior, start, sweep, trained

if __name__ == "__main__":
    ask("inversion", __doc__, layers, prior, start, sweep, trained)
