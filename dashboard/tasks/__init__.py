"""What the dashboard does in the background."""
