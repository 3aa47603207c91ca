"""Selective state space models whose memory can be trained, measured and compressed."""
