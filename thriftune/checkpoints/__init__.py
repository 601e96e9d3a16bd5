"""Checkpoints of a running training in the blob store: whole or not there, and found again by the next attempt.

What lies under the prefix of an attempt:

    attempts.json                              prefixes of the attempts before it
    checkpoint-<step>/files/node-<k>/<name>    what node k's ranks wrote
    checkpoint-<step>/parts/node-<k>.json      node k is done: its names, sizes and checksums
    checkpoint-<step>/parts/node-<k>.problem   node k will not deliver: why
    checkpoint-<step>/manifest.json            all parts together, written last: only with it is a checkpoint whole
"""
