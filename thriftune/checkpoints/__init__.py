"""Checkpoints of a running training in the blob store: complete or not there, and found by the next attempt.

The files under the prefix of an attempt:

    attempts.json                              prefixes of the attempts before it
    checkpoint-<step>/files/node-<k>/<name>    what node k's ranks wrote
    checkpoint-<step>/parts/node-<k>.json      node k is done: names, sizes and checksums of its files
    checkpoint-<step>/parts/node-<k>.problem   why node k will not upload its part
    checkpoint-<step>/manifest.json            all parts together, written last: it makes the checkpoint complete
"""
