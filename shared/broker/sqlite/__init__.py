"""The embedded broker: queues and events in one SQLite file."""
