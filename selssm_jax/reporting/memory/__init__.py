"""What a trained model remembers: its states are recorded, measured in bits, and told in the report."""
