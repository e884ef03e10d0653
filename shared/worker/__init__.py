"""How every message is worked on: taken, handled, answered, retried or buried."""
