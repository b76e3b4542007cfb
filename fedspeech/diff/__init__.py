"""What turns one generation of a model into the next, within a byte budget.

FORMAT.md is the wire format. `sparse` and `hashed` are the two kinds of diff, `budget` finds the
one that fits, `learned_sparse` and `learned_hash` train them; `wire` and `entropy` are the bytes,
`inspect` says where they go, and `apply` makes the next model of them. Nothing here knows of
speech.
"""
