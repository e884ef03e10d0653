"""Serves the registered model from the prediction and job queues with ONNX Runtime."""
