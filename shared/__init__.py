"""What two or more of the services use: messages, brokers, store, registry, images, metrics, the command line."""
