"""The starter's weights: a teacher learns from an archive of labelled faces, and teaches the network that is served."""
