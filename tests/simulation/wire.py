"""First bytes of messages, for whoever looks at bytes without decoding them."""

PRE_PREPARE, PREPARE, COMMIT, STABLE, ATTEST, CANDIDATE, READY = range(1, 8)
VIEW_CHANGE, NEW_VIEW, STATUS, COMMIT_PROOF, STABILITY, REQUEST, EPOCHS = range(16, 23)
# Those that a driver has something to say about before they leave.
SIGNED_ONCE = frozenset((*range(PRE_PREPARE, READY + 1), VIEW_CHANGE, NEW_VIEW))
