"""Results of a run for people: the verdict of the rules, and one self-contained HTML page."""
