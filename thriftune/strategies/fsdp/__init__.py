"""FSDP2: every rank holds a part of each weight, and gathers the weights of a layer while it computes with them."""
