"""Distributed context: rank, world size, device, rendezvous. Importing this package does not import torch."""
