"""What two or more of Genderline's services use: messages, brokers, store, registry, images, metrics, the command line."""
