"""Does `plan()` foresee what is taken, and does `auto` take the best way? Each answer in a process of its own."""
