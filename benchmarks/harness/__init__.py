"""What all questions share: clocks, kept records, figures, and the facts about a machine."""
