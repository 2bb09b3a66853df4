"""How fast is it? In ratios against others, with inverses updated instead, and in lines of code of each plug."""

from benchmarks.harness.command import ask
from benchmarks.speed import plugs, ratios, updating

if __name__ == "__main__":
    ask("speed", __doc__, ratios, updating, plugs)
