"""Serves the registered model from the prediction and job queues with ONNX Runtime."""

import os

# ONNX Runtime would gather what it is used for and send it to its maker. It reads this once, as it loads: hence here,
# before anything of this package can import it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
