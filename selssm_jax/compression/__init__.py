"""Making a memory smaller: what it holds in fewer bytes, and what that costs."""
