"""What a hidden state knows, in nats: exact, bracketed and estimated."""
