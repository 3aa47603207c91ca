"""The study of one paper: its claims and the goals of this project beside what committed records say. Not installed."""
