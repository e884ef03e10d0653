"""Ingests zips of labelled faces, trains the network, exports, registers and promotes the model."""
