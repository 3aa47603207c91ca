"""Reports: what a run scores, what its gates do, what it costs, for people and for programs."""
