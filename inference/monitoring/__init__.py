"""Measurements of a worker while it serves: throughput, drift, and the challenger beside the champion."""
