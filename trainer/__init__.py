"""Ingests zips of labelled faces, trains the network, exports, registers and promotes the model."""

import os

# Threads that wait for each other sleep. By default they spin, and training takes ten times as long on cores that it
# shares with workers or anything else; on an idle machine the difference is small. Torch's OpenMP library reads this
# once, as it loads: hence here, before anything of this package can import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# ONNX Runtime would gather what it is used for and send it to its maker. It, too, reads this as it loads.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
