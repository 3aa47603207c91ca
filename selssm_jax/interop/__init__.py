"""Models of other projects as models of this one, and back."""
