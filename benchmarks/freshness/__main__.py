"""Is it ever stale, and what does freshness cost? In caches of others too, in a step, and in several processes."""

from benchmarks.freshness import busy, caches, processes, refresh, shares, threads
from benchmarks.harness.command import ask

if __name__ == "__main__":
    ask("freshness", __doc__, caches, refresh, processes, shares, threads, busy)
