"""What a worker measures while it serves: throughput, drift, the challenger's answers."""
