"""Studies made with the package, run from a clone."""
