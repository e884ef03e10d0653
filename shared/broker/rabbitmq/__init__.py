"""The broker for many machines: RabbitMQ through pika."""
